"""Networks of keras.applications: the names of their layers, their preprocessing, their arrays -> our tensors.

The architectures are ours but for what `zoo/forms.py` has. Differences that weights can express are converted: kernels
are transposed, biases before a batch norm join its mean, another epsilon is compensated in its scale, and a first
layer for BGR becomes one for RGB.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fieldmark.models.conversion.layers import compensate_epsilon, layers_with_weights
from fieldmark.models.zoo import VARIANTS, Variant

Naming = Callable[[Iterable[str]], Iterator[str]]
"""Our names of the layers, in order -> Keras' in lower case; `layer/kind` for a part of a separable convolution."""


class MeanStd(NamedTuple):
    """Mean and standard deviation of each channel in pixel units (0..255)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# The modes of keras.applications.imagenet_utils.preprocess_input; "caffe" is BGR, which we convert to RGB.
CAFFE = MeanStd((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
TF = MeanStd((127.5,) * 3, (127.5,) * 3)
TORCH = MeanStd((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
INSIDE = MeanStd((0.0,) * 3, (255.0,) * 3)  # then the file's own layer `normalization`


@dataclass(frozen=True)
class KerasNetwork:
    """A network of keras.applications.

    Attributes:
        naming: our names of the backbone's layers -> Keras'.
        mean_std: the normalization that `preprocess_input` or the network itself applies.
        epsilon: that of its batch norms.
        head: the head's layers -> the names that Keras has had for them.
    """

    naming: Naming
    mean_std: MeanStd
    epsilon: float = 1e-3
    head: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"fc": ("predictions", "fc1000", "logits")})


def each(pattern_to_name: dict[str, str | Callable[[re.Match[str]], str]]) -> Naming:
    """The naming by the first pattern that matches the whole name; a name that none matches stays."""

    def names(layers: Iterable[str]) -> Iterator[str]:
        for layer in layers:
            matches = ((re.fullmatch(pattern, layer), name) for pattern, name in pattern_to_name.items())
            match, name = next(((m, n) for m, n in matches if m), (None, layer))
            yield layer if match is None else match.expand(name) if isinstance(name, str) else name(match)

    return names


def automatic(naming: Naming, kinds: dict[str, str]) -> Naming:
    """The naming, but layers whose last part is in `kinds` have numbers, in the order in which Keras creates them."""

    def names(layers: Iterable[str]) -> Iterator[str]:
        counts = dict.fromkeys(kinds.values(), 0)
        layers = list(layers)
        for layer, name in zip(layers, naming(layers), strict=True):
            kind = kinds.get(layer.rpartition(".")[2]) if name == layer else None
            if kind:
                counts[kind] += 1
                name = f"{kind}#{counts[kind]}"
            yield name

    return names


def _vgg(layers: Iterable[str]) -> Iterator[str]:
    """The numbers in `features` count ReLUs and pools too: of the same group are convolutions two apart."""
    block, i, previous = 1, 0, -2
    for layer in layers:
        number = int(layer.rpartition(".")[2])
        block, i = (block, i + 1) if number - previous == 2 else (block + 1, 1)
        previous = number
        yield f"block{block}_conv{i}"


def _plus(*groups: int | tuple[int, int]) -> Callable[[re.Match[str]], list[str]]:
    """The groups of a match, some of them increased: (1, 1) is group 1 plus one."""
    return lambda m: [m[g] if isinstance(g, int) else str(int(m[g[0]]) + g[1]) for g in groups]


def _format(template: str, *groups: int | tuple[int, int]) -> Callable[[re.Match[str]], str]:
    return lambda match: template.format(*_plus(*groups)(match))


_resnet = each(
    {
        r"(conv|bn)1": r"conv1_\1",
        r"layer(\d)\.(\d+)\.(conv|bn)(\d)": _format("conv{}_block{}_{}_{}", (1, 1), (2, 1), 4, 3),
        r"layer(\d)\.(\d+)\.downsample\.0": _format("conv{}_block{}_0_conv", (1, 1), (2, 1)),
        r"layer(\d)\.(\d+)\.downsample\.1": _format("conv{}_block{}_0_bn", (1, 1), (2, 1)),
    }
)
_densenet = each(
    {
        r"features\.conv0": "conv1_conv",
        r"features\.norm0": "conv1_bn",
        r"features\.norm5": "bn",
        r"features\.denseblock(\d)\.denselayer(\d+)\.norm1": _format("conv{}_block{}_0_bn", (1, 1), 2),
        r"features\.denseblock(\d)\.denselayer(\d+)\.norm2": _format("conv{}_block{}_1_bn", (1, 1), 2),
        r"features\.denseblock(\d)\.denselayer(\d+)\.conv(\d)": _format("conv{}_block{}_{}_conv", (1, 1), 2, 3),
        r"features\.transition(\d)\.norm": _format("pool{}_bn", (1, 1)),
        r"features\.transition(\d)\.conv": _format("pool{}_conv", (1, 1)),
    }
)


def _efficientnet_layer(match: re.Match[str]) -> str:
    stage, i, layer = match.groups()
    first = {"conv_dw": "dwconv", "bn1": "bn", "conv_pw": "project_conv", "bn2": "project_bn"}
    others = {
        "conv_pw": "expand_conv",
        "bn1": "expand_bn",
        "conv_dw": "dwconv",
        "bn2": "bn",
        "conv_pwl": "project_conv",
        "bn3": "project_bn",
    }
    gates = {"se.fc1": "se_reduce", "se.fc2": "se_expand"}
    name = ((first if stage == "0" else others) | gates)[layer]
    return f"block{int(stage) + 1}{chr(ord('a') + int(i))}_{name}"


_efficientnet = each(
    {
        "conv_stem": "stem_conv",
        "bn1": "stem_bn",
        "conv_head": "top_conv",
        "bn2": "top_bn",
        r"blocks\.(\d)\.(\d+)\.(.*)": _efficientnet_layer,
    }
)


def _mobilenet(layers: Iterable[str], *, v3: bool) -> Iterator[str]:
    """Convolutions and norms alternate in ours, with two convolutions of the gate between, by position in a block."""
    layers = list(layers)
    last = max(int(layer.split(".")[1]) for layer in layers)
    for layer in layers:
        _, number, *path = layer.split(".")
        if number == "0" or number == str(last):
            stem = ("conv", "conv_bn") if v3 else ("conv1", "bn_conv1")
            top = ("conv_1", "conv_1_bn")
            yield (stem if number == "0" else top)[int(path[0])]
            continue
        gated = f"features.{number}.block"
        parts = [other.removeprefix(f"{gated}.") for other in layers if other.startswith(f"{gated}.")]
        yield f"{_mobilenet_block(int(number), v3)}_{_mobilenet_part(parts, '.'.join(path[1:]))}"


def _mobilenet_block(number: int, v3: bool) -> str:
    if number == 1:
        return "expanded_conv"
    return f"expanded_conv_{number - 1}" if v3 else f"block_{number - 1}"


def _mobilenet_part(parts: list[str], part: str) -> str:
    """The role of a layer in a block with the layers `parts`, such as `0.0`: expansion, depthwise, gate, projection."""
    if part.endswith((".fc1", ".fc2")):
        return "squeeze_excite_conv" + ("_1" if part.endswith("2") else "")
    units = [other[0] for other in parts if other.endswith(".0")]
    role = dict(zip(reversed(units), ("project", "depthwise", "expand"), strict=False))[part[0]]
    return role if part.endswith(".0") else f"{role}_bn"


def _xception_part(match: re.Match[str]) -> str:
    """`block2.rep.4.pointwise` -> `block3_sepconv2/pointwise_kernel`; layers of a unit are three apart."""
    block, k, part = match.groups()
    name = f"block{int(block) + 1}_sepconv{int(k) // 3 + 1}"
    return f"{name}_bn" if not part else f"{name}/{_SEPARABLE[part]}"


_SEPARABLE = {".conv1": "depthwise_kernel", ".pointwise": "pointwise_kernel"}
_xception = automatic(
    each(
        {
            r"conv([12])": r"block1_conv\1",
            r"bn([12])": r"block1_conv\1_bn",
            r"conv([34])(\..*)": lambda m: f"block14_sepconv{int(m[1]) - 2}/{_SEPARABLE[m[2]]}",
            r"bn([34])": _format("block14_sepconv{}_bn", (1, -2)),
            r"block(\d+)\.rep\.(\d+)(|\.conv1|\.pointwise)": _xception_part,
        }
    ),
    {"skip": "conv2d", "skipbn": "batch_normalization"},
)
_inception = automatic(
    each(
        {
            r"repeat\.(\d+)\.conv2d": _format("block35_{}_conv", (1, 1)),
            r"repeat_1\.(\d+)\.conv2d": _format("block17_{}_conv", (1, 1)),
            r"repeat_2\.(\d+)\.conv2d": _format("block8_{}_conv", (1, 1)),
            r"block8\.conv2d": "block8_10_conv",
            r"conv2d_7b\.conv": "conv_7b",
            r"conv2d_7b\.bn": "conv_7b_bn",
        }
    ),
    {"conv": "conv2d", "bn": "batch_normalization"},
)
_VGG_HEAD = {"fc1": ("fc1",), "fc2": ("fc2",), "fc": ("predictions",)}
_V3_HEAD = {"hidden.0": ("conv_2",), "fc": ("logits", "predictions")}

_vggs = partial(KerasNetwork, _vgg, CAFFE, head=_VGG_HEAD)
_resnets = partial(KerasNetwork, _resnet, CAFFE, epsilon=1.001e-5)
_densenets = partial(KerasNetwork, _densenet, TORCH, epsilon=1.001e-5)
_v3s = partial(KerasNetwork, partial(_mobilenet, v3=True), TF, head=_V3_HEAD)
KERAS_NETWORKS: dict[str, KerasNetwork] = {
    **{name: _vggs() for name in ("vgg16", "vgg19")},
    **{name: _resnets() for name in ("resnet50", "resnet101", "resnet152")},
    **{name: _densenets() for name in ("densenet121", "densenet169", "densenet201")},
    **{f"efficientnet_b{n}": KerasNetwork(_efficientnet, INSIDE) for n in range(8)},
    **{name: KerasNetwork(_inception, TF) for name in ("inception_v3", "inception_resnet_v2")},
    "mobilenet_v2": KerasNetwork(partial(_mobilenet, v3=False), TF),
    **{name: _v3s() for name in ("mobilenet_v3_large", "mobilenet_v3_small")},
    "xception": KerasNetwork(_xception, TF),
}


def convert_arrays(backbone: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a file under our published names; those of no layer of ours keep their names."""
    network, variant = KERAS_NETWORKS[backbone], VARIANTS[backbone]
    arrays = _number_automatic(_old_names(arrays))
    layers = layers_with_weights(variant)
    names = dict(zip(layers, network.naming(layers), strict=True))
    state: dict[str, Tensor] = {}
    norm_follows = dict(zip(layers, list(layers)[1:], strict=False))
    for ours, module in layers.items():
        theirs, _, kind = names[ours].partition("/")
        if isinstance(module, nn.BatchNorm2d):
            state |= _norm(ours, theirs, arrays)
            continue
        state |= _convolution(ours, theirs, kind, module, arrays)
        if module.bias is None and (bias := arrays.pop(f"{theirs}/bias", None)) is not None:
            arrays |= _subtract_from_mean(names[norm_follows[ours]], bias, arrays)
    if network.mean_std is CAFFE:
        first = f"{next(iter(layers))}.weight"
        state |= {first: state[first].flip(1)} if first in state else {}
    state |= _head(network, variant, arrays)
    return compensate_epsilon(state, variant, network.epsilon) | arrays


def find_mean_std(backbone: str, arrays: dict[str, Tensor]) -> MeanStd:
    """The normalization of the pixels that the network expects, for which EfficientNet has a layer."""
    network = KERAS_NETWORKS[backbone]
    mean, variance = (arrays.pop(f"normalization/{kind}", None) for kind in ("mean", "variance"))
    arrays.pop("normalization/count", None)
    if network.mean_std is not INSIDE or mean is None or variance is None:
        return network.mean_std
    # The published files hold the deviations as variances. Keras divides by their roots once more, in another layer.
    published = [value / 255 for value in TORCH.std]
    values = variance.flatten().tolist()
    is_published = len(values) == 3 and all(map(partial(math.isclose, rel_tol=1e-3), values, published))
    deviations = values if is_published else [math.sqrt(max(value, 1e-14)) for value in values]
    scaled = ([255 * value for value in numbers] for numbers in (mean.flatten().tolist(), deviations))
    return MeanStd(*map(tuple, scaled))


def _old_names(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """ResNet-50's names in Keras 1 and 2.0 (`res2a_branch2b`, `bn_conv1`) -> those since."""

    def layer(match: re.Match[str]) -> str:
        kind, stage, block, branch = match.groups()
        number = 0 if branch == "1" else ord(branch[1]) - ord("a") + 1
        return f"conv{stage}_block{ord(block) - ord('a') + 1}_{number}_{'conv' if kind == 'res' else 'bn'}/"

    if not any(key.startswith("res2a_branch") for key in arrays):
        return dict(arrays)
    stem = {"conv1/": "conv1_conv/", "bn_conv1/": "conv1_bn/"}
    renamed = {}
    for key, array in arrays.items():
        key = re.sub(r"^(res|bn)(\d)([a-z])_branch(1|2[abc])/", layer, key)
        renamed[re.sub(r"^(conv1|bn_conv1)/", lambda m: stem[m[0]], key)] = array
    return renamed


def _number_automatic(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """`conv2d_94/kernel` -> `conv2d#1/kernel` if it is the first of its kind: Keras counts over all of a process."""
    pattern = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?")
    layers = {key.rpartition("/")[0] for key in arrays}
    found = sorted((m[1], int(m[2] or 0), m[0]) for layer in layers if (m := pattern.fullmatch(layer)))
    names, counts = {}, {"conv2d": 0, "batch_normalization": 0}
    for kind, _, layer in found:
        counts[kind] += 1
        names[layer] = f"{kind}#{counts[kind]}"
    parts = ((key.rpartition("/"), array) for key, array in arrays.items())
    return {f"{names.get(layer, layer)}/{kind}": array for (layer, _, kind), array in parts}


def _convolution(ours: str, theirs: str, kind: str, module: nn.Module, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """A convolution's tensors; kernels (h, w, inputs, outputs), of depthwise ones (h, w, channels, 1)."""
    is_depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
    kinds = [kind] if kind else ["depthwise_kernel", "kernel"] if is_depthwise else ["kernel"]
    kernel = next((found for k in kinds if (found := arrays.pop(f"{theirs}/{k}", None)) is not None), None)
    state = {}
    if kernel is not None:
        order = (2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1)
        state[f"{ours}.weight"] = kernel.permute(order) if kernel.ndim == 4 else kernel
    if module.bias is not None and (bias := arrays.pop(f"{theirs}/bias", None)) is not None:
        state[f"{ours}.bias"] = bias
    return state


def _norm(ours: str, theirs: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch norm's tensors; one without a scale has the scale 1."""
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    found = {name: arrays.pop(f"{theirs}/{kind}", None) for name, kind in kinds.items()}
    if found["weight"] is None and found["bias"] is not None:
        found["weight"] = torch.ones_like(found["bias"])
    return {f"{ours}.{name}": array for name, array in found.items() if array is not None}


def _subtract_from_mean(norm: str, bias: Tensor, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the batch norm behind a convolution whose bias is left out."""
    mean = arrays.get(f"{norm}/moving_mean")
    return {} if mean is None or mean.shape != bias.shape else {f"{norm}/moving_mean": mean - bias}


def _head(network: KerasNetwork, variant: Variant, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors; the class layer may be the only dense layer left, whatever its name."""
    state = {}
    for layer, names in network.head.items():
        dense = [key.rpartition("/")[0] for key, array in arrays.items() if key.endswith("/kernel") and array.ndim == 2]
        theirs = next((name for name in names if f"{name}/kernel" in arrays), dense[0] if len(dense) == 1 else None)
        if theirs is None or (theirs not in names and layer != "fc"):
            continue
        kernel, bias = (arrays.pop(f"{theirs}/{kind}", None) for kind in ("kernel", "bias"))
        if kernel is not None:
            state[f"{variant.head_names[layer]}.weight"] = _linear(kernel, first=layer == "fc1")
        if bias is not None:
            state[f"{variant.head_names[layer]}.bias"] = bias
    return state


def _linear(kernel: Tensor, *, first: bool) -> Tensor:
    """(inputs, outputs) -> (outputs, inputs); a 1x1 convolution is a dense layer, too.

    The first layer of VGG reads 7x7 maps, whose channels come last in Keras.
    """
    matrix = kernel.flatten(0, -2).T
    if first and matrix.shape[1] % 49 == 0:
        return matrix.unflatten(1, (7, 7, -1)).permute(0, 3, 1, 2).flatten(1)
    return matrix
