"""Attribution maps: class evidence sums to the logit, and published methods satisfy their defining properties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bright import counts_brightness, planted
from torch import nn

from fieldmark.core import io
from fieldmark.data.image import preprocess
from fieldmark.explanation import attribution
from fieldmark.inference import bundle
from fieldmark.models import Mask, Network, build, rebuild
from fieldmark.models.spec import HEADS, parse_gate
from fieldmark.models.state import save_state


def with_batch_statistics(words: str, seed: int = 0, size: int = 64) -> tuple[Network, torch.Tensor]:
    """A network with batch statistics of a few images, in eval mode; and an image."""
    torch.manual_seed(seed)
    network, x = build(words, classes=5), torch.randn(4, 3, size, size)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        network.train()(x)
    return network.eval(), x[:1]


@pytest.fixture(scope="module")
def trained(small_run: Path, small_photos: Path) -> tuple[Network, torch.Tensor]:
    look = bundle.read_info(small_run).preprocessing
    photo = attribution.to_network_input(preprocess(small_photos / "disc" / "01.jpg", look), look)
    return attribution.hookable_copy(bundle.load_network(small_run)), photo


@pytest.mark.parametrize("head", HEADS)
def test_evidence_and_bias_are_the_logit_of_the_bundle(head: str, tmp_path: Path):
    network, x = with_batch_statistics(
        f"resnet18+head={head}(hidden=(9,),pool=2)" if head == "classic" else f"resnet18+head={head}"
    )
    look: dict[str, Any] = {"size": 64, "crop": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic"}
    save_state(tmp_path / "model.safetensors", network.state_dict())
    io.write_json(tmp_path / "bundle.json", bundle.make_info(network, list("abcde"), look, 1.0, 0.0, "none").to_dict())
    (tmp_path / "model.onnx").touch()
    carried = attribution.hookable_copy(bundle.load_network(tmp_path))
    with torch.inference_mode():
        features = carried.features(x)
        logits, biases = carried.head(features)[0], carried.head.bias(features.expand(5, -1, -1, -1), torch.arange(5))
        torch.testing.assert_close(logits, network(x)[0], rtol=1e-4, atol=1e-4)
    for k in range(5):
        evidence = attribution.evidence(carried, x, k)
        assert evidence.shape == features.shape[2:] and evidence.dtype == np.float32
        assert evidence.sum(dtype=float) + float(biases[k]) == pytest.approx(float(logits[k]), abs=1e-4)


@pytest.mark.parametrize("words", ["resnet18", "densenet121+head=linear", "efficientnet_lite0+after=-1:mask"])
def test_grad_cam_of_a_linear_head_is_the_positive_class_evidence(words: str):
    network, x = with_batch_statistics(words)
    network = attribution.hookable_copy(network)
    for target in (0, 3):
        evidence = attribution.evidence(network, x, target)
        cam = attribution.grad_cam(network, x, target)
        np.testing.assert_allclose(cam, np.maximum(evidence, 0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", attribution.METHODS)
def test_every_method_marks_the_object(method: str):
    x, inside = planted()
    found = attribution.METHODS[method].function(attribution.hookable_copy(counts_brightness()), x, 0)
    assert found.dtype == np.float32 and found.ndim == 2
    sized = np.kron(found, np.ones((64 // found.shape[0], 64 // found.shape[1])))
    assert sized[inside].mean() > 5 * abs(sized[~inside].mean())


@pytest.mark.parametrize("method", attribution.METHODS)
def test_no_method_changes_the_network(method: str, trained):
    network, x = trained
    own = bundle_of(network)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    photo = x.clone()
    ready = attribution.hookable_copy(own)
    first, again = (attribution.METHODS[method].function(ready, x, 1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all() and first.any()
    assert torch.equal(x, photo) and not x.requires_grad
    for one in (own, ready):
        assert not [m for m in one.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
        assert all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())
    assert any(getattr(module, "inplace", False) for module in own.modules())
    assert not any(getattr(module, "inplace", False) for module in ready.modules())


def bundle_of(network: Network) -> Network:
    """The network as a bundle gives it, whose activations write into their input."""
    own = rebuild(network.spec)
    own.load_state_dict(network.state_dict())
    return own.eval()


def test_the_hookable_copy_computes_the_same(trained):
    network, x = trained
    with torch.inference_mode():
        torch.testing.assert_close(attribution.hookable_copy(network)(x), bundle_of(network)(x), rtol=1e-4, atol=1e-4)


def test_integrated_gradients_sum_to_the_difference():
    """In a smooth network; a deep one of ReLUs would take far more steps."""
    torch.manual_seed(0)
    smooth = nn.Conv2d(3, 3, 3), nn.SiLU(), nn.Conv2d(3, 3, 3), nn.Tanh()
    network, x = counts_brightness(*smooth), torch.rand(1, 3, 64, 64)
    for target in range(2):
        with torch.inference_mode():
            difference = float((network(x) - network(torch.zeros_like(x)))[0, target])
        total = attribution.integrated_gradients(attribution.hookable_copy(network), x, target).sum(dtype=float)
        assert total == pytest.approx(difference, rel=1e-3) and abs(difference) > 0.1


def test_input_x_gradient_of_a_linear_network_is_exact():
    x, _ = planted()
    network = counts_brightness()
    total = attribution.input_x_gradient(attribution.hookable_copy(network), x, 0).sum(dtype=float)
    with torch.inference_mode():
        assert total == pytest.approx(float((network(x) - network(torch.zeros_like(x)))[0, 0]), abs=1e-4)


def test_guided_backpropagation_keeps_positive_gradients_only():
    """The logit of class 1 grows with darkness alone: its negative gradients pass no guided ReLU."""
    x, _ = planted()
    network = attribution.hookable_copy(counts_brightness())
    assert attribution.input_x_gradient(network, x, 1).any() and not attribution.guided_grad_cam(network, x, 1).any()


# ---- attention


def gated(word: str) -> tuple[Network, torch.Tensor]:
    """A network with a gate of random weights, and an image of 8 x 8 even patches, brighter to the right."""
    torch.manual_seed(0)
    gate = parse_gate(word)(3)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    patches = torch.rand(1, 3, 8, 8) * torch.linspace(0.2, 3, 8)  # so that columns differ as well as positions
    return counts_brightness(gate), patches.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("gate", ["mask", "cbam", "coordinate", "ela", "mask(norm=True)", "mask(spread=True)"])
def test_spatial_gates_have_maps(gate: str):
    network, x = gated(gate)
    ((name, passed),) = attribution.attention_maps(attribution.hookable_copy(network), x).items()
    assert name == "backbone.last.1"
    assert passed.shape == (8, 8) and (passed >= 0).all() and np.ptp(passed) > attribution.GATE_TOLERANCE
    assert not [module for module in network.modules() if module._forward_hooks]


@pytest.mark.parametrize("gate", ["se", "eca", "gct", "se(norm=True)", "none"])
def test_channel_gates_have_no_maps(gate: str):
    network, x = gated(gate)
    assert attribution.attention_maps(attribution.hookable_copy(network), x) == {}


def test_identity_gates_have_no_maps():
    network, x = with_batch_statistics("resnet18+after=-1:mask,-2:coordinate")
    for slot in network.added_attention.values():
        slot.start_as_identity()
    assert attribution.attention_maps(attribution.hookable_copy(network), x) == {}


def test_the_map_of_a_mask_is_its_gate():
    network, x = gated("mask")
    x[:, :, :16] = 0
    pooled, gate = x[:, :, ::8, ::8], network.backbone.get_submodule("last.1")
    assert isinstance(gate, Mask)
    with torch.inference_mode():
        expected = gate.activate(gate.gate(gate.layers(pooled)))[0, 0].numpy()
    passed = attribution.attention_maps(attribution.hookable_copy(network), x)["backbone.last.1"]
    np.testing.assert_allclose(passed[2:], expected[2:], rtol=1e-5)
    assert (passed[:2] == 1).all()  # undefined where the input is 0
