"""BN-Inception, which no package has: held against the paper's table, written down a second time, by hand."""

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.models import build
from fieldmark.models.published import PUBLISHED_WEIGHTS
from fieldmark.models.zoo.bn_inception import RENAMES, CeilMaxPool2d

# Figure 5, at 224 pixels; its channels of 4c, 4d and 4e corrected to the sums of its own columns.
MAPS = {
    "pool1_3x3_s2": (64, 56, 56),
    "pool2_3x3_s2": (192, 28, 28),
    "inception_3a": (256, 28, 28),
    "inception_3b": (320, 28, 28),
    "inception_3c": (576, 14, 14),
    "inception_4a": (576, 14, 14),
    "inception_4b": (576, 14, 14),
    "inception_4c": (608, 14, 14),
    "inception_4d": (608, 14, 14),
    "inception_4e": (1056, 7, 7),
    "inception_5a": (1024, 7, 7),
    "inception_5b": (1024, 7, 7),
}
STRIDED = ("3c", "4e")


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors under the flat names of the Caffe weights."""
    flat = {re.sub(r"^(inception_\d\w)\.\w+\.", r"\1_", key.removeprefix("backbone.")): t for key, t in state.items()}
    return {key.replace("head.fc", "last_linear"): tensor for key, tensor in flat.items()}


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Photos -> logits, in eval mode, from the flat weights alone."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[2] // 2)
        mean, variance, weight, bias = (
            state[f"{name}_bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / (variance + 1e-5).sqrt() * weight + bias)

    def halve(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = halve(unit(x, "conv1_7x7_s2", 2))
    x = halve(unit(unit(x, "conv2_3x3_reduce"), "conv2_3x3"))
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name, stride = f"inception_{block}", 2 if block in STRIDED else 1
        three = unit(unit(x, f"{name}_3x3_reduce"), f"{name}_3x3", stride)
        double = unit(unit(x, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1")
        double = unit(double, f"{name}_double_3x3_2", stride)
        if stride == 2:
            x = torch.cat((three, double, halve(x)), 1)
            continue
        pooled = F.max_pool2d(x, 3, 1, 1) if block == "5b" else F.avg_pool2d(x, 3, 1, 1)
        x = torch.cat((unit(x, f"{name}_1x1"), three, double, unit(pooled, f"{name}_pool_proj")), 1)
    return F.linear(x.mean((2, 3)), state["last_linear.weight"], state["last_linear.bias"])


@torch.no_grad()
def test_logits_equal_the_network_written_by_hand():
    torch.manual_seed(0)
    network = build("bn_inception", classes=11).train()
    photos = torch.randn(4, 3, 96, 64)
    network(photos)  # norms with statistics that are not those they start with
    state = network.eval().state_dict()
    for key, tensor in state.items():
        if key.endswith(("bn.weight", "bn.bias")):
            tensor.uniform_(0.5, 1.5)
    expected = by_hand(published(state), photos)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(photos), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_published_names_become_ours():
    with torch.device("meta"):
        state = build("bn_inception").backbone.state_dict()
    flat = list(published(state))
    assert "inception_3a_double_3x3_reduce_bn.weight" in flat and "inception_5b_pool_proj.bias" in flat
    ((pattern, ours),) = RENAMES
    assert [re.sub(pattern, ours, key) for key in flat] == list(state)
    assert [re.sub(pattern, ours, key) for key in state] == list(state)  # our own names stay


def test_maps_are_the_tables():
    with torch.device("meta"):
        backbone, x = build("bn_inception").backbone, torch.empty(1, 3, 224, 224)
    maps = {}
    for name, layer in backbone.named_children():
        x = layer(x)
        if name in MAPS:
            maps[name] = tuple(x.shape[1:])
    assert maps == MAPS
    assert backbone.stages == {name: maps[name][0] for name in backbone.stages}
    assert list(backbone.stages)[:2] == ["pool1_3x3_s2", "pool2_3x3_s2"]
    assert [name[-2:] for name in list(backbone.stages)[2:]] == [*STRIDED, "5b"]


@pytest.mark.parametrize("size", [(6, 8), (7, 6), (1, 5)])
def test_the_halving_pool_is_the_published_one_on_even_maps_and_never_smaller_than_half(size: tuple[int, int]):
    x = torch.randn(2, 3, *size) - 9  # all below zero: padding by zeros would win
    h, w = (-(-pixels // 2) for pixels in size)
    padded = F.pad(x, (0, 3, 0, 3), value=-torch.inf)
    expected = torch.stack([padded[:, :, 2 * p : 2 * p + 3].amax(2) for p in range(h)], 2)
    expected = torch.stack([expected[..., 2 * q : 2 * q + 3].amax(3) for q in range(w)], 3)
    assert torch.equal(CeilMaxPool2d()(x), expected)
    if not (size[0] % 2 or size[1] % 2):
        assert torch.equal(expected, nn.MaxPool2d(3, 2, ceil_mode=True)(x))


@pytest.mark.parametrize("size", [28, 31, 37, 75])
def test_any_size_from_28_pixels(size: int):
    network = build("bn_inception", classes=3, channels=1, attention="se")
    assert len(network.added_attention) == 10
    assert network(torch.randn(2, 1, size, size + 3)).shape == (2, 3)


def test_what_lies_behind_a_stage_leaves_its_map_as_it_is():
    backbone = build("bn_inception").backbone.eval()
    for stage in list(backbone.stages)[:-1]:
        first, rest = backbone.split_after(stage)
        features = first(torch.randn(1, 3, 64, 64)).detach()
        before = features.clone()
        rest(features)
        assert torch.equal(features, before)


@torch.no_grad()
def test_caffes_weights_are_converted_to_rgb(monkeypatch: pytest.MonkeyPatch):
    network = build("bn_inception", classes=1000).eval()
    state = published(network.state_dict())
    state["conv1_7x7_s2.weight"] = state["conv1_7x7_s2.weight"].flip(1)
    state = {key: t[None] if "_bn." in key and t.ndim == 1 else t for key, t in state.items()}
    row = dataclasses.replace(PUBLISHED_WEIGHTS["bn_inception"], fetch=lambda: state)
    monkeypatch.setitem(PUBLISHED_WEIGHTS, "bn_inception", row)
    loaded, x = build("bn_inception", weights="imagenet").eval(), torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), network(x))
    assert loaded.preprocessing.mean == (128, 117, 104)
