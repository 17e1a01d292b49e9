"""GoogLeNet: the maps of the paper's table 1, auxiliary heads equal to torchvision's, attention on whole blocks."""

import pytest
import torch
import torchvision
from torch import nn

from fieldmark.models import SE, AuxiliaryHead, Network, build
from fieldmark.models.zoo.googlenet import Inception

# Table 1: the output of every row, at 224 pixels.
MAPS = {
    "conv1": (64, 112, 112),
    "maxpool1": (64, 56, 56),
    "conv2": (64, 56, 56),
    "conv3": (192, 56, 56),
    "maxpool2": (192, 28, 28),
    "inception3a": (256, 28, 28),
    "inception3b": (480, 28, 28),
    "maxpool3": (480, 14, 14),
    "inception4a": (512, 14, 14),
    "inception4b": (512, 14, 14),
    "inception4c": (512, 14, 14),
    "inception4d": (528, 14, 14),
    "inception4e": (832, 14, 14),
    "maxpool4": (832, 7, 7),
    "inception5a": (832, 7, 7),
    "inception5b": (1024, 7, 7),
}


def test_maps_are_the_tables():
    with torch.device("meta"):
        backbone, x = build("googlenet").backbone, torch.empty(1, 3, 224, 224)
    maps = {}
    for name, layer in backbone.named_children():
        x = layer(x)
        maps[name] = tuple(x.shape[1:])
    assert maps == MAPS
    assert backbone.stages == {name: maps[name][0] for name in backbone.stages}
    assert list(backbone.stages) == [name for name in MAPS if "pool" in name] + ["inception5b"]


def auxiliary(network: Network, name: str) -> AuxiliaryHead:
    head = network.backbone.get_submodule(name)
    assert isinstance(head, AuxiliaryHead)
    return head


@torch.no_grad()
def test_auxiliary_logits_equal_torchvisions_in_training():
    torch.manual_seed(0)
    ours = build("googlenet", aux=True, classes=7)
    theirs = torchvision.models.googlenet(
        weights=None, num_classes=7, aux_logits=True, init_weights=False, dropout=0.0, dropout_aux=0.0
    )
    state = {k.removeprefix("backbone.").removeprefix("head."): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for size in ((224, 224), (64, 75)):
        photos = torch.randn(2, 3, *size)
        expected = theirs.train()(photos)
        logits = ours.train()(photos)
        by_name = {"main": (logits, expected.logits)}
        by_name["aux1"] = (auxiliary(ours, "aux1").logits, expected.aux_logits1)
        by_name["aux2"] = (auxiliary(ours, "aux2").logits, expected.aux_logits2)
        for name, (found, wanted) in by_name.items():
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_auxiliary_heads_stand_where_the_paper_puts_them_and_rest_in_eval_mode():
    network = build("googlenet", aux=True, classes=5)
    names = [name for name, _ in network.backbone.named_children()]
    assert names.index("aux1") == names.index("inception4a") + 1
    assert names.index("aux2") == names.index("inception4d") + 1
    heads = [auxiliary(network, name) for name in ("aux1", "aux2")]
    assert [head.loss_weight for head in heads] == [0.3, 0.3]
    assert [head.classifier.out_features for head in heads] == [5, 5]
    network.eval()(torch.randn(1, 3, 32, 32))
    assert not any("logits" in vars(head) for head in heads)


def test_parameters_with_auxiliary_heads():
    with torch.device("meta"):
        ours = build("googlenet", aux=True)
        theirs = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count == 13_004_888


def test_every_layer_learns_from_the_auxiliary_heads_alone():
    network = build("googlenet", aux=True, classes=3)
    network(torch.randn(2, 3, 28, 29))
    heads = [auxiliary(network, name) for name in ("aux1", "aux2")]
    torch.stack([head.logits.square().sum() for head in heads]).sum().backward()
    reached = {name.split(".")[0] for name, p in network.backbone.named_parameters() if p.grad is not None}
    names = list(dict(network.backbone.named_children()))
    assert reached == {name for name in names[: names.index("aux2") + 1] if "pool" not in name}


def test_attention_stands_on_the_concatenated_branches():
    network = build("googlenet", attention="se").eval()
    blocks = [module for module in network.backbone if isinstance(module, Inception)]
    assert len(blocks) == len(network.added_attention) == 9
    block = blocks[0]
    x = torch.rand(1, 192, 6, 6)
    branches = torch.cat([getattr(block, f"branch{k}")(x) for k in (1, 2, 3, 4)], 1)
    assert isinstance(block.attention, SE) and block.attention.fc1.out_channels == 256 // 16
    assert torch.equal(block(x), block.attention(branches))


@pytest.mark.parametrize("size", [28, 31, 33, 65])
def test_any_size_from_28_pixels(size: int):
    network = build("googlenet", classes=3, aux=True, channels=1)
    assert network(torch.randn(2, 1, size, size + 3)).shape == (2, 3)
    assert auxiliary(network, "aux2").logits.shape == (2, 3)


def test_what_lies_behind_a_stage_leaves_its_map_as_it_is():
    backbone = build("googlenet").backbone.eval()
    for stage in list(backbone.stages)[:-1]:
        first, rest = backbone.split_after(stage)
        features = first(torch.randn(1, 3, 64, 64)).detach()
        before = features.clone()
        rest(features)
        assert torch.equal(features, before)
