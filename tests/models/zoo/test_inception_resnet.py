"""Inception-ResNet-v2, the published form: maps, where attention stands, its start; parity is in test_parity.py."""

import pytest
import torch
from torch import Tensor

from fieldmark.models import Attention, build
from fieldmark.models.zoo.inception_resnet import inception_resnet_v2


class Constant(Attention):
    """1 in the place of whatever a block gives."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@pytest.mark.parametrize("size, sides", [(299, (35, 35, 17, 17, 8, 8)), (75, (7, 7, 3, 3, 1, 1))])
def test_stages_have_the_papers_maps(size: int, sides: tuple[int, ...]):
    with torch.device("meta"):
        rest = inception_resnet_v2().eval()
        x = torch.empty(1, 3, size, size)
        for (name, width), side in zip(rest.stages.items(), sides, strict=True):
            stage, rest = rest.split_after(name)
            x = stage(x)
            assert x.shape == (1, width, side, side), name
    assert len(rest) == 0


@torch.no_grad()
def test_attention_stands_at_the_end_of_the_branch_before_scale_and_addition():
    backbone = inception_resnet_v2(attention=Constant).eval()
    x = torch.randn(1, 320, 4, 4)
    for kind, width, scale in (("repeat", 320, 0.17), ("repeat_1", 1088, 0.1), ("repeat_2", 2080, 0.2)):
        x = torch.randn(1, width, 4, 4)
        torch.testing.assert_close(backbone.get_submodule(kind)[0](x), (x + scale).relu())  # type: ignore[index]
    torch.testing.assert_close(backbone.get_submodule("block8")(x), x + 1)  # without a ReLU
    slots = [name for name, module in backbone.named_modules() if isinstance(module, Constant)]
    assert len(slots) == 10 + 20 + 10 + 3  # the blocks, `mixed_5b` and both reductions
    for kind, width in (("mixed_5b", 192), ("mixed_6a", 320), ("mixed_7a", 1088)):
        assert (backbone.get_submodule(kind)(torch.randn(1, width, 5, 5)) == 1).all()


def test_scratch_weights_follow_the_seed_and_keep_the_scale():
    torch.manual_seed(3)
    first = build("inception_resnet_v2", classes=2, channels=1)
    torch.manual_seed(3)
    second = build("inception_resnet_v2", classes=2, channels=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with torch.no_grad():
        assert 0.1 < first.features(torch.randn(4, 1, 96, 96)).std() < 10


@torch.no_grad()
def test_no_stage_writes_into_the_map_it_is_given():
    rest = inception_resnet_v2()
    x = torch.randn(2, 3, 96, 96)
    for name in rest.stages:
        stage, rest = rest.split_after(name)
        before = x.clone()
        y = stage(x)
        assert torch.equal(x, before), name
        x = y
