"""Inception-v3: the maps of the paper's table 1, the auxiliary head equal to torchvision's, initial weights."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fieldmark.models import build
from fieldmark.models.layers import conv_pool_norm_relu
from fieldmark.models.zoo.inception_v3 import InceptionAuxiliaryHead, MixedA

STAGES = {
    "maxpool1": (64, 73, 73),
    "maxpool2": (192, 35, 35),
    "Mixed_5d": (288, 35, 35),
    "Mixed_6e": (768, 17, 17),
    "Mixed_7c": (2048, 8, 8),
}


def test_maps_are_the_tables():
    with torch.device("meta"):
        backbone, photo = build("inception_v3").backbone, torch.empty(1, 3, 299, 299)
        maps = {name: tuple(backbone.split_after(name)[0](photo).shape[1:]) for name in backbone.stages}
    assert maps == STAGES
    assert backbone.stages == {name: channels for name, (channels, *_) in STAGES.items()}


def test_the_smallest_photo():
    with torch.device("meta"):
        backbone = build("inception_v3").backbone.eval()
        assert backbone(torch.empty(1, 3, 75, 75)).shape == (1, 2048, 1, 1)
        with pytest.raises(RuntimeError):
            backbone(torch.empty(1, 3, 74, 74))


@torch.no_grad()
def test_auxiliary_logits_equal_torchvisions_in_training():
    torch.manual_seed(0)
    ours = build("inception_v3", aux=True, classes=7).train()
    theirs = torchvision.models.inception_v3(
        weights=None, num_classes=7, aux_logits=True, init_weights=False, dropout=0.0
    ).train()
    state = {k.removeprefix("backbone.").removeprefix("head."): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    photos = torch.randn(2, 3, 299, 299)
    expected = theirs(photos)
    for found, wanted in ((ours(photos), expected.logits), (auxiliary(ours).logits, expected.aux_logits)):
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def auxiliary(network: nn.Module) -> InceptionAuxiliaryHead:
    (found,) = (module for module in network.modules() if isinstance(module, InceptionAuxiliaryHead))
    return found


def test_the_auxiliary_head_stands_behind_the_17x17_maps_and_rests_in_eval_mode():
    network = build("inception_v3", aux=True, classes=5)
    names = [name for name, _ in network.backbone.named_children()]
    assert names.index("AuxLogits") == names.index("Mixed_6e") + 1
    head = auxiliary(network)
    assert (head.loss_weight, head.classifier.out_features) == (0.4, 5)
    network.eval()(torch.randn(1, 3, 75, 75))
    assert "logits" not in vars(head)


def test_parameters_with_the_auxiliary_head():
    with torch.device("meta"):
        assert sum(p.numel() for p in build("inception_v3", aux=True).parameters()) == 27_161_264


@pytest.mark.parametrize("size", [1, 3, 7, 16, 17, 20, 30])
def test_the_auxiliary_head_takes_maps_of_any_size(size: int):
    head = InceptionAuxiliaryHead(classes=3)
    head(torch.rand(2, 768, size, size + 2))
    assert head.logits.shape == (2, 3)
    head.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_averaging_behind_the_convolution_is_averaging_before_it(training: bool):
    torch.manual_seed(0)
    branch = conv_pool_norm_relu(6, 4).train(training)
    x = torch.randn(2, 6, 5, 7)
    conv, _, norm, relu = branch
    published = relu(norm(conv(F.avg_pool2d(x, 3, 1, 1))))
    torch.testing.assert_close(branch(x), published, rtol=1e-4, atol=1e-5)


def test_scratch_weights_are_tf_slims():
    torch.manual_seed(0)
    network = build("inception_v3", aux=True, attention="se")
    head = auxiliary(network)
    for name, layer in network.backbone.named_modules():
        if not isinstance(layer, nn.Conv2d) or ".attention." in name:
            continue
        deviation = 0.01 if layer in list(head.conv1) else 0.1
        assert layer.weight.abs().max() <= 2 * deviation
        assert layer.weight.std().item() == pytest.approx(0.88 * deviation, rel=0.1)  # 0.88: what the cut leaves
    assert head.fc.weight.abs().max() <= 0.002
    gates = [layer for name, layer in network.backbone.named_modules() if name.endswith(".attention.fc1")]
    assert any(isinstance(layer, nn.Conv2d) and layer.weight.abs().max() < 0.07 for layer in gates)  # torch's own


def test_attention_stands_on_the_concatenated_branches():
    network = build("inception_v3", attention="se").eval()
    assert len(network.added_attention) == 11
    block = network.backbone.get_submodule("Mixed_5b")
    assert isinstance(block, MixedA)
    x = torch.rand(1, 192, 6, 6)
    five = block.branch5x5_2(block.branch5x5_1(x))
    double = block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x)))
    branches = torch.cat((block.branch1x1(x), five, double, block.branch_pool(x)), 1)  # (1, 256, 6, 6)
    assert torch.equal(block(x), block.attention(branches)) and not torch.equal(block(x), branches)


def test_what_lies_behind_a_stage_leaves_its_map_as_it_is():
    backbone = build("inception_v3").backbone.eval()
    for stage in list(backbone.stages)[:-1]:
        first, rest = backbone.split_after(stage)
        features = first(torch.randn(1, 3, 75, 75)).detach()
        before = features.clone()
        rest(features)
        assert torch.equal(features, before)
