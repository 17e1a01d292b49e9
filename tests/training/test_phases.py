"""What stays frozen, what trains and how fast."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fieldmark.models import AuxiliaryHead, build
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.phases import (
    choose_last_frozen_layers,
    make_ema_model,
    make_optimizer,
    parameter_groups,
    progressive_crop_size,
    set_train_mode,
    split_epochs,
    train_crop_size,
    training_loss,
)

LITE = "efficientnet_lite0"


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
        ({}, Recipe(weights="none", unfreeze="gradual"), None),
    ],
)
def test_no_added_attention_is_frozen(words: dict, recipe: Recipe, cut: str | None):
    with torch.device("meta"):
        network = build(LITE, classes=3, **words)
    assert choose_last_frozen_layers(network, recipe) == [cut]


def test_gradual_means_late_stages_then_all():
    with torch.device("meta"):
        network = build(LITE, classes=3)
    assert choose_last_frozen_layers(network, Recipe(unfreeze="gradual")) == ["blocks.3", None]
    assert [split_epochs(7, 2, k) for k in range(2)] == [4, 3] and split_epochs(7, 1, 0) == 7


def test_groups_hold_every_parameter_once_at_its_rate():
    with torch.device("meta"):
        network = build(LITE, classes=3, after="-1:se")
    recipe = Recipe(lr=0.3, backbone_lr=0.1, weight_decay=0.5)
    _, rest = network.backbone.split_after("blocks.3")
    groups = parameter_groups(network, rest, recipe)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for part in (rest, network.head) for p in part.parameters())
    new = {id(p) for part in (*network.added_attention.values(), network.head) for p in part.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.3 if id(parameter) in new else 0.1)
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)


def test_biases_and_norms_decay_where_asked():
    with torch.device("meta"):
        network = build(LITE, classes=3)
    groups = parameter_groups(network, network.backbone, Recipe(weight_decay=0.5, decay_all=True))
    assert {group["weight_decay"] for group in groups} == {0.5}


def test_only_what_should_learn_is_in_train_mode():
    with torch.device("meta"):
        network = build(LITE, classes=3, after="-1:mask(norm=True)")
    frozen, rest = network.backbone.split_after("blocks.3")
    frozen.requires_grad_(False)
    added = {id(m) for slot in network.added_attention.values() for m in slot.modules()}
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    set_train_mode(network, keep_norms=True)
    assert {id(m) for m in norms if m.training} == {id(m) for m in norms if id(m) in added} != set()
    set_train_mode(network, keep_norms=False)
    behind = {id(m) for m in rest.modules()}
    assert {id(m) for m in norms if m.training} == {id(m) for m in norms if id(m) in behind}


class Half(AuxiliaryHead):
    loss_weight = 0.5

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
    fresh = {id(p) for m in network.modules() if isinstance(m, AuxiliaryHead) for p in m.parameters()}
    assert len(fresh) == 14
    for group in parameter_groups(network, network.backbone, Recipe(lr=0.3, backbone_lr=0.1)):
        assert all(group["lr"] == 0.3 for p in group["params"] if id(p) in fresh)


@given(st.integers(28, 640))
def test_training_photos_are_smaller_but_not_small(size: int):
    for recipe, share in ((Recipe(), 3 / 4), (Recipe(weights="none"), 6 / 7)):
        found = train_crop_size(recipe, size)
        assert found == size if size < 96 else (found % 32 == 0 and abs(found - size * share) <= 16)
    assert train_crop_size(Recipe(train_size=77), size) == 77


@given(st.integers(28, 224), st.integers(1, 40))
def test_crops_grow_to_the_size_of_training(start: int, epochs: int):
    sizes = [progressive_crop_size(start, 224, epoch, epochs) for epoch in range(epochs)]
    assert sizes == sorted(sizes) and all(size % 32 == 0 and size <= 224 for size in sizes)
    assert epochs < 3 or (sizes[-1] == 224 and abs(sizes[0] - start) <= 16)
    assert progressive_crop_size(None, 224, 0, epochs) == progressive_crop_size(300, 224, 0, epochs) == 224


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimiser_takes_the_groups(name: str):
    layer, recipe = nn.Linear(2, 2), Recipe(optimizer=name, lr=0.5, backbone_lr=0.25)
    optimizer = make_optimizer([{"params": [layer.weight], "lr": 0.25, "weight_decay": 0.0}], recipe)
    assert name in type(optimizer).__name__.lower() and optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_step_is_the_plain_one(name: str):
    """On weights that lie as those of a training do: torch's fused steps do not look how they lie."""
    torch.manual_seed(0)
    # Without a bias before the norm: its gradient is rounding alone, which Adam makes a step of.
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    plain.to(memory_format=torch.channels_last)
    fused, recipe = copy.deepcopy(plain), Recipe(optimizer=name, lr=0.01)
    optimizers = [make_optimizer([{"params": net.parameters(), "weight_decay": 0.1}], recipe) for net in (plain, fused)]
    for group in optimizers[0].param_groups:
        assert group["fused"]
        group["fused"], group["foreach"] = False, False
    for net, optimizer in zip((plain, fused), optimizers, strict=True):
        for step in range(4):
            optimizer.zero_grad()
            photos = torch.linspace(-1, 1, 2 * 3 * 64).add(step).sin().view(2, 3, 8, 8)
            net(photos.to(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=2e-4)  # of steps of 0.01


def test_the_running_mean_follows_and_its_buffers_are_the_modules():
    module = nn.BatchNorm1d(1)
    average = make_ema_model(module, 0.9)
    means = average.module
    assert isinstance(means, nn.BatchNorm1d) and means.running_mean is not None and module.running_mean is not None
    values = []
    for step in range(200):
        with torch.no_grad():
            module.weight.fill_(step)
            module.running_mean.fill_(step)
        average.update_parameters(module)
        values.append(means.weight.item())
    assert values == sorted(values) and means.running_mean.item() == 199
    assert 199 - values[-1] == pytest.approx(0.9 / 0.1, rel=0.01)  # how far a mean of 0.9 stays behind a slope of 1
