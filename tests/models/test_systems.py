"""Every network of the five systems is a line of words, with the weights that their write-ups count."""

import pytest
import torch

from fieldmark.models import build

TAIL = "hidden=1000,dropout=0.25"
# Words, classes, channels, pixels; weights where the write-up tells them.
SYSTEMS = {
    "1": ("se_inception_resnet_v2", 6, 3, 96, 51_833_286),
    "2 AlexNet": ("alexnet_2012", 1000, 3, 227, 62_378_344),
    "2 AlexNet, grey": ("alexnet_2012", 10, 1, 227, 58_299_082),
    "2 VGG, configuration C": ("vgg16_c", 1000, 3, 224, 133_638_952),
    "2 VGG for MNIST": ("vgg11_mnist", 10, 1, 28, 16_230_346),
    "2 Inception-v3, auxiliary": ("inception_v3+aux=true", 1000, 3, 299, 27_161_264),
    "2 ResNet-18, small": ("resnet18_small", 100, 3, 32, 11_223_140),
    "3 VGG16": ("vgg16+head=linear(hidden=1024,hidden_dropout=0.5)", 200, 3, 300, None),
    "3 EfficientNet-B4": ("efficientnet_b4+head=linear(hidden=1024,dropout=0.0,hidden_dropout=0.5)", 200, 3, 224, None),
    "3 B3, mask": (f"efficientnet_b3+after=-1:mask(norm=True)+head=linear({TAIL})", 200, 3, 224, None),
    "3 B3, rescaled": (f"efficientnet_b3+after=-1:mask(norm=True,rescale=True)+head=linear({TAIL})", 200, 3, 224, None),
    "3 B3, SE": (f"efficientnet_b3+after=-1:se(ratio=8,norm=True)+head=linear({TAIL})", 200, 3, 224, None),
    "3 B3, CBAM": (f"efficientnet_b3+after=-1:cbam(ratio=8,norm=True)+head=linear({TAIL})", 200, 3, 224, None),
    "3 B3, self-product": (
        f"efficientnet_b3+after=-1:mask(norm=True,spread=True)+head=self_product({TAIL})", 200, 3, 256, None,
    ),
    "3 bilinear VGG16": ("vgg16+head=bilinear(hidden=1024)", 200, 3, 300, 283_356_168),
    "4": ("resnext50_32x4d", 4, 3, 224, None),
    "5 DenseNet-121": ("densenet121+after=-1:se(squeezed=16)", 2, 3, 224, 6_989_714),
    "5 DenseNet-169": ("densenet169+after=-1:se(squeezed=16)", 2, 3, 224, 12_542_738),
    "5 DenseNet-201": ("densenet201+after=-1:se(squeezed=16)", 2, 3, 224, 18_160_146),
}  # fmt: skip


@pytest.mark.parametrize("row", SYSTEMS)
def test_it_is_a_line_of_words(row: str):
    words, classes, channels, size, weights = SYSTEMS[row]
    with torch.device("meta"):
        network = build(words, classes=classes, channels=channels).eval()
        assert network(torch.empty(2, channels, size, size)).shape == (2, classes)
    if weights:
        assert sum(parameter.numel() for parameter in network.parameters()) == weights


@torch.no_grad()
def test_the_masked_self_product_by_hand():
    """Row 3: the map after its BN times a mask that is spread over the channels, times itself, averaged."""
    network = build("resnet18+after=-1:mask(norm=True,widths=(),dropout=0.0,spread=True)+head=self_product", classes=2)
    network = network.eval()
    x = torch.randn(1, 3, 64, 64)
    before = network.backbone.split_after("layer4")[0](x)
    mask = network.backbone.get_submodule("after_layer4")
    norm, gate, spread = (mask.get_submodule(name) for name in ("norm", "gate", "spread"))
    normed = (before - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()  # type: ignore[index, operator]
    opening = torch.sigmoid((normed * gate.weight[0]).sum(1, keepdim=True) + gate.bias)  # type: ignore[operator, index]
    masked = normed * opening * spread.weight.view(1, -1, 1, 1)  # type: ignore[operator, union-attr]
    vector = masked.square().mean((2, 3))
    expected = vector @ network.head.classifier.weight.T + network.head.classifier.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
