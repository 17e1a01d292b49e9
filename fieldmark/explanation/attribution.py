"""Attribution maps: what each position of an image contributes to the logit of a class.

The function of a method takes (network, x, target): a network from `hookable_copy`, a normalised image x
(1, channels, H, W) and a class index. It returns a map float32 (h, w), larger where the image supports the class;
explanation/overlay.py resizes it to the image. A new method is a function and its row in `METHODS`. Hooks are removed
when a method ends.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.core.i18n import gettext_noop
from fieldmark.data.dataset import Normalize
from fieldmark.models import Attention, Gate, Network

GATE_TOLERANCE = 0.02
"""A gate that differs by less between positions counts as constant."""
N_GRADIENT_STEPS = 32
"""Terms of the integral in integrated gradients."""
N_OCCLUSION_STEPS = 8
"""Steps of the occluding window along a side; the window is two steps wide."""
BATCH_SIZE = 8
"""Images at once: with gradients they take much memory."""


def hookable_copy(network: Network) -> Network:
    """A copy in eval mode, without gradients of weights and without in-place layers, which hooks do not support."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in copied.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # a bool, which nn.Module stores as it is
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as torch documents it


def to_network_input(image: np.ndarray, preprocessing: Mapping[str, Any]) -> Tensor:
    """A preprocessed image, uint8 (H, W, 3), as the normalised input of the network, (1, channels, H, W)."""
    return Normalize(preprocessing["mean"], preprocessing["std"])(
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    )


def evidence(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Class evidence: the contribution of each position of what the head reads, in logits; plus the bias, the logit.

    In closed form for every head (models/heads.py). For a linear head it is the class activation map of Zhou et al.
    2016, "Learning Deep Features for Discriminative Localization", equation 2.
    """
    with torch.inference_mode():
        return network.head.evidence(network.features(x), torch.tensor([target]))[0].numpy()


def grad_cam(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Grad-CAM: the channels of the last feature map, weighted by their mean gradient, then ReLU.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    equations 1 and 2. With a linear head it equals the positive part of the class evidence.
    """
    from captum.attr import LayerGradCam

    *_, (_, last_layer) = network.backbone.iter_layers()
    attribution = LayerGradCam(network, last_layer).attribute(x, target, relu_attributions=True)
    assert isinstance(attribution, Tensor)
    return attribution[0, 0].detach().numpy()


def guided_grad_cam(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Guided Grad-CAM: Grad-CAM at the resolution of the image, times the magnitude of guided backpropagation.

    Selvaraju et al. 2017, section 3.2, with the guided backpropagation of Springenberg et al. 2015, "Striving for
    Simplicity: The All Convolutional Net", figure 1; absolute values are summed over the colour channels. ReLU and
    ReLU6 are guided, other activations are not.
    """
    coarse = torch.from_numpy(grad_cam(network, x, target))[None, None]
    sized = functional.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    with _guided_backprop(network):
        gradient = _input_gradient(network, x, target)
    return (sized * gradient.abs().sum(0)).numpy()


def integrated_gradients(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Integrated gradients along the straight line from an image of the mean colour, in logits.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equations 1 and 3. The sum over all pixels is
    the logit of the image less that of the mean colour, up to the error of the sum of 32 terms, which in a deep network
    of ReLUs may be a third of it.
    """
    from captum.attr import IntegratedGradients

    attributions = IntegratedGradients(network).attribute(
        x.clone().requires_grad_(),
        torch.zeros_like(x),
        target,
        n_steps=N_GRADIENT_STEPS,
        internal_batch_size=BATCH_SIZE,
    )
    return attributions.detach()[0].sum(0).numpy()


def input_x_gradient(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Each pixel's difference from the mean colour, times the gradient of the logit, in logits.

    Shrikumar et al. 2016, "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences": the first-order estimate of what the logit loses without the pixel.
    """
    return (x[0] * _input_gradient(network, x, target)).sum(0).numpy()


def occlusion(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Decrease of the logit when a window of the mean colour hides the position, averaged over windows, in logits.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2. The window is a quarter
    of the image's side wide and moves by an eighth.
    """
    from captum.attr import Occlusion

    channels, height, width = x.shape[1:]
    step = (max(1, height // N_OCCLUSION_STEPS), max(1, width // N_OCCLUSION_STEPS))
    window = (channels, min(height, 2 * step[0]), min(width, 2 * step[1]))
    with torch.inference_mode():
        attributions = Occlusion(network).attribute(
            x, window, (channels, *step), baselines=0, target=target, perturbations_per_eval=BATCH_SIZE
        )
    return attributions[0].mean(0).numpy()


@dataclass(frozen=True)
class Method:
    """An attribution method and its texts on a page, which are translated there."""

    function: Callable[[Network, Tensor, int], np.ndarray]
    title: str
    unit: str
    """"logits", or empty for an arbitrary scale."""
    description: str


METHODS: Mapping[str, Method] = {
    "evidence": Method(
        evidence,
        gettext_noop("evidence"),
        "logits",
        gettext_noop("Contribution of each position of the feature maps; plus the bias they sum to the logit."),
    ),
    "grad_cam": Method(
        grad_cam,
        gettext_noop("Grad-CAM"),
        "",
        gettext_noop(
            "Channels of the last feature map, weighted by their mean gradient; negative values are set to 0."
        ),
    ),
    "guided_grad_cam": Method(
        guided_grad_cam,
        gettext_noop("guided Grad-CAM"),
        "",
        gettext_noop("Grad-CAM at the resolution of the image, times the magnitude of guided backpropagation."),
    ),
    "integrated_gradients": Method(
        integrated_gradients,
        gettext_noop("integrated gradients"),
        "logits",
        gettext_noop("Gradient of the logit, integrated along the straight line from an image of the mean colour."),
    ),
    "input_x_gradient": Method(
        input_x_gradient,
        gettext_noop("input x gradient"),
        "logits",
        gettext_noop("Each pixel's difference from the mean colour, times the gradient of the logit."),
    ),
    "occlusion": Method(
        occlusion,
        gettext_noop("occlusion"),
        "logits",
        gettext_noop(
            "Decrease of the logit when a window of the mean colour hides the position, averaged over windows."
        ),
    ),
}
"""The methods by the names that `--method` takes."""


def attention_maps(network: Network, x: Tensor) -> dict[str, np.ndarray]:
    """Maps of the attention gates that differ between positions, float32 (h, w), by name of the module.

    The norm of the channel vector after the gate over the norm before it; 1 where the gate is the identity. Channel
    attention, which is the same at all positions, and empty slots are left out.
    """
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def record(maps: dict[str, Tensor], name: str, which: int) -> Callable[..., None]:
        return lambda module, inputs, output: maps.update({name: (inputs[0], output)[which].clone()})

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in network.named_modules():
            if isinstance(module, Attention) and type(module) is not Attention:
                hooks.enter_context(module.register_forward_hook(record(after, name, 1)))
                # The BN in front of a gate is not part of it.
                gated, which = (module.norm, 1) if isinstance(module, Gate) else (module, 0)
                hooks.enter_context(gated.register_forward_hook(record(before, name, which)))
        network(x)
    gate_maps = {}
    for name, y in after.items():
        if _is_spatial(before[name][0], y[0]):
            norm = before[name][0].norm(dim=0)
            ratio = torch.where(norm > 0, y[0].norm(dim=0) / norm, 1).numpy()
            if np.ptp(ratio) > GATE_TOLERANCE:
                gate_maps[name] = ratio
    return gate_maps


def _is_spatial(x: Tensor, y: Tensor) -> bool:
    """Whether the gate y / x of any channel (c, h, w) differs between positions; it is undefined where x is 0."""
    is_nonzero, gate = x != 0, y / x
    highest = torch.where(is_nonzero, gate, -torch.inf).amax((1, 2))
    lowest = torch.where(is_nonzero, gate, torch.inf).amin((1, 2))
    return bool((highest - lowest).max() > GATE_TOLERANCE)


def _input_gradient(network: Network, x: Tensor, target: int) -> Tensor:
    """Gradient of the class's logit with respect to the input, (channels, H, W)."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network(x)[0, target], x)[0][0]


@contextmanager
def _guided_backprop(network: nn.Module) -> Iterator[None]:
    """Within the context ReLUs propagate positive gradients only."""

    def guide(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp_min(0))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                hooks.enter_context(module.register_forward_hook(guide))
        yield
