"""Network name -> Variant: the table of networks with their papers; published.py is that of their weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone
from fieldmark.models.gates import SE
from fieldmark.models.heads import AuxiliaryHead, ClassicHead, Head, LinearHead
from fieldmark.models.zoo import forms
from fieldmark.models.zoo.alexnet import alexnet
from fieldmark.models.zoo.bn_inception import bn_inception
from fieldmark.models.zoo.densenet import densenet
from fieldmark.models.zoo.efficientnet import efficientnet
from fieldmark.models.zoo.googlenet import GoogLeNetAuxiliaryHead, googlenet
from fieldmark.models.zoo.inception_resnet import inception_resnet_v2
from fieldmark.models.zoo.inception_resnet_paper import inception_resnet_paper
from fieldmark.models.zoo.inception_v3 import InceptionAuxiliaryHead, inception_v3
from fieldmark.models.zoo.inception_v4 import inception_v4
from fieldmark.models.zoo.mobilenet import MOBILENET_V2, MOBILENET_V3_LARGE, MOBILENET_V3_SMALL, mobilenet
from fieldmark.models.zoo.resnet import BasicBlock, Bottleneck, SmallBlock, resnet, small_stem
from fieldmark.models.zoo.senet import senet
from fieldmark.models.zoo.vgg import vgg
from fieldmark.models.zoo.xception import xception

__all__ = ["VARIANTS", "Variant"]


class Auxiliary(NamedTuple):
    """An auxiliary head: its published name and its constructor `(classes)`."""

    name: str
    make: Callable[[int], AuxiliaryHead]


@dataclass(frozen=True)
class Variant:
    """A network of the zoo.

    Attributes:
        make_backbone: constructor `(*, channels, attention)` of the backbone; it takes `gate` too if that is set.
        head: constructor `(channels, classes)` of the published head.
        paper: where the network is described.
        frozen_until: the layer up to which fine-tuning keeps the backbone frozen; None trains all.
        head_names: the head's layers -> their published names.
        gate: constructor of the attention that the paper has inside its blocks.
        auxiliary: layer -> the auxiliary head on its output.
        size: input size in pixels if there are no published weights.
        forms: library -> the change to the backbone's form of that library, where it differs and no weight shows it.
    """

    make_backbone: Callable[..., Backbone]
    head: Callable[[int, int], Head]
    paper: str
    frozen_until: str | None
    head_names: Mapping[str, str]
    gate: Callable[..., Attention] | None = None
    auxiliary: Mapping[str, Auxiliary] = field(default_factory=dict)
    size: int = 224
    forms: Mapping[str, Callable[[Backbone], None]] = field(default_factory=dict)


_ALEXNET = "Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks"
_BN_INCEPTION = "Ioffe & Szegedy 2015, Batch Normalization: Accelerating Deep Network Training"
_EFFICIENTNET = "Tan & Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
_LITE = "Tan & Le 2019, EfficientNet; Lite form: Liu 2020, Higher accuracy on vision models with EfficientNet-Lite"
_GOOGLENET = "Szegedy et al. 2015, Going Deeper with Convolutions"
_INCEPTION_V3 = "Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision"
_INCEPTION_V4 = "Szegedy et al. 2017, Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"
_MOBILENET_V2 = "Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks"
_MOBILENET_V3 = "Howard et al. 2019, Searching for MobileNetV3"
_RESNET = "He et al. 2016, Deep Residual Learning for Image Recognition"
_RESNEXT = "Xie et al. 2017, Aggregated Residual Transformations for Deep Neural Networks"
_VGG = "Simonyan & Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition"
_SENET = "Hu et al. 2018, Squeeze-and-Excitation Networks"
_DENSENET = "Huang et al. 2017, Densely Connected Convolutional Networks"
_XCEPTION = "Chollet 2017, Xception: Deep Learning with Depthwise Separable Convolutions"

_lite = partial(
    Variant,
    head_names={"fc": "classifier"},
    frozen_until="blocks.3",
    paper=_LITE,
    forms={"torchvision": forms.pad_symmetrically},
)
_efficientnet = partial(_lite, paper=_EFFICIENTNET, gate=partial(SE, ratio=4, activation="silu"))
_inception_v4 = partial(Variant, head=partial(LinearHead, dropout=0.2), paper=_INCEPTION_V4, size=299)
_inception_paper = partial(_inception_v4, inception_resnet_paper, frozen_until="reduction_a", head_names={"fc": "fc"})
_mobilenet = partial(
    Variant,
    head_names={"hidden.0": "classifier.0", "fc": "classifier.3"},
    paper=_MOBILENET_V3,
    gate=partial(SE, ratio=4, hard=True, divisor=8),
    forms={"keras": forms.pad_as_tensorflow},
)
_hidden = partial(LinearHead, hidden_dropout=0.2, activation="hardswish")
_resnet = partial(Variant, head=LinearHead, head_names={"fc": "fc"}, frozen_until="layer2", paper=_RESNET)
_resnet_with_v1 = partial(_resnet, forms={"keras": forms.stride_first})
_resnext = partial(_resnet, paper=_RESNEXT)
_senet = partial(
    _resnet,
    head_names={"fc": "last_linear"},
    paper=_SENET,
    gate=partial(SE, ratio=16),
    forms={"timm": forms.senet_of_timm},
)
_densenet = partial(_resnet, head_names={"fc": "classifier"}, frozen_until="features.transition2", paper=_DENSENET)
_alexnet = partial(
    Variant,
    head=partial(ClassicHead, pool=6, dropout_first=True),
    head_names={"fc1": "classifier.1", "fc2": "classifier.4", "fc": "classifier.6"},
    frozen_until="features.5",
    paper=_ALEXNET,
)
_vgg = partial(
    Variant,
    head=ClassicHead,
    head_names={"fc1": "classifier.0", "fc2": "classifier.3", "fc": "classifier.6"},
    paper=_VGG,
)
_googlenet = partial(Variant, googlenet, partial(LinearHead, dropout=0.2), _GOOGLENET, "maxpool3", {"fc": "fc"})
_inception_v3 = partial(
    Variant,
    inception_v3,
    partial(LinearHead, dropout=0.5),
    _INCEPTION_V3,
    "Mixed_5d",
    {"fc": "fc"},
    forms={"keras": forms.average_inside},
)

VARIANTS: dict[str, Variant] = {
    "alexnet": _alexnet(partial(alexnet, (64, 192, 384, 256, 256), padding=2)),
    "alexnet_2012": _alexnet(partial(alexnet, (96, 256, 384, 384, 256), padding=0), size=227),
    "bn_inception": Variant(
        bn_inception, LinearHead, _BN_INCEPTION, frozen_until="inception_3c", head_names={"fc": "last_linear"}
    ),
    "efficientnet_b0": _efficientnet(partial(efficientnet, 1.0, 1.0), partial(LinearHead, dropout=0.2)),
    "efficientnet_b1": _efficientnet(partial(efficientnet, 1.0, 1.1), partial(LinearHead, dropout=0.2)),
    "efficientnet_b2": _efficientnet(partial(efficientnet, 1.1, 1.2), partial(LinearHead, dropout=0.3)),
    "efficientnet_b3": _efficientnet(partial(efficientnet, 1.2, 1.4), partial(LinearHead, dropout=0.3)),
    "efficientnet_b4": _efficientnet(partial(efficientnet, 1.4, 1.8), partial(LinearHead, dropout=0.4)),
    "efficientnet_b5": _efficientnet(partial(efficientnet, 1.6, 2.2), partial(LinearHead, dropout=0.4)),
    "efficientnet_b6": _efficientnet(partial(efficientnet, 1.8, 2.6), partial(LinearHead, dropout=0.5)),
    "efficientnet_b7": _efficientnet(partial(efficientnet, 2.0, 3.1), partial(LinearHead, dropout=0.5)),
    "efficientnet_lite0": _lite(partial(efficientnet, 1.0, 1.0, lite=True), partial(LinearHead, dropout=0.2)),
    "efficientnet_lite1": _lite(partial(efficientnet, 1.0, 1.1, lite=True), partial(LinearHead, dropout=0.2)),
    "efficientnet_lite2": _lite(partial(efficientnet, 1.1, 1.2, lite=True), partial(LinearHead, dropout=0.3)),
    "efficientnet_lite3": _lite(partial(efficientnet, 1.2, 1.4, lite=True), partial(LinearHead, dropout=0.3)),
    "efficientnet_lite4": _lite(partial(efficientnet, 1.4, 1.8, lite=True), partial(LinearHead, dropout=0.3)),
    "densenet121": _densenet(partial(densenet, (6, 12, 24, 16))),
    "densenet161": _densenet(partial(densenet, (6, 12, 36, 24), growth=48)),
    "densenet169": _densenet(partial(densenet, (6, 12, 32, 32))),
    "densenet201": _densenet(partial(densenet, (6, 12, 48, 32))),
    "googlenet": _googlenet(
        auxiliary={
            "inception4a": Auxiliary("aux1", partial(GoogLeNetAuxiliaryHead, 512)),
            "inception4d": Auxiliary("aux2", partial(GoogLeNetAuxiliaryHead, 528)),
        }
    ),
    "inception_resnet_v2": _inception_v4(inception_resnet_v2, frozen_until="mixed_6a", head_names={"fc": "classif"}),
    "inception_resnet_v2_paper": _inception_paper(),
    "inception_v3": _inception_v3(auxiliary={"Mixed_6e": Auxiliary("AuxLogits", InceptionAuxiliaryHead)}),
    "inception_v4": _inception_v4(inception_v4, frozen_until="features.10", head_names={"fc": "last_linear"}),
    "se_inception_resnet_v2": _inception_paper(gate=partial(SE, ratio=4), paper=f"{_INCEPTION_V4}, with SE"),
    "mobilenet_v2": Variant(
        partial(mobilenet, MOBILENET_V2),
        partial(LinearHead, dropout=0.2),
        head_names={"fc": "classifier.1"},
        frozen_until="features.10",
        paper=_MOBILENET_V2,
        forms={"keras": forms.pad_as_tensorflow},
    ),
    "mobilenet_v3_large": _mobilenet(
        partial(mobilenet, MOBILENET_V3_LARGE), partial(_hidden, hidden=1280), frozen_until="features.10"
    ),
    "mobilenet_v3_small": _mobilenet(
        partial(mobilenet, MOBILENET_V3_SMALL), partial(_hidden, hidden=1024), frozen_until="features.6"
    ),
    "resnet18": _resnet(partial(resnet, BasicBlock, (2, 2, 2, 2))),
    "resnet18_small": _resnet(partial(resnet, SmallBlock, (2, 2, 2, 2), stem=small_stem), size=32),
    "resnet34": _resnet(partial(resnet, BasicBlock, (3, 4, 6, 3))),
    "resnet50": _resnet_with_v1(partial(resnet, Bottleneck, (3, 4, 6, 3))),
    "resnet101": _resnet_with_v1(partial(resnet, Bottleneck, (3, 4, 23, 3))),
    "resnet152": _resnet_with_v1(partial(resnet, Bottleneck, (3, 8, 36, 3))),
    "resnext50_32x4d": _resnext(partial(resnet, Bottleneck, (3, 4, 6, 3), groups=32, group_width=4)),
    "resnext101_32x4d": _resnext(partial(resnet, Bottleneck, (3, 4, 23, 3), groups=32, group_width=4)),
    "resnext101_32x8d": _resnext(partial(resnet, Bottleneck, (3, 4, 23, 3), groups=32, group_width=8)),
    "resnext101_64x4d": _resnext(partial(resnet, Bottleneck, (3, 4, 23, 3), groups=64, group_width=4)),
    "seresnet50": _senet(partial(senet, (3, 4, 6, 3), inner=(64, 64), strided=1)),
    "seresnet101": _senet(partial(senet, (3, 4, 23, 3), inner=(64, 64), strided=1)),
    "seresnet152": _senet(partial(senet, (3, 8, 36, 3), inner=(64, 64), strided=1)),
    "seresnext50_32x4d": _senet(partial(senet, (3, 4, 6, 3), inner=(128, 128), groups=32)),
    "seresnext101_32x4d": _senet(partial(senet, (3, 4, 23, 3), inner=(128, 128), groups=32)),
    "senet154": _senet(
        partial(senet, (3, 8, 36, 3), inner=(128, 256), groups=64, stem=(64, 64, 128), shortcut=3),
        head=partial(LinearHead, dropout=0.2),
    ),
    "vgg11": _vgg(partial(vgg, (1, 1, 2, 2, 2)), frozen_until="features.10"),
    "vgg11_bn": _vgg(partial(vgg, (1, 1, 2, 2, 2), norm=True), frozen_until="features.14"),
    "vgg11_mnist": _vgg(
        partial(vgg, (2, 2, 4), last_stride=1),
        head=partial(ClassicHead, hidden=(1024, 1024)),
        frozen_until="features.9",
        size=28,
    ),
    "vgg13": _vgg(partial(vgg, (2, 2, 2, 2, 2)), frozen_until="features.14"),
    "vgg13_bn": _vgg(partial(vgg, (2, 2, 2, 2, 2), norm=True), frozen_until="features.20"),
    "vgg16": _vgg(partial(vgg, (2, 2, 3, 3, 3)), frozen_until="features.16"),
    "vgg16_bn": _vgg(partial(vgg, (2, 2, 3, 3, 3), norm=True), frozen_until="features.23"),
    "vgg16_c": _vgg(partial(vgg, (2, 2, 3, 3, 3), pointwise=True), frozen_until="features.16"),
    "vgg19": _vgg(partial(vgg, (2, 2, 4, 4, 4)), frozen_until="features.18"),
    "vgg19_bn": _vgg(partial(vgg, (2, 2, 4, 4, 4), norm=True), frozen_until="features.26"),
    "xception": Variant(
        xception,
        partial(LinearHead, dropout=0.5),
        head_names={"fc": "fc"},
        frozen_until="block3",
        paper=_XCEPTION,
        forms={"keras": forms.pad_as_tensorflow},
    ),
}
