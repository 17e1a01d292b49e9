"""What stays frozen, what trains and how fast."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fieldmark.network import Auxiliary, build
from fieldmark.phases import (
    Phase,
    best_epoch,
    frozen_until,
    learning_mode,
    line,
    parameter_groups,
    rate_factor,
    training_loss,
    training_size,
)
from fieldmark.recipe import Recipe

LITE = "efficientnet_lite0"


def phase(schedule: str, epochs: int = 5, steps: int = 20) -> Phase:
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    return Phase(2, module, optimizer, lambda first, last: [], lambda: iter(()), epochs, steps, schedule)


def rows(*figures: tuple[int, float, float]) -> list[dict]:
    """(phase, accuracy, loss) of each epoch."""
    return [
        {"epoch": k + 1, "phase": number, "val_accuracy": accuracy, "val_loss": loss}
        for k, (number, accuracy, loss) in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("words", "recipe", "cut"),
    [
        ({}, Recipe(), "blocks.3"),
        ({"after": "-1:mask"}, Recipe(), "blocks.3"),
        ({"after": "3:se"}, Recipe(), "blocks.3"),  # right behind the cut: it trains
        ({"after": "1:se"}, Recipe(), "blocks.1"),  # attention that is added must train, so the cut moves before it
        ({"attention": "se"}, Recipe(), None),
        ({}, Recipe(unfreeze="all"), None),
        ({}, Recipe(weights="none"), None),
    ],
)
def test_no_added_attention_is_frozen(words: dict, recipe: Recipe, cut: str | None):
    with torch.device("meta"):
        network = build(LITE, classes=3, **words)
    assert frozen_until(network, recipe) == cut


def test_groups_hold_every_parameter_once_at_its_rate():
    with torch.device("meta"):
        network = build(LITE, classes=3, after="-1:se")
    recipe = Recipe(lr=0.3, backbone_lr=0.1, weight_decay=0.5)
    _, rest = network.backbone.split("blocks.3")
    groups = parameter_groups(network, rest, recipe)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for part in (rest, network.head) for p in part.parameters())
    new = {id(p) for part in (*network.slots.values(), network.head) for p in part.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.3 if id(parameter) in new else 0.1)
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)


def test_only_what_should_learn_is_in_train_mode():
    with torch.device("meta"):
        network = build(LITE, classes=3, after="-1:mask(norm=True)")
    frozen, rest = network.backbone.split("blocks.3")
    frozen.requires_grad_(False)
    added = {id(m) for slot in network.slots.values() for m in slot.modules()}
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    learning_mode(network, keep_norms=True)
    assert {id(m) for m in norms if m.training} == {id(m) for m in norms if id(m) in added} != set()
    learning_mode(network, keep_norms=False)
    behind = {id(m) for m in rest.modules()}
    assert {id(m) for m in norms if m.training} == {id(m) for m in norms if id(m) in behind}


class Half(Auxiliary):
    weight = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    @property
    def last(self) -> nn.Linear:
        return self.fc

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_auxiliary_heads_join_the_loss_in_training():
    head, aux = nn.Linear(4, 3), Half()
    module = nn.Sequential(aux, head)
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    main, side = (F.cross_entropy(layer(x), labels, label_smoothing=0.1) for layer in (head, aux.fc))
    loss, logits = training_loss(module.train(), x, labels, 0.1)
    assert torch.equal(logits, head(x))
    torch.testing.assert_close(loss, main + 0.5 * side)
    copy.deepcopy(module)  # as the plan of a budget does between two steps
    loss, _ = training_loss(module.eval(), x, labels, 0.1)
    torch.testing.assert_close(loss, main)


def test_auxiliary_heads_learn_at_the_heads_rate():
    with torch.device("meta"):
        network = build("googlenet", classes=3, aux=True)
    fresh = {id(p) for m in network.modules() if isinstance(m, Auxiliary) for p in m.parameters()}
    assert len(fresh) == 14
    for group in parameter_groups(network, network.backbone, Recipe(lr=0.3, backbone_lr=0.1)):
        assert all(group["lr"] == 0.3 for p in group["params"] if id(p) in fresh)


@given(st.integers(28, 640))
def test_training_photos_are_smaller_but_not_small(size: int):
    found = training_size(Recipe(), size)
    assert found == size if size < 96 else (found % 32 == 0 and abs(found - size * 6 / 7) <= 16)
    assert training_size(Recipe(train_size=77), size) == 77


@given(st.integers(1, 400), st.integers(1, 50))
def test_cosine_warms_up_and_comes_down(epochs: int, steps: int):
    total = epochs * steps
    factors = [rate_factor(phase("cosine", epochs, steps), step, []) for step in range(total)]
    top = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors[:1]) and max(factors) <= 1
    assert factors[: top + 1] == sorted(factors[: top + 1]) and top <= max(1, total // 10)
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_plateau_drops_after_four_epochs_without_gain():
    history = rows((2, 0.5, 1), (2, 0.6, 1), (2, 0.6, 1), (2, 0.5, 1), (2, 0.6, 1))
    assert rate_factor(phase("plateau"), 0, history) == 1
    history += rows((2, 0.4, 1))
    assert rate_factor(phase("plateau"), 0, history) == pytest.approx(0.2)
    history += rows(*[(2, 0.1, 1)] * 4)
    assert rate_factor(phase("plateau"), 0, history) == pytest.approx(0.04)


def test_the_best_epoch():
    history = rows((1, 0.99, 0.1), (1, 0.7, 0.5), (2, 0.8, 0.6), (2, 0.8, 0.4), (2, 0.75, 0.3))
    assert best_epoch(history, "accuracy") == 4  # phase 1 stands with its last epoch; ties go to the lower loss
    assert best_epoch(history, "loss") == 5
    assert best_epoch(history[:2], "accuracy") == 2
    assert best_epoch(rows((1, math.nan, math.nan), (2, math.nan, math.nan)), "accuracy") == 2


def test_the_line_of_an_epoch_is_the_write_ups():
    row = {"epoch": 3, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 2.0, "val_accuracy": 0.25, "seconds": 1.5}
    expected = "epoch: 3/9, train_loss: 1.0000, train_acc: 0.5000, val_loss: 2.0000, val_acc: 0.2500"
    assert line(row, 9).startswith(expected)
