"""How fast an epoch learns, which one was best, when it stops."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.recipes.recipe import Recipe
from fieldmark.training.history import EpochRecord
from fieldmark.training.schedule import best_epoch, epochs_in_time, format_epoch, lr_factor, should_stop_early


def rows(*metrics: tuple[int, float, float]) -> list[EpochRecord]:
    """(phase, accuracy, loss) of each epoch."""
    return [
        EpochRecord(k, number, 0.1, 1.0, 0.5, val_loss=loss, val_accuracy=accuracy, seconds=1.0)
        for k, (number, accuracy, loss) in enumerate(metrics, 1)
    ]


@given(st.integers(1, 400), st.integers(1, 50))
def test_cosine_warms_up_and_comes_down(epochs: int, steps: int):
    total = epochs * steps
    factors = [lr_factor("cosine", step, total, [], "accuracy") for step in range(total)]
    top = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors[:1]) and max(factors) <= 1
    assert factors[: top + 1] == sorted(factors[: top + 1]) and top <= max(1, total // 10)
    assert factors[top:] == sorted(factors[top:], reverse=True)


@given(st.integers(1, 30), st.floats(0.5, 2), st.lists(st.floats(0.5, 3), min_size=30, max_size=30))
def test_the_epochs_fit_into_the_time_that_they_are_given(planned: int, slack: float, speeds: list[float]):
    """Simulated epochs, each so much slower than planned: they end in time, but for the last epoch's slowdown."""
    available, taken, epochs, done = planned * slack, [], float(planned), 0.0
    while done < (shorter := epochs_in_time(planned, taken, available)):
        assert shorter <= epochs and len(taken) <= shorter
        epochs = shorter
        step = min(1.0, epochs - done)
        taken.append(step * speeds[len(taken)])
        done += step
    assert done == epochs_in_time(planned, taken, available)  # a run that is resumed here has ended
    steady = [1.0] * planned
    assert epochs_in_time(planned, steady[:-1], planned) == planned  # at the planned pace all of them
    pace = max(speeds) * max(1.0, slack)
    assert epochs_in_time(planned, [pace], available) * pace <= max(pace, available) + 1e-6


@pytest.mark.parametrize(
    ("seconds", "epochs"),
    [([], 8), ([10], 8), ([14], 6.25), ([10, 18], 6.25), ([10, 18, 10, 10], 6.25), ([90], 1), ([10, 10, 99], 3)],
)
def test_slow_epochs_leave_the_last_ones_out(seconds: list[float], epochs: float):
    assert epochs_in_time(8, seconds, 88) == epochs


def test_plateau_drops_after_four_epochs_without_gain():
    history = rows((2, 0.5, 1), (2, 0.6, 1), (2, 0.6, 1), (2, 0.5, 1), (2, 0.6, 1))
    assert lr_factor("plateau", 0, 1, history, "accuracy") == 1
    history += rows((2, 0.4, 1))
    assert lr_factor("plateau", 0, 1, history, "accuracy") == pytest.approx(0.2)
    history += rows(*[(2, 0.1, 1)] * 4)
    assert lr_factor("plateau", 0, 1, history, "accuracy") == pytest.approx(0.04)


def test_steps_divide_by_ten_at_30_60_and_90_of_100_epochs():
    rates = [lr_factor("steps", step, 100 * 7, [], "accuracy") for step in range(100 * 7)]
    changes = [step for step in range(1, 700) if rates[step] != rates[step - 1]]
    assert [step / 7 for step in changes] == [30, 60, 90]
    assert [rates[0], *(rates[step] for step in changes)] == pytest.approx([1, 0.1, 0.01, 0.001])


def test_plateau_watches_the_loss_where_it_is_monitored():
    better = rows(*[(2, 0.5, 1 / k) for k in range(1, 9)])  # no more accuracy, but less and less loss
    assert lr_factor("plateau", 0, 1, better, "loss") == 1
    assert lr_factor("plateau", 0, 1, better, "accuracy") < 1


def test_a_phase_stops_by_its_own_epochs():
    history = rows((1, 0.9, 1), (1, 0.8, 1), (2, 0.7, 1), (2, 0.6, 1), (2, 0.6, 1))
    two, three, one = (Recipe(patience=patience) for patience in (2, 3, 1))
    assert should_stop_early(history, 2, two, 10**6) and not should_stop_early(history, 2, three, 10**6)
    assert not should_stop_early(history, 1, one, 10**6) and not should_stop_early(history, 3, one, 10**6)
    assert not should_stop_early(history, 2, two, 10)  # of ten photos, one more or less is no loss


def test_the_best_epoch():
    history = rows((1, 0.99, 0.1), (1, 0.7, 0.5), (2, 0.8, 0.6), (2, 0.8, 0.4), (2, 0.75, 0.3))
    plateau = Recipe(schedule="plateau")
    assert best_epoch(history, plateau, 10**6) == 4  # phase 1 stands with its last epoch; ties go to the lower loss
    assert best_epoch(history, Recipe(monitor="loss"), 10**6) == 5
    assert best_epoch(history[:2], Recipe(), 10**6) == best_epoch(history[:2], plateau, 10**6) == 2
    nothing = rows((1, math.nan, math.nan), (2, math.nan, math.nan))
    assert best_epoch(nothing, Recipe(), 0) == best_epoch(nothing, plateau, 0) == 2


def test_where_the_head_is_refitted_fine_tuning_competes_through_the_refit_alone():
    """By the loss: accuracy hangs on single images, and the best of many epochs is the luckiest."""
    history = rows((1, 0.80, 0.5), (2, 0.9, 0.4), (2, 0.9, 0.3))
    assert best_epoch(history, Recipe(), 50, refits_head=True) == 1  # so far
    refit = EpochRecord(4, 4, 0.1, 1.0, 0.5, val_loss=0.45, val_accuracy=0.78, seconds=1.0)
    assert best_epoch([*history, refit], Recipe(), 50, refits_head=True) == 4
    worse = EpochRecord(4, 4, 0.1, 1.0, 0.5, val_loss=0.55, val_accuracy=0.85, seconds=1.0)
    assert best_epoch([*history, worse], Recipe(), 50, refits_head=True) == 1
    assert best_epoch([*history, worse], Recipe(), 50) == 3


@pytest.mark.parametrize(("photos", "best"), [(10**6, 3), (200, 4), (60, 5)])
def test_the_latest_epoch_within_one_standard_error_is_the_best(photos: int, best: int):
    """0.8 is sure to 0.028 of 200 photos, and to 0.052 of 60."""
    history = rows((1, 0.7, 0.5), (2, 0.7, 0.6), (2, 0.8, 0.6), (2, 0.78, 0.7), (2, 0.75, 0.8))
    assert best_epoch(history, Recipe(), photos) == best


def test_the_line_of_an_epoch_is_the_write_ups():
    row = EpochRecord(3, 2, 0.1, train_loss=1.0, train_accuracy=0.5, val_loss=2.0, val_accuracy=0.25, seconds=1.5)
    expected = "epoch: 3/9, train_loss: 1.0000, train_acc: 0.5000, val_loss: 2.0000, val_acc: 0.2500"
    assert format_epoch(row, 9).startswith(expected)
