"""Network + photo + class -> what each position had to do with the answer: our evidence and the methods of papers.

A method takes (network, x, target): the network from `ready`, a normalised photo x (1, channels, H, W), a class number.
It gives a map float32 (h, w), larger where more speaks for the class; explanation/overlay.py brings it to
the photo's size. A new one is a function, and its row in METHODS. Networks are explained by
wrapping them: hooks go when a method ends.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.data.dataset import Normalize
from fieldmark.models import Attention, Gate, Network

GATE_TOLERANCE = 0.02
"""A gate that differs by less than this between positions lets the same through everywhere."""
N_GRADIENT_STEPS = 32  # of the integral in integrated gradients
N_OCCLUSION_STEPS = 8  # occlusion hides a quarter of the side at a time, in this many steps along it
BATCH_SIZE = 8  # photos at once: with their slopes they take much memory


def hookable_copy(network: Network) -> Network:
    """A copy to explain, in eval mode, without gradients of weights; no layer of it writes into its input.

    Hooks want the latter; the values stay the same.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in copied.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # a truth value, which nn.Module stores as it is
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as torch documents it


def to_network_input(photo: np.ndarray, preprocessing: Mapping[str, Any]) -> Tensor:
    """A prepared photo, uint8 (H, W, 3), as the network takes it: x (1, channels, H, W), normalised."""
    return Normalize(preprocessing["mean"], preprocessing["std"])(
        torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    )


def evidence(network: Network, x: Tensor, target: int) -> np.ndarray:
    """What each position said for the class, in logits: with the bias they sum to the logit.

    Ours, in closed form (models/heads.py). For a linear head it is the class activation map of Zhou et al. 2016,
    "Learning Deep Features for Discriminative Localization", equation 2.
    """
    with torch.inference_mode():
        return network.head.evidence(network.features(x), torch.tensor([target]))[0].numpy()


def grad_cam(network: Network, x: Tensor, target: int) -> np.ndarray:
    """The channels of the last map, weighed by their mean slope; what speaks against the class is cut off.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    equations 1 and 2. Before a linear head the slope is the same at all positions: then it is the positive evidence.
    """
    from captum.attr import LayerGradCam

    attribution = LayerGradCam(network, network.backbone).attribute(x, target, relu_attributions=True)
    assert isinstance(attribution, Tensor)
    return attribution[0, 0].detach().numpy()


def guided_grad_cam(network: Network, x: Tensor, target: int) -> np.ndarray:
    """Grad-CAM at the photo's size, times how strongly each pixel counts if rectifiers let back what is positive.

    Selvaraju et al. 2017 (Guided Grad-CAM), with the guided backpropagation of Springenberg et al. 2015, "Striving for
    Simplicity: The All Convolutional Net", figure 1; of its three colours the sum of the absolute values. The
    rectifiers are ReLU and ReLU6; other activations let all back.
    """
    coarse = torch.from_numpy(grad_cam(network, x, target))[None, None]
    sized = functional.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    with _guided_backprop(network):
        gradient = _input_gradient(network, x, target)
    return (sized * gradient.abs().sum(0)).numpy()


def integrated_gradients(network: Network, x: Tensor, target: int) -> np.ndarray:
    """What each pixel adds to the logit on the straight way from a photo of the mean colour; in logits.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1: the sum over all pixels is the
    logit of the photo less that of the mean colour, but for the integral's error with 32 terms, which in a deep
    network of rectifiers may be a third of it.
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
    """Each pixel's difference from the mean colour, times its slope; in logits.

    Shrikumar et al. 2016, "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences": what the logit would lose by the pixel, if it were linear in it.
    """
    return (x[0] * _input_gradient(network, x, target)).sum(0).numpy()


def occlusion(network: Network, x: Tensor, target: int) -> np.ndarray:
    """What the logit loses when a window of the mean colour hides the place, on average over such windows; in logits.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2. The window is a quarter
    of the photo's side and moves by an eighth.
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


METHODS: dict[str, Callable[[Network, Tensor, int], np.ndarray]] = {
    "evidence": evidence,
    "grad_cam": grad_cam,
    "guided_grad_cam": guided_grad_cam,
    "integrated_gradients": integrated_gradients,
    "input_x_gradient": input_x_gradient,
    "occlusion": occlusion,
}
LOGIT_METHODS = ("evidence", "integrated_gradients", "input_x_gradient", "occlusion")


def attention_maps(network: Network, x: Tensor) -> dict[str, np.ndarray]:
    """What the gates let through at each position, by the name of each gate's module.

    The length of the vector of channels behind the gate over that before it, (h, w): 1 where it passes as it is. Gates
    that are the same at all positions (those per channel) are left out, as are slots that let everything through.
    """
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def record(maps: dict[str, Tensor], name: str, which: int) -> Callable[..., None]:
        return lambda module, inputs, output: maps.update({name: (inputs[0], output)[which].clone()})

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in network.named_modules():
            if isinstance(module, Attention) and type(module) is not Attention:
                hooks.enter_context(module.register_forward_hook(record(after, name, 1)))
                gated, which = (
                    (module.norm, 1) if isinstance(module, Gate) else (module, 0)
                )  # what a norm did is no gate
                hooks.enter_context(gated.register_forward_hook(record(before, name, which)))
        network(x)
    gate_maps = {}
    for name, y in after.items():
        if _is_spatial(before[name][0], y[0]):
            length = before[name][0].norm(dim=0)
            ratio = torch.where(length > 0, y[0].norm(dim=0) / length, 1).numpy()
            if np.ptp(ratio) > GATE_TOLERANCE:
                gate_maps[name] = ratio
    return gate_maps


def _is_spatial(x: Tensor, y: Tensor) -> bool:
    """Whether the gate y / x of any channel (c, h, w) differs between positions; where x is nothing it is not seen."""
    is_nonzero, gate = x != 0, y / x
    highest = torch.where(is_nonzero, gate, -torch.inf).amax((1, 2))
    lowest = torch.where(is_nonzero, gate, torch.inf).amin((1, 2))
    return bool((highest - lowest).max() > GATE_TOLERANCE)


def _input_gradient(network: Network, x: Tensor, target: int) -> Tensor:
    """The slope (channels, H, W) of the class's logit in each number of the photo."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network(x)[0, target], x)[0][0]


@contextmanager
def _guided_backprop(network: nn.Module) -> Iterator[None]:
    """While it lasts, rectifiers let back positive slopes alone."""

    def guide(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda slope: slope.clamp_min(0))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                hooks.enter_context(module.register_forward_hook(guide))
        yield
