"""What is left open until the speed is known: epochs for a budget, rates, the size of a batch."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError, UntrainableRecipeError
from fieldmark.models import build
from fieldmark.pipeline import finish
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import budget as plan


class Stage:
    """What `plan_epochs` asks of a Trainer, at the speed given."""

    def __init__(self, photos: int, elapsed: float) -> None:
        self.network, self.data, self.phase_builder, self.fabric, self.reporter = self, self, self, self, self
        self.elapsed, self.feature_seconds = lambda: elapsed, 0.0
        self.train, self.image_size, self.is_global_zero = range(photos), 224, True

    def broadcast(self, value: Any) -> Any:
        return value


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch):
    def set_to(step: float, look: float, judging: float) -> None:
        monkeypatch.setattr(plan, "measure_costs", lambda trainer, recipe: plan.TrainingCosts(step, look))
        monkeypatch.setattr(plan, "measure_inference_seconds", lambda network, size: judging)

    return set_to


@given(
    budget=st.integers(1, 7200),
    elapsed=st.floats(0, 600),
    step=st.floats(0.001, 20),
    look=st.floats(0, 60),
    photos=st.integers(1, 5000),
    start=st.none() | st.integers(64, 160),
    weights=st.sampled_from(["imagenet", "none"]),
)
def test_a_plan_fits_into_the_budget(speed, budget, elapsed, step, look, photos, start, weights):
    speed(step, look, 0.01)
    recipe = Recipe(budget=f"{budget}s", start_size=start, weights=weights)
    left = (budget - elapsed - plan.EXPORT_RESERVE_S - 1 - look) / plan.TIME_SAFETY_FACTOR
    try:
        made = plan.plan_epochs(Stage(photos, elapsed), recipe, 100)  # type: ignore[arg-type]
    except UntrainableRecipeError as error:  # no step fits, and there is no linear probe to keep
        assert weights == "none" and left <= step + look + 1e-6
        assert re.search(r"too short .* a --budget of \d+s or more", str(error))
        return
    planned = made.recipe
    assert planned.replace(epochs=recipe.epochs, steps_per_epoch=None) == recipe and made.message
    assert planned.steps_per_epoch is not None  # by that a resumed run knows that it is planned
    most = plan.MAX_EPOCHS if weights == "imagenet" else plan.MAX_EPOCHS_FROM_SCRATCH
    spent = planned.epochs * (planned.steps_per_epoch * step * (0.5 if start else 1) + look)
    assert 0 <= planned.epochs <= most and spent <= max(0, left) + 1e-6
    assert made.finetuning_seconds == (pytest.approx(left * plan.TIME_SAFETY_FACTOR) if planned.epochs else None)
    full = max(1, photos // recipe.batch)
    if planned.epochs == 0:
        least = min(plan.MIN_EPOCHS, plan.MIN_STEPS / full)  # with less it would gain nothing
        assert weights == "imagenet" and left <= least * (full * step + look) + 1e-6
    elif planned.epochs < most:
        assert planned.steps_per_epoch <= 2 * full
        if start is None and planned.steps_per_epoch < 2 * full:
            assert left - spent <= planned.epochs * step + 1e-6  # nothing worth a step is wasted
    else:
        assert planned.steps_per_epoch <= full


def test_measuring_takes_all_phases_and_leaves_no_trace(trainer):
    training = trainer(unfreeze="gradual", ema=0.9, mixup=0.2, accumulate=2)
    training.phase_builder.enter_phase(2)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    taken: list[tuple[int, int]] = []
    whole = training.accumulate_gradients

    def gradients(module, inputs, targets, phase, step):
        taken.append((phase, step))
        return whole(module, inputs, targets, phase, step)

    training.accumulate_gradients = gradients
    costs = plan.measure_costs(training, training.recipe)
    assert (
        costs.step_s > 0
        and costs.validation_s > 0
        and taken == [(phase, step) for phase in (2, 3) for step in range(plan.TRIAL_STEPS)]
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in training.network.state_dict().items())
    frozen = list(training.phase_builder.frozen_features.prefix.parameters())
    assert frozen and not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_are_found_again_and_leave_no_trace(trainer, optimizer: str):
    found = []
    for _ in range(2):
        training = trainer(find_lr=True, optimizer=optimizer, frozen_epochs=0)
        training.phase_builder.enter_phase(2)
        before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
        torch.manual_seed(len(found))  # nothing hangs on what was drawn before
        found.append(plan.find_learning_rates(training, training.recipe, steps=20).recipe)
        assert all(torch.equal(before[name], tensor) for name, tensor in training.network.state_dict().items())
    assert found[0] == found[1] and not found[0].find_lr
    head, backbone = found[0].learning_rates
    assert backbone == pytest.approx(head * (0.5 if optimizer == "sgd" else 0.3), rel=0.06)
    usual = Recipe(optimizer=optimizer).learning_rates[0]
    assert usual / 3000 <= head <= usual * 10


def test_a_batch_fits_into_half_of_the_memory():
    network = build("resnet18", classes=3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = [plan.find_batch_size(network, 64, 10**6, free=free) for free in (0, 1e8, 2e8, 4e8, 1e9, 1e15)]
    assert found == sorted(found) and found[0] == 2 and found[-1] == plan.MAX_BATCH_SIZE
    assert len(set(found)) > 3 and all(n & (n - 1) == 0 for n in found)
    assert plan.find_batch_size(network, 128, 10**6, free=4e8) == plan.find_batch_size(network, 64, 10**6, free=1e8)
    assert plan.find_batch_size(network, 64, 20, free=1e15) == 16
    assert plan.find_batch_size(network, 64, 100, chunks_per_step=3, free=1e15) == 96
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_memory_is_that_of_the_gpu_where_one_trains(monkeypatch: pytest.MonkeyPatch):
    """Although the network is still on the CPU when the batch is chosen."""
    network = build("resnet18", classes=3)
    monkeypatch.setattr(plan.os, "sysconf", lambda name: {"SC_AVPHYS_PAGES": 1e6, "SC_PAGE_SIZE": 4096}[name])
    assert plan.free_memory_bytes() == 4.096e9
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4e8, 8e9))
    assert plan.find_batch_size(network, 64, 10**6) == plan.find_batch_size(network, 64, 10**6, free=4e8)
    assert plan.find_batch_size(network, 64, 10**6) < plan.find_batch_size(network, 64, 10**6, free=4.096e9)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_trial_runs_what_will_train(trainer, monkeypatch: pytest.MonkeyPatch, is_compiled: bool):
    """Compiled where the training is, or its steps would be planned at another speed."""
    calls: list[str] = []

    def compiled(module: torch.nn.Module) -> torch.nn.Module:
        module.register_forward_pre_hook(lambda *_: calls.append("compiled"))
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    training = trainer(compile=is_compiled, frozen_epochs=0)
    plan.measure_costs(training, training.recipe)
    assert bool(calls) == is_compiled and len(calls) >= plan.TRIAL_STEPS * is_compiled


# ---- in a run

NOW = """
import time
from fieldmark.core import runtime
from fieldmark.training import budget
runtime.PROCESS_START = time.monotonic()
budget.EXPORT_RESERVE_S = {closing}
"""
OPTIONS = ["--image-size", "64", "--train-size", "64", "--batch", "8"]


@pytest.mark.slow
def test_the_plan_of_a_budget_is_made_once(start, tmp_path: Path):
    """A run that is killed in phase 2 goes on with its plan, although its time is up."""
    words = [*OPTIONS, "--budget", "16s", "--find-lr"]
    dies = {"home": "trainer.Trainer", "name": "_train_step", "when": "args[0].state.step == 3"}
    killed = start(tmp_path / "run", words, first=NOW.format(closing=2), dies=dies)
    assert killed.code == -9, killed.said
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    planned = Recipe(**yaml.safe_load(recipe))
    assert planned.lr and not planned.find_lr and planned.steps_per_epoch and planned.epochs
    ended = start(tmp_path / "run", words, first=NOW.format(closing=2) + "runtime.PROCESS_START -= 100")
    assert ended.code == 0, ended.said
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recipe
    assert (tmp_path / "run" / "log.txt").read_text().count(" Plan ") == 2  # rates and epochs, once each
    said = re.search(r"(\d+) epochs of (\d+) steps", killed.said)
    assert said and (int(said[1]), int(said[2])) == (planned.epochs, planned.steps_per_epoch)


def test_a_budget_that_is_spent_leaves_phase_2_out(here, small_photos: Path, tmp_path: Path, monkeypatch):
    def stop(*_: object) -> None:
        raise FieldmarkError("stopped")

    monkeypatch.setattr(runtime, "PROCESS_START", time.monotonic())
    monkeypatch.setattr(plan, "EXPORT_RESERVE_S", 8)
    monkeypatch.setattr(finish, "finish_run", stop)
    ended = here("train", small_photos, "--out", tmp_path / "run", *OPTIONS, "--budget", "5s")
    assert ended.err.endswith("fieldmark: stopped\n") and "too little for fine-tuning" in ended.err
    assert "Linear probe" in ended.err and "val. loss" not in ended.err
    assert Recipe(**yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())).epochs == 0
