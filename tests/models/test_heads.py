"""Heads: the evidence of the positions plus the bias is the logit, also exported; the rest is each paper's formula."""

from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models import AttentionPool, Bilinear, ClassicHead, GeM, Head, LinearHead, SelfProduct
from fieldmark.models.heads import PooledHead

HEADS = {
    "linear": LinearHead,
    "linear dropout": partial(LinearHead, dropout=0.3),
    "linear hidden": partial(LinearHead, hidden=9, dropout=0.3),
    "linear relu6": partial(LinearHead, hidden=9, activation="relu6"),
    "linear silu": partial(LinearHead, hidden=9, activation="silu"),
    "linear hardswish": partial(LinearHead, hidden=9, activation="hardswish", hidden_dropout=0.2),
    "classic": partial(ClassicHead, pool=3, hidden=(9, 8)),
    "classic dropout first": partial(ClassicHead, pool=4, hidden=(9, 8, 7), dropout_first=True),
    "classic without hidden": partial(ClassicHead, pool=2, hidden=()),
    "gem": GeM,
    "gem hidden": partial(GeM, hidden=9, dropout=0.3),
    "attention pool": AttentionPool,
    "attention pool hidden": partial(AttentionPool, hidden=9),
    "bilinear": Bilinear,
    "bilinear reduced": partial(Bilinear, reduced=3),
    "bilinear hidden": partial(Bilinear, hidden=9),
    "bilinear reduced hidden": partial(Bilinear, reduced=3, hidden=9),
    "bilinear compact": partial(Bilinear, compact=40),
    "bilinear reduced compact hidden": partial(Bilinear, reduced=4, compact=10, hidden=9),
    "self product": SelfProduct,
    "self product hidden": partial(SelfProduct, hidden=9, dropout=0.3),
}


def make(kind: str, channels: int = 7, classes: int = 5) -> Head:
    head = HEADS[kind](channels, classes).eval()
    for name, parameter in head.named_parameters():
        if name == "p":
            torch.nn.init.uniform_(parameter, 1, 6)
        else:
            torch.nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize("kind", HEADS)
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 7, 24]), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**31),
    sparse=st.booleans(),
)
@torch.no_grad()
def test_evidence_and_bias_sum_to_the_logit(kind: str, shape: tuple[int, ...], seed: int, sparse: bool):
    torch.manual_seed(seed)
    head = make(kind, channels=shape[1])
    features = torch.randn(shape)
    features = features.relu() if sparse else features
    logits = head(features)
    assert logits.shape == (shape[0], 5)
    target = torch.randint(0, 5, shape[:1])
    evidence, bias = head.evidence(features, target), head.bias(features, target)
    assert evidence.shape == (shape[0], *shape[2:])
    expected = logits.gather(1, target[:, None])[:, 0]
    # Of the logit, and of what cancels in it.
    close = 1e-4 * (1 + expected.abs() + 0.1 * evidence.abs().sum((1, 2)))
    assert ((evidence.sum((1, 2)) + bias - expected).abs() <= close).all()


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_evidence_lies_where_the_features_are(kind: str):
    torch.manual_seed(0)
    features = torch.zeros(1, 7, 4, 5)
    features[0, :, 2, 3] = torch.rand(7)
    evidence = make(kind).evidence(features, torch.tensor([1]))[0]
    assert evidence[2, 3] != 0
    evidence[2, 3] /= 1e6  # GeM gives an empty position 1e-6
    assert evidence.abs().argmax() == 2 * 5 + 3


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_reduced_features_give_the_same_logits(kind: str):
    head = make(kind)
    features = torch.randn(3, 7, 4, 5)
    reduced = head.pre_pool(features)
    assert reduced.shape[:2] == (3, 7)
    assert torch.equal(head(reduced), head(features))
    if isinstance(head, LinearHead):
        assert reduced.shape == (3, 7, 1, 1)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e6])
def test_gradients_are_finite(kind: str, scale: float):
    head = make(kind).train()
    features = (torch.randn(2, 7, 3, 3) * scale).requires_grad_()
    head(features).sum().backward()
    gradients = [features.grad, *(parameter.grad for parameter in head.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


class Answers(nn.Module):
    """Features -> logits and evidence of every head, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(make(kind) for kind in HEADS)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        found = []
        for head in self.heads:
            assert isinstance(head, Head)
            logits = head(features)
            found += [logits, head.evidence(features, logits.argmax(1))]
        return tuple(found)


@torch.no_grad()
def test_every_head_exports_with_its_evidence(tmp_path: Path):
    torch.manual_seed(0)
    answers = Answers().eval()
    file = tmp_path / "heads.onnx"
    torch.onnx.export(
        answers,
        (torch.randn(2, 7, 4, 5),),
        file,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
    )
    session = onnxruntime.InferenceSession(file)
    for n in (1, 3):
        features = torch.randn(n, 7, 4, 5)
        theirs = session.run(None, {session.get_inputs()[0].name: features.numpy()})
        ours = answers(features)
        for i, kind in enumerate(HEADS):
            logits, evidence = (torch.from_numpy(answer) for answer in theirs[2 * i : 2 * i + 2])
            assert torch.allclose(logits, ours[2 * i], rtol=1e-3, atol=1e-4), kind
            assert torch.allclose(evidence, ours[2 * i + 1], rtol=1e-3, atol=1e-4), kind


def words(head: Head) -> str:
    """The tail of a head, as the papers write it."""
    written = []
    for layer in head.classifier_layers:
        match layer:
            case nn.Dropout():
                written += [f"dropout {layer.p}"] if layer.p else []
            case nn.Linear():
                written.append(f"FC {layer.out_features}")
            case _:
                written.append(type(layer).__name__)
    return ", ".join(written)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (partial(LinearHead, hidden=1024, hidden_dropout=0.5), "FC 1024, ReLU, dropout 0.5, FC 200"),
        (partial(LinearHead, hidden=1000, dropout=0.25), "dropout 0.25, FC 1000, ReLU, dropout 0.25, FC 200"),
        (
            partial(LinearHead, hidden=1280, activation="hardswish", dropout=0.0, hidden_dropout=0.2),
            "FC 1280, Hardswish, dropout 0.2, FC 200",
        ),
        (ClassicHead, "FC 4096, ReLU, dropout 0.5, FC 4096, ReLU, dropout 0.5, FC 200"),
        (partial(ClassicHead, dropout_first=True), "dropout 0.5, FC 4096, ReLU, dropout 0.5, FC 4096, ReLU, FC 200"),
        (partial(Bilinear, hidden=1024), "FC 1024, ReLU, dropout 0.5, FC 200"),
        (partial(SelfProduct, hidden=1000, dropout=0.25), "dropout 0.25, FC 1000, ReLU, dropout 0.25, FC 200"),
    ],
)
def test_the_heads_of_the_write_ups_are_spelled_by_settings(head, expected: str):
    with torch.device("meta"):
        assert words(head(8, 200)) == expected


@pytest.mark.parametrize("shape", [(3, 3), (9, 7), (2, 5), (1, 1), (12, 4)])
@torch.no_grad()
def test_classic_pools_as_torch_does(shape: tuple[int, int]):
    head, features = make("classic"), torch.randn(2, 7, *shape)
    expected = functional.adaptive_avg_pool2d(features, 3)
    torch.testing.assert_close(head.pre_pool(features), expected)
    if shape == (3, 3):
        assert head.pre_pool(features) is features


def test_classic_has_the_published_layers():
    state = ClassicHead(2, 3, pool=1, hidden=(5, 4)).state_dict()
    assert [key for key in state if key.endswith("weight")] == ["fc1.weight", "fc2.weight", "fc.weight"]


@torch.no_grad()
def test_gem_lies_between_mean_and_maximum():
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    head = GeM(3, 2).double()
    x = features.clamp_min(1e-6)
    torch.testing.assert_close(head.pool_features(features), x.pow(3).mean((2, 3)) ** (1 / 3))
    head.p.fill_(1)
    torch.testing.assert_close(head.pool_features(features), x.mean((2, 3)))
    head.p.fill_(1e4)
    torch.testing.assert_close(head.pool_features(features), x.amax((2, 3)), rtol=1e-3, atol=0)


def test_gem_trains_its_p_along_the_true_slope():
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    head = GeM(3, 2).double()
    assert torch.autograd.gradcheck(head.pool_features, features)
    slope = torch.autograd.grad(head.pool_features(features).sum(), head.p)[0].item()
    with torch.no_grad():
        difference = 0.0
        for step in (1e-6, -1e-6):
            head.p.fill_(3 + step)
            difference += head.pool_features(features).sum().item() / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-6)


@torch.no_grad()
def test_attention_pool_is_the_papers():
    head, bag = make("attention pool"), torch.randn(1, 7, 2, 3)
    assert isinstance(head, AttentionPool)
    v, w = head.v.weight[:, :, 0, 0], head.w.weight[0, :, 0, 0]
    instances = [bag[0, :, i, j] for i in range(2) for j in range(3)]
    scores = torch.stack([w @ torch.tanh(v @ x) for x in instances]).exp()
    expected = sum(score / scores.sum() * x for score, x in zip(scores, instances, strict=True))
    torch.testing.assert_close(head.pool_features(bag)[0], expected)
    torch.testing.assert_close(head.attention_weights(bag).sum(), torch.tensor(1.0))


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="choose from relu"):
        LinearHead(4, 2, hidden=3, activation="gelu")
    with pytest.raises(ValueError, match="pool=-3"):
        ClassicHead(4, 2, pool=-3)
    with pytest.raises(ValueError, match=r"as \(4096, 4096\)"):
        ClassicHead(4, 2, hidden=5)  # type: ignore[arg-type]  # as a user may write it


def test_a_new_head_is_two_methods():
    class Brightest(PooledHead):
        def pool_features(self, features: Tensor) -> Tensor:
            return features.amax((2, 3))

        def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
            brightest = (features == features.amax((2, 3), keepdim=True)).to(features)
            return torch.einsum("nchw,nc->nhw", features * brightest, weights)

    head, features = Brightest(7, 5, hidden=9).eval(), torch.randn(2, 7, 4, 5)
    target = torch.tensor([1, 4])
    explained = head.evidence(features, target).sum((1, 2)) + head.bias(features, target)
    torch.testing.assert_close(explained, head(features)[[0, 1], target])


def test_the_class_layer_is_last():
    for kind in HEADS:
        head = make(kind)
        assert head.classifier.out_features == 5
        assert head.classifier is head.fc
