"""Every gate: the identity when it starts as one, its paper's formula otherwise, on any map, in an exported graph."""

import inspect
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.cbam import ChannelAttn, SpatialAttn
from timm.layers.coord_attn import CoordAttn
from timm.layers.eca import EcaModule
from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import CBAM, ECA, ELA, GCT, SE, CoordinateAttention, Mask
from fieldmark.models.spec import ATTENTIONS, parse_gate

WORDS = (
    *(word for word in ATTENTIONS if word != "none"),
    "se(activation='hardswish',hard=True,divisor=8)",
    "cbam(ratio=2,kernel=3)",
    "eca(kernel=5)",
    "ela(kernel=5,groups=32)",
    "mask(widths=(),dropout=0.0)",
    "mask(rescale=True)",
    "mask(spread=True)",
    "mask(rescale=True,spread=True)",
)
every_gate = pytest.mark.parametrize("word", WORDS)


def made(word: str, channels: int, norm: bool = False) -> Any:
    return partial(parse_gate(word), norm=norm)(channels)


def shaken(gate: Any) -> Any:
    """The gate with every weight moved, and its statistics, so that nothing is at its start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
        for name, buffer in gate.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return gate


@every_gate
@settings(max_examples=12)
@given(n=st.integers(1, 3), c=st.integers(1, 40), h=st.integers(1, 6), w=st.integers(1, 6), train=st.booleans())
def test_a_gate_started_as_the_identity_changes_no_bit(word: str, n: int, c: int, h: int, w: int, train: bool):
    gate = shaken(made(word, c)).train(train)
    x = torch.randn(n, c, h, w) * 30
    assert gate(x).shape == x.shape
    gate.start_as_identity()
    assert torch.equal(gate(x), x)


@every_gate
def test_an_inserted_gate_learns_with_all_its_weights(word: str):
    torch.manual_seed(1)
    gate = made(word, 16).train()
    gate.start_as_identity()
    x = torch.rand(4, 16, 5, 3) * torch.rand(4, 16, 1, 1)
    target = x * torch.rand(4, 16, 5, 3)
    gate(x).sub(target).square().sum().backward()
    lasts = {name: p for name, p in gate.named_parameters() if name.partition(".")[0] in gate.final_layers}
    for name, parameter in lasts.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        for parameter in lasts.values():
            parameter.sub_(0.1 * torch.randn_like(parameter))
    gate.zero_grad()
    after = gate(x)
    assert not torch.equal(after, x)
    after.sub(target).square().sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@every_gate
@torch.no_grad()
def test_own_form_lets_a_part_through(word: str):
    x = torch.rand(3, 12, 5, 4) + 0.1
    gate = made(word, 12).eval()
    opening = gate(x) / x
    if word == "gct":
        assert torch.equal(opening, torch.ones_like(x))  # by its paper
    elif "rescale" in word:
        torch.testing.assert_close(opening.mean((2, 3)), torch.ones(3, 12))
    else:
        assert (opening > 0).all() and (opening < 1).all()
    opening = shaken(gate)(x) / x
    one_per_channel = word.startswith(("se", "eca", "gct"))
    one_per_position = word.startswith("mask") and "spread" not in word
    assert (opening.std((2, 3)).max() < 1e-4) == one_per_channel
    assert (opening.std(1).max() < 1e-4) == one_per_position


@every_gate
@torch.no_grad()
def test_a_measured_norm_is_the_identity_in_eval_mode(word: str):
    features = torch.randn(32, 6, 5, 5) * torch.arange(1, 7)[:, None, None] + 3
    gate = made(word, 6, norm=True).eval()
    gate.start_as_identity()
    torch.testing.assert_close(gate(features), features)
    gate.set_norm_statistics(features)
    torch.testing.assert_close(gate(features), features)
    torch.testing.assert_close(gate.norm.running_mean, features.mean((0, 2, 3)))
    # The statistics are the data's, so training mode sees the same.
    torch.testing.assert_close(gate.train()(features), features, rtol=1e-4, atol=1e-4)


@every_gate
@torch.no_grad()
def test_the_gates_stand_on_the_map_behind_the_norm(word: str):
    x = torch.randn(4, 6, 5, 3) * 2 + 1
    gate = shaken(made(word, 6, norm=True)).eval()
    plain = made(word, 6).eval()
    plain.load_state_dict({key: t for key, t in gate.state_dict().items() if not key.startswith("norm.")})
    torch.testing.assert_close(gate(x), plain(gate.norm(x)))


@every_gate
def test_channels_last_gives_the_same_answers_and_slopes(word: str):
    gate = shaken(made(word, 24)).eval()
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        x = torch.randn(2, 24, 5, 7).to(memory_format=layout).requires_grad_()
        y = gate.to(memory_format=layout)(x)
        assert y.is_contiguous(memory_format=layout)
        gate.zero_grad()
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in gate.parameters() if p.grad is not None)])
    for plain, turned in zip(*found, strict=True):
        torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("c", [1, 8, 35, 88, 1536, 1792, 2144])
def test_weights_as_many_as_the_papers_formulas_say(c: int):
    squeezed, bottleneck = max(1, c // 16), max(8, c // 32)
    expected = {
        SE: 2 * c * squeezed + squeezed + c,
        CBAM: 2 * c * squeezed + squeezed + c + 2 * 7 * 7,
        ECA: {1: 1, 8: 3, 35: 3, 88: 3, 1536: 5, 1792: 5, 2144: 7}[c],
        CoordinateAttention: c * bottleneck + bottleneck + 2 * bottleneck + 2 * (bottleneck * c + c),
        ELA: 7 * c + 2 * c,
        GCT: 3 * c,
        Mask: (c * 64 + 64) + (64 * 16 + 16) + (16 * 8 + 8) + (8 + 1),
        partial(Mask, spread=True): (c * 64 + 64) + (64 * 16 + 16) + (16 * 8 + 8) + (8 + 1) + c,
    }
    for make, count in expected.items():
        for norm in (False, True):
            with torch.device("meta"):
                found = sum(p.numel() for p in make(c, norm=norm).parameters())
            assert found == count + 2 * c * norm, make


def test_widths_of_bottlenecks_and_groups():
    assert SE(64).fc1.out_channels == CBAM(64).fc1.out_channels == 4
    assert SE(64, 32, ratio=8).fc1.out_channels == CBAM(64, 32, ratio=8).fc1.out_channels == 4
    assert SE(64, 32, squeezed=5).fc1.out_channels == 5
    assert SE(8).fc1.out_channels == CBAM(8).fc1.out_channels == 1
    assert [ELA(c).gn.num_groups for c in (1, 8, 24, 35, 88, 2144)] == [1, 8, 8, 1, 8, 16]
    assert CoordinateAttention(64, 16).conv1.out_channels == 8
    assert CoordinateAttention(672, 112).conv1.out_channels == 21  # of the expanded width


@pytest.mark.parametrize("gate", ["se", "cbam", "eca", "coordinate", "ela"])
@pytest.mark.parametrize("setting", ["ratio=0", "kernel=6", "kernel=0", "groups=0"])
def test_settings_that_cannot_be_are_refused(gate: str, setting: str):
    if setting.partition("=")[0] in inspect.signature(ATTENTIONS[gate]).parameters:
        with pytest.raises(FieldmarkError, match=f"cannot build .*: {setting}: .* (odd|least)"):
            parse_gate(f"{gate}({setting})")


@pytest.mark.parametrize("c", [8, 16, 35, 64, 88, 512, 2048])
@torch.no_grad()
def test_eca_is_the_published_one(c: int):
    theirs, ours = EcaModule(c), ECA(c)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, c, 4, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("c", [16, 88])
@torch.no_grad()
def test_coordinate_attention_is_the_published_one(c: int):
    theirs, ours = CoordAttn(c, rd_channels=8, bias=True), CoordinateAttention(c)
    shaken(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, c, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("ratio", "kernel"), [(16, 7), (4, 3)])
@torch.no_grad()
def test_cbam_is_the_published_one_with_its_spatial_norm_left_out(ratio: int, kernel: int):
    ours = shaken(CBAM(32, ratio=ratio, kernel=kernel))
    channel = ChannelAttn(32, rd_ratio=1 / ratio, mlp_bias=True)
    spatial = SpatialAttn(kernel)
    channel.load_state_dict({key: t for key, t in ours.state_dict().items() if key.startswith("fc")})
    spatial.load_state_dict({"conv.conv.weight": ours.conv.weight}, strict=False)
    spatial.conv.bn = nn.Identity()  # the paper has none
    x = torch.randn(2, 32, 9, 5)
    torch.testing.assert_close(ours(x), spatial(channel(x)))


@torch.no_grad()
def test_ela_of_a_small_example():
    gate = ELA(2, kernel=3)  # gcd(2, 16): a group a channel
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 0.0]]]])
    gate.conv.weight.copy_(torch.tensor([[[0.0, 1.0, 0.0]], [[0.5, 0.0, 0.0]]]))  # the value; half of the one before
    gate.gn.weight.copy_(torch.tensor([1.0, 2.0]))
    gate.gn.bias.copy_(torch.tensor([0.0, 0.5]))
    # Channel 0: rows 2, 6 and columns 3, 5, both -1, 1 when normed. Channel 1: rows 1, 2 -> 0, 0.5 and columns 2, 1 ->
    # 0, 1, both -1, 1 when normed, then -1.5, 2.5.
    first = torch.tensor([-1.0, 1.0]).sigmoid()
    second = torch.tensor([-1.5, 2.5]).sigmoid()
    expected = x * torch.stack([first.outer(first), second.outer(second)])
    torch.testing.assert_close(gate(x), expected, rtol=1e-3, atol=1e-3)  # the norm's eps


@torch.no_grad()
def test_gct_of_a_small_example():
    gate = GCT(2)
    gate.alpha.copy_(torch.tensor([1.0, 0.5]))
    gate.gamma.copy_(torch.tensor([0.3, -0.2]))
    gate.beta.copy_(torch.tensor([0.0, 0.1]))
    x = torch.tensor([[[[3.0, 4.0]], [[6.0, -8.0]]]])  # lengths 5 and 10; times alpha 5 and 5; their rms is 5
    expected = x * torch.tensor([1 + math.tanh(0.3), 1 + math.tanh(-0.1)]).view(1, 2, 1, 1)
    torch.testing.assert_close(gate(x), expected)


@torch.no_grad()
def test_a_mask_of_a_small_example():
    x = torch.tensor([[[[1.0, 2.0]], [[-1.0, 3.0]]]])
    forms = ((False, False), (True, False), (True, True))
    masks: list[Any] = [Mask(2, widths=(), dropout=0.0, rescale=rescale, spread=spread) for rescale, spread in forms]
    for mask in masks:
        mask.gate.weight.copy_(torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1))
        mask.gate.bias.zero_()
    plain, rescaled, spread = masks
    gate = torch.tensor([3 / 4, 9 / 10])  # the sigmoids of log 3 and log 9, their mean 33 / 40
    torch.testing.assert_close(plain(x), x * gate)
    torch.testing.assert_close(rescaled(x), x * gate * (40 / 33))
    torch.testing.assert_close(spread(x), rescaled(x))
    weights = torch.tensor([2.0, -1.0]).view(2, 1, 1)
    spread.spread.weight.copy_(weights[:, None])
    torch.testing.assert_close(spread(x), rescaled(x) * weights)


@pytest.mark.parametrize("spread", [False, True])
@torch.no_grad()
def test_a_constant_mask_is_the_identity_when_rescaled(spread: bool):
    gate: Any = Mask(3, rescale=True, spread=spread)
    nn.init.zeros_(gate.gate.weight)
    for h, w in ((1, 1), (3, 7), (57, 57), (112, 112)):
        x = torch.randn(2, 3, h, w)
        nn.init.zeros_(gate.gate.bias)
        assert torch.equal(gate(x), x)  # a half everywhere
        nn.init.constant_(gate.gate.bias, -1.7)
        torch.testing.assert_close(gate(x), x)


def test_one_exported_graph_holds_all_gates(tmp_path: Path):
    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.ModuleList([shaken(made(word, 16, norm=word == "gct")) for word in WORDS])

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([gate(x) for gate in self.gates], 1)

    together = Together().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            together,
            (torch.randn(2, 16, 6, 5),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert program is not None
    program.save(tmp_path / "gates.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "gates.onnx")
    for n in (1, 5):
        x = torch.randn(n, 16, 6, 5) * 3
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), together(x), rtol=1e-4, atol=1e-5)
