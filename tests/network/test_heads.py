"""Heads: the evidence of the positions plus the bias is the logit; the reduced features give the same logits."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.network import Bilinear, Head, Linear

HEADS = {
    "linear": Linear,
    "linear dropout": partial(Linear, dropout=0.3),
    "linear hidden": partial(Linear, hidden=9, dropout=0.3),
    "bilinear": Bilinear,
    "bilinear reduced": partial(Bilinear, reduced=3),
    "bilinear hidden": partial(Bilinear, hidden=9),
    "bilinear reduced hidden": partial(Bilinear, reduced=3, hidden=9),
}


def make(kind: str, channels: int = 7, classes: int = 5) -> Head:
    head = HEADS[kind](channels, classes).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize("kind", HEADS)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.just(7), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**31),
    sparse=st.booleans(),
)
@torch.no_grad()
def test_evidence_and_bias_sum_to_the_logit(kind: str, shape: tuple[int, ...], seed: int, sparse: bool):
    torch.manual_seed(seed)
    head = make(kind)
    features = torch.randn(shape)
    features = features.relu() if sparse else features
    logits = head(features)
    assert logits.shape == (shape[0], 5)
    target = torch.randint(0, 5, shape[:1])
    evidence, bias = head.evidence(features, target), head.bias(features, target)
    assert evidence.shape == (shape[0], *shape[2:])
    expected = logits.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(evidence.sum((1, 2)) + bias, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_evidence_lies_where_the_features_are(kind: str):
    torch.manual_seed(0)
    features = torch.zeros(1, 7, 4, 5)
    features[0, :, 2, 3] = torch.rand(7)
    evidence = make(kind).evidence(features, torch.tensor([1]))
    assert evidence[0, 2, 3] != 0
    assert evidence.count_nonzero() == 1


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_reduced_features_give_the_same_logits(kind: str):
    head = make(kind)
    features = torch.randn(3, 7, 4, 5)
    reduced = head.reduce(features)
    assert reduced.shape[:2] == (3, 7)
    assert torch.equal(head(reduced), head(features))
    if kind.startswith("linear"):
        assert reduced.shape == (3, 7, 1, 1)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e6])
def test_gradients_are_finite(kind: str, scale: float):
    head = make(kind).train()
    features = (torch.randn(2, 7, 3, 3) * scale).requires_grad_()
    head(features).sum().backward()
    gradients = [features.grad, *(parameter.grad for parameter in head.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_bilinear_description_is_the_papers():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    outer = sum(torch.outer(x[0, :, i, j], x[0, :, i, j]) for i in range(2) for j in range(2))
    assert isinstance(outer, torch.Tensor)
    root = outer.sign() * (outer.abs() + 1e-10).sqrt()
    expected = (root / root.norm()).flatten()
    torch.testing.assert_close(Bilinear(3, 2).describe(x)[0], expected)


def test_the_class_layer_is_last():
    for kind in HEADS:
        head = make(kind)
        assert head.last.out_features == 5
        assert head.last is head.fc
