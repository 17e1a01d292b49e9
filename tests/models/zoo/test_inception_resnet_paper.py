"""Inception-ResNet-v2 in the paper's form, with SE and without: counts, maps, a block computed by hand, its start."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models import SE, Attention, build
from fieldmark.models.zoo.inception_resnet_paper import inception_resnet_paper

WIDTHS = {"stem": 384, "a": 384, "reduction_a": 1152, "b": 1152, "reduction_b": 2144, "c": 2144}


class Plus(Attention):
    """x + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Cut(Attention):
    """x, at most 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_max(1)


def parameters(name: str, **settings: str) -> int:
    """For six classes."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, classes=6, **settings).parameters())  # type: ignore[arg-type]


def test_the_write_ups_count_is_of_plain_parameters():
    assert parameters("se_inception_resnet_v2") == 51_833_286
    assert parameters("inception_resnet_v2_paper", attention="se(ratio=4)") == 51_833_286
    gates = sum(2 * c * (c // 4) + c + c // 4 for c in 5 * [384] + 11 * [1152] + 6 * [2144])
    assert parameters("inception_resnet_v2_paper") == 51_833_286 - gates
    assert parameters("se_inception_resnet_v2", attention="none") == 51_833_286 - gates


@pytest.mark.parametrize("size, sides", [(299, (35, 35, 17, 17, 8, 8)), (96, (9, 9, 4, 4, 1, 1))])
def test_stages_have_the_papers_maps(size: int, sides: tuple[int, ...]):
    with torch.device("meta"):
        rest = inception_resnet_paper().eval()
        assert rest.stages == WIDTHS
        x = torch.empty(1, 3, size, size)
        for (name, width), side in zip(WIDTHS.items(), sides, strict=True):
            stage, rest = rest.split_after(name)
            x = stage(x)
            assert x.shape == (1, width, side, side), name


def test_every_convolution_has_a_bias_and_every_output_one_norm():
    with torch.device("meta"):
        modules = list(inception_resnet_paper(gate=partial(SE, ratio=4)).modules())
    assert all(m.bias is not None for m in modules if isinstance(m, nn.Conv2d))
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 5 + 1 + 10 + 1 + 5
    assert all(norm.momentum == 0.1 for norm in norms)
    assert [m.fc1.out_channels for m in modules if isinstance(m, SE)] == 5 * [96] + 11 * [288] + 6 * [536]


@pytest.fixture(scope="module")
def block() -> nn.Module:
    """A block A whose branches give 2, 0 and 3 whatever comes, 5 or 5 - 26 behind the 1x1, by channel."""
    made = inception_resnet_paper(gate=partial(SE, ratio=4)).get_submodule("a.0").eval()
    biases = {"branch0.conv": 2.0, "branch1.1.conv": -4.0, "branch2.2.conv": 3.0}
    with torch.no_grad():
        for name, module in made.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
                nn.init.constant_(module.bias, biases.get(name, 0.0))  # type: ignore[arg-type]  # all have one
        linear, norm = made.get_submodule("linear"), made.get_submodule("output.bn")
        assert isinstance(linear, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert linear.bias is not None and norm.running_mean is not None and norm.running_var is not None
        linear.weight[:, :32] = 1 / 32
        linear.weight[:, 64:] = 1 / 64
        linear.bias[192:] = -26
        norm.running_mean.fill_(0.5)
        norm.running_var.fill_(4 - norm.eps)
        norm.weight.fill_(2)
        norm.bias.fill_(-1)
    return made


@torch.no_grad()
def test_a_block_by_hand(block: nn.Module):
    x = torch.tensor([-2.0, 1.5, 4.0, 1.0])[None, None].expand(1, 384, 1, 4)
    # (x + 0.1 * 5 - 0.5) / 2 * 2 - 1, and (x - 0.1 * 21 - 0.5) / 2 * 2 - 1; then ReLU; then the gates' sigmoid(0)
    first, second = torch.tensor([0, 0.5, 3.0, 0]), torch.tensor([0, 0, 0.4, 0])
    found = block(x)[0, :, 0]
    torch.testing.assert_close(found, torch.stack(192 * [first] + 192 * [second]) / 2)


@torch.no_grad()
def test_the_gate_squeezes_a_blocks_output(block: nn.Module):
    gate = block.get_submodule("output.gate")
    assert isinstance(gate, SE)
    x = torch.randn(2, 384, 3, 5)
    plain = block(x) * 2
    nn.init.normal_(gate.fc1.weight)
    nn.init.normal_(gate.fc2.weight)
    hidden = functional.relu(plain.mean((2, 3)) @ gate.fc1.weight[:, :, 0, 0].T)
    expected = plain * torch.sigmoid(hidden @ gate.fc2.weight[:, :, 0, 0].T)[:, :, None, None]
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name, inputs", [("a.0", 384), ("reduction_a", 384), ("b.0", 1152), ("reduction_b", 1152)])
def test_attention_stands_behind_the_gate(name: str, inputs: int):
    part = inception_resnet_paper(gate=Plus, attention=Cut).get_submodule(name).eval()
    # The output behind BN and ReLU is at least 0: one more than that is 1 to the attention behind it.
    assert (part(torch.randn(1, inputs, 3, 3)) == 1).all()


def test_a_step_at_the_write_ups_size_reaches_every_weight():
    torch.manual_seed(3)
    network = build("se_inception_resnet_v2", classes=6)
    start = {name: p.sum() for name, p in network.named_parameters()}
    photos = torch.randn(4, 3, 96, 96)
    features = network.features(photos)
    assert 0.1 < features.std() < 10
    loss = functional.cross_entropy(network.head(features), torch.tensor([0, 5, 2, 3]))
    loss.backward()
    assert loss.isfinite()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    torch.manual_seed(3)
    again = build("se_inception_resnet_v2", classes=6)
    assert all(torch.equal(start[name], p.sum()) for name, p in again.named_parameters())


@torch.no_grad()
def test_no_stage_writes_into_the_map_it_is_given():
    rest = inception_resnet_paper(gate=partial(SE, ratio=4))
    x = torch.randn(2, 3, 96, 96)
    for name in WIDTHS:
        stage, rest = rest.split_after(name)
        before = x.clone()
        y = stage(x)
        assert torch.equal(x, before), name
        x = y


@torch.no_grad()
def test_the_stem_keeps_the_scale_without_norms():
    torch.manual_seed(3)
    stem = inception_resnet_paper(channels=1).get_submodule("stem")
    seen = []
    stem.get_submodule("bn").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    stem(torch.randn(2, 1, 96, 96))
    assert 0.1 < seen[0].std() < 10
