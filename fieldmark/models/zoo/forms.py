"""Forms of networks: what another library has differently and no weight shows, such as a stride or a padding.

Each function changes a backbone in place; `Variant.forms` names those of a network.
"""

from torch import nn

from fieldmark.models.backbone import Backbone
from fieldmark.models.layers import SameConv2d, SameMaxPool2d


def pad_symmetrically(backbone: Backbone) -> None:
    """Zeros on both sides of every convolution (torchvision's EfficientNet), not TensorFlow's "SAME" padding."""
    for module in backbone.modules():
        if isinstance(module, SameConv2d):
            module.symmetric = True


def pad_as_tensorflow(backbone: Backbone) -> None:
    """TensorFlow's "SAME" padding of convolutions and max pools with a stride (Keras' MobileNets and Xception)."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.padding != (0, 0):
            same = SameConv2d(module.in_channels, module.out_channels, module.kernel_size[0], 2, module.groups)
            same.weight = module.weight
            backbone.set_submodule(name, same)
        elif isinstance(module, nn.MaxPool2d):
            backbone.set_submodule(name, SameMaxPool2d())


def average_inside(backbone: Backbone) -> None:
    """Average pools that do not count the padding (Keras' Inception-v3)."""
    for module in backbone.modules():
        if isinstance(module, nn.AvgPool2d):
            module.count_include_pad = False


def stride_first(backbone: Backbone) -> None:
    """The stride of a bottleneck at its first 1x1 convolution: v1 of the ResNet paper, as in Keras and Caffe."""
    for module in backbone.modules():
        first, second = (getattr(module, name, None) for name in ("conv1", "conv2"))
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and second.stride != (1, 1):
            first.stride, second.stride = second.stride, first.stride


def senet_of_timm(backbone: Backbone) -> None:
    """The stride at the 3x3 convolution and a padded pool: timm's SE-ResNet, which is not the authors' (its legacy)."""
    backbone.set_submodule("pool0", nn.MaxPool2d(3, 2, 1))
    for module in backbone.modules():
        first, second = (getattr(module, name, None) for name in ("conv1", "conv2"))
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and first.kernel_size == (1, 1):
            first.stride, second.stride = (1, 1), max(first.stride, second.stride)
