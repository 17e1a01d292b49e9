"""DenseNet: the lesions' networks, what a layer's attention touches, training with torchvision's memory and results."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fieldmark.models import SE, Network, build
from fieldmark.models.zoo.densenet import DenseLayer


@pytest.mark.parametrize(("depth", "weights"), [(121, 6_989_714), (169, 12_542_738), (201, 18_160_146)])
def test_row_5(depth: int, weights: int):
    with torch.device("meta"):
        network = build(f"densenet{depth}", after={-1: partial(SE, squeezed=16)}, classes=2)
    assert sum(p.numel() for p in network.parameters()) == weights  # without the norms' running statistics
    children = [name for name, _ in network.backbone.features.named_children()]  # type: ignore[union-attr]
    assert children[-3:] == ["denseblock4", "after_denseblock4", "norm5"]


@torch.no_grad()
def test_attention_gates_new_features_once():
    network = build("densenet121", attention="se").eval()
    layers = [module for module in network.modules() if isinstance(module, DenseLayer)]
    assert len(layers) == len(network.added_attention) == 6 + 12 + 24 + 16
    assert all(isinstance(layer.attention, SE) and layer.attention.fc2.out_channels == 32 for layer in layers)
    layer, seen = layers[7], []
    layer.attention.register_forward_hook(lambda *hooked: seen.append(hooked[-1]))
    x = torch.randn(2, layer.norm1.num_features, 5, 4)
    assert torch.equal(layer(x), torch.cat([x, seen[0]], 1))


def pair() -> tuple[Network, nn.Module]:
    """The same weights on both sides, in training mode."""
    torch.manual_seed(0)
    ours, theirs = build("densenet121", classes=5).train(), torchvision.models.densenet121(num_classes=5).train()
    state = theirs.state_dict()
    ours.backbone.load_state_dict({key: state[key] for key in ours.backbone.state_dict()})
    ours.head.load_state_dict({f"fc.{kind}": state[f"classifier.{kind}"] for kind in ("weight", "bias")})
    return ours, theirs


def kept(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes(), tensor  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return sum(size for size, _ in storages.values())


def test_training_keeps_no_more_than_torchvision():
    x = torch.randn(2, 3, 64, 64)
    ours, theirs = (kept(network, x) for network in pair())
    assert 0 < ours <= theirs


def test_gradients_and_statistics_equal_torchvision():
    ours, theirs = pair()
    x, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 4, 2, 1])
    for network in (ours, theirs):
        nn.functional.cross_entropy(network(x), labels).backward()
    others = dict(theirs.named_parameters())
    for name, parameter in ours.backbone.named_parameters():
        expected = others[name].grad
        assert parameter.grad is not None and expected is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)
    for (name, ours_buffer), buffer in zip(ours.backbone.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(ours_buffer, buffer, msg=name)


@torch.no_grad()
def test_stage_maps_stay_what_they_are():
    backbone = build("densenet121").backbone.eval()
    for stage in backbone.stages:
        prefix, rest = backbone.split_after(stage)
        cached = prefix(torch.randn(1, 3, 48, 33))
        before = cached.clone()
        rest(cached)
        assert torch.equal(cached, before)
