"""The multi-stage head: it sees mean and standard deviation of every stage, split anywhere, and explains them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fieldmark.models import MultiStage, Network, build, rebuild
from fieldmark.models.hooks import forward_hooks
from fieldmark.models.stages import (
    SAMPLED_SIDE,
    MultiStageBackbone,
    StageMaps,
    StagePrefix,
    average_moments,
    run_in_two_parts,
)

NETWORKS = ["efficientnet_lite0", "resnet18", "densenet121", "alexnet", "inception_v3", "xception", "vgg11"]


def network_of(name: str, classes: int = 5) -> Network:
    """Random weights with statistics of batch norms that are not 0 and 1, in eval mode."""
    torch.manual_seed(0)
    network = build(f"{name}+head=multi_stage", classes=classes)
    with torch.no_grad():
        network(torch.randn(4, 3, 128, 128))
    network.eval()
    head = network.head
    assert isinstance(head, MultiStage)
    head.set_standardization(torch.rand(head.fc.in_features), 0.5)
    return network


def images(size: int = 128) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_pooled_vector_holds_the_mean_and_the_standard_deviation_of_every_stage(name: str):
    network, outputs = network_of(name), dict[str, Tensor]()
    ends = {network.backbone.get_submodule(stage): stage for stage in list(network.backbone.stages)[:-1]}

    def record(layer: nn.Module, _: object, y: Tensor) -> None:
        outputs[ends[layer]] = y.clone()

    runs = [layer for layer in ends if not isinstance(layer, nn.Sequential)]
    sequences = {layer: list(layer.children())[-1] for layer in ends if isinstance(layer, nn.Sequential)}
    for layer, child in sequences.items():
        ends[child] = ends.pop(layer)
    with forward_hooks([*runs, *sequences.values()], after=record):
        features = network.features(images())
    plain = build(name, classes=5).eval()
    plain.backbone.load_state_dict(network.backbone.state_dict())
    whole = [*(outputs[stage] for stage in list(network.backbone.stages)[:-1]), plain.features(images())]
    strides = [max(1, m.shape[2] // SAMPLED_SIDE) for m in whole]
    maps = [m[:, :, ::stride, ::stride] for m, stride in zip(whole, strides, strict=True)]
    expected = [m.mean((2, 3)) for m in maps] + [(m.var((2, 3), unbiased=False) + 1e-6).sqrt() for m in maps]
    pooled = network.head.pool_features(features)
    torch.testing.assert_close(pooled, torch.cat(expected, 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network.head.embed(features), maps[-1].mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_split_anywhere_it_computes_the_same(name: str):
    network, x = network_of(name), images()
    expected = network(x)
    for stage in list(network.backbone.stages)[:-1]:
        first, rest = network.backbone.split_after(stage)
        maps = first(x)
        assert isinstance(maps, StageMaps) and isinstance(first, StagePrefix) and isinstance(rest, MultiStageBackbone)
        both = run_in_two_parts(first, rest, x)
        assert all(torch.equal(a, b) for a, b in zip(both[0], maps, strict=True))
        assert torch.equal(both[1], network.features(x))  # to the bit, wherever it is split
        torch.testing.assert_close(network.head(rest(maps)), expected, rtol=1e-4, atol=1e-4)
        unpacked = StageMaps.unpack(maps.pack(), tuple(maps.map.shape[1:]))
        assert all(torch.equal(a, b) for a, b in zip(maps, unpacked, strict=True))
        assert all(torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*maps.chunk(2)), maps, strict=True))  # noqa: B905


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_evidence_and_bias_sum_to_the_logit(name: str):
    network = network_of(name).double()
    features, target = network.features(images().double()), torch.tensor([1, 4])
    evidence, bias = network.head.evidence(features, target), network.head.bias(features, target)
    expected = network.head(features).gather(1, target[:, None])[:, 0]
    close = 1e-6 * (1 + expected.abs() + evidence.abs().sum((1, 2)) + bias.abs())
    assert evidence.shape == (2, *features.shape[2:])
    assert ((evidence.sum((1, 2)) + bias - expected).abs() <= close).all()


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_cells_keep_the_mean(h: int, w: int, rows: int, columns: int):
    grid = (min(h, rows), min(w, columns))
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h * w))
    means, squares = average_moments(x, grid)
    assert means.shape == squares.shape == (2, 3, *grid)
    torch.testing.assert_close(means.mean((2, 3)), x.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squares.mean((2, 3)), x.square().mean((2, 3)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_standardization_changes_no_logit():
    network = network_of("resnet18")
    features = network.features(images())
    head, before = network.head, network.head(features)
    assert isinstance(head, MultiStage)
    head.set_standardization(head.pool_features(features).mean(0), 2.0)
    torch.testing.assert_close(head(features), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(head(head.pre_pool(features)), head(features))


@torch.no_grad()
def test_an_attention_slot_is_seen_by_the_head():
    network, x = build("resnet18+after=0:mask+head=multi_stage", classes=3), images()
    network(x)  # statistics for the batch norms
    network.eval()
    (gate,) = network.added_attention.values()
    first_stage = network.head.pool_features(network.features(x))[:, :64]
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    assert (network.head.pool_features(network.features(x))[:, :64] - first_stage).abs().max() > 1e-3


def test_its_text_rebuilds_it(tmp_path: Path):
    network = build("efficientnet_lite0", head="multi_stage(dropout=0.1)", classes=4)
    assert network.spec.head == "multi_stage(dropout=0.1)" and isinstance(network.backbone, MultiStageBackbone)
    rebuild(network.spec).load_state_dict(network.state_dict())


@torch.no_grad()
def test_bfloat16_around_it_leaves_its_own_digits():
    network, x = network_of("resnet18"), images()
    features = network.features(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.head(features), network.head(features.float()))
        assert network.head(features).dtype == network.features(x).dtype == torch.float32
    assert torch.equal(network.head(features), network(x))
