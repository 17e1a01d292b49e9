"""Files of torchvision and timm give their own features and logits in every network that they share with us."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from parity import difference, fill, without_weights
from safetensors.torch import save_file
from slow import mark_slow_except

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import VARIANTS, build, rebuild
from fieldmark.models.conversion.torch_names import timm_architectures
from fieldmark.models.published import IMAGENET_MEAN_STD, PUBLISHED_WEIGHTS

SIZES = {"inception": (107, 110), "vgg": (224, 224), "alexnet": (95, 130)}  # others 96 x 75, sides of both parities
IN_TORCHVISION = [name for name in VARIANTS if name in torchvision.models.list_models(torchvision.models)]
IN_TIMM = [(name, theirs) for name in VARIANTS for theirs in timm_architectures(name) if timm.is_model(theirs)]
FORMS = {  # those that are not ours; the others have the published form
    **{f"torchvision {name}": "torchvision" for name in IN_TORCHVISION if name.startswith("efficientnet")},
    **{f"timm {theirs}": "torchvision" for name, theirs in IN_TIMM if name == theirs and "efficientnet" in name},
    **{f"timm tf_mobilenetv3_{size}_100": "keras" for size in ("large", "small")},
    **{f"timm {theirs}": "timm" for name, theirs in IN_TIMM if name == theirs and name.startswith("se")},
}
PAIRS = [(name, "torchvision", name) for name in IN_TORCHVISION]
PAIRS += [(name, "timm", theirs) for name, theirs in IN_TIMM]
ONE_OF_EACH = [
    ("efficientnet_b0", "torchvision", "efficientnet_b0"),
    ("efficientnet_b0", "timm", "efficientnet_b0"),
    ("efficientnet_lite0", "timm", "efficientnet_lite0"),
    ("mobilenet_v2", "timm", "mobilenetv2_100"),
    ("mobilenet_v3_small", "timm", "mobilenetv3_small_100"),
    ("mobilenet_v3_small", "timm", "tf_mobilenetv3_small_100"),
    ("seresnet50", "timm", "seresnet50"),
    ("resnet18", "timm", "resnet18"),
]


@pytest.fixture
def double() -> Iterator[None]:
    """Networks in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def reference(library: str, name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # of initial weights that take long
        model = without_weights(
            lambda: torchvision.models.get_model(name) if library == "torchvision" else timm.create_model(name)
        )
    fill(model)
    return model


def test_the_libraries_share_all_these_with_us():
    assert len(IN_TORCHVISION) == 34 and len(IN_TIMM) == 69
    assert set(FORMS) <= {f"{library} {theirs}" for _, library, theirs in PAIRS}


@pytest.mark.parametrize("pair", mark_slow_except(ONE_OF_EACH, PAIRS), ids=" ".join)
@torch.no_grad()
def test_a_file_of_the_library_gives_its_logits(pair: tuple[str, str, str], tmp_path: Path, double: None):
    name, library, theirs = pair
    model = reference(library, theirs)
    torch.save(model.state_dict(), tmp_path / f"{theirs}.pth")
    ours = build(name, weights=tmp_path / f"{theirs}.pth").eval()
    assert ours.spec.form == FORMS.get(f"{library} {theirs}")
    x = torch.randn(1, 3, *next((size for key, size in SIZES.items() if key in name), (96, 75)))
    assert difference(ours(x), model(x)) < 1e-8
    again = rebuild(ours.spec).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x), ours(x))


@pytest.mark.parametrize("theirs", ["efficientnet_b0", "tf_efficientnet_b0"])
def test_a_config_beside_the_file_says_what_it_is(theirs: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_file(reference("timm", theirs).state_dict(), tmp_path / "model.safetensors")
    published = {"mean": [0.5, 0.5, 0.4], "std": [0.2, 0.5, 0.5], "interpolation": "bilinear"}
    published |= {"input_size": [3, 232, 232], "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": theirs, "pretrained_cfg": published}))
    network = build("efficientnet_b0", weights=tmp_path / "model.safetensors")
    assert network.spec.form == (None if theirs.startswith("tf_") else "torchvision")
    seen = network.preprocessing
    assert (seen.size, seen.crop, seen.interpolation) == (232, 0.9, "bilinear")
    assert (seen.mean, seen.std) == ((127.5, 127.5, 102.0), (51.0, 127.5, 127.5))
    assert not caplog.text


@pytest.mark.parametrize(
    "config", [None, "[1, 2", '{"architecture": "resnet50"}', '{"architecture": "efficientnet_b0"}']
)
def test_what_is_not_known_is_said(config: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_file(reference("timm", "efficientnet_b0").state_dict(), tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(config)
    network = build("efficientnet_b0", weights=tmp_path / "model.safetensors")
    assert network.spec.form is None
    assert "taken for tf_efficientnet_b0; if it is efficientnet_b0, let its name begin so" in caplog.text


def test_the_preprocessing_is_the_librarys(tmp_path: Path):
    for library, theirs, ours, interpolation in (
        ("torchvision", "efficientnet_b2", "efficientnet_b2", "bicubic"),
        ("timm", "seresnet50", "seresnet50", "bicubic"),
        ("timm", "mobilenetv2_100", "mobilenet_v2", "bicubic"),
        ("timm", "efficientnet_lite0", "efficientnet_lite0", "bicubic"),
    ):
        torch.save(reference(library, theirs).state_dict(), tmp_path / f"{theirs}.pth")
        seen = build(ours, weights=tmp_path / f"{theirs}.pth", classes=3).preprocessing
        assert (seen.mean, seen.std, seen.interpolation) == (*IMAGENET_MEAN_STD, interpolation)
        assert seen.size == (288 if theirs == "efficientnet_b2" else 224)


def test_a_bundles_weights_keep_form_and_preprocessing(tmp_path: Path):
    from fieldmark.models.state import save_state

    torch.save(reference("torchvision", "efficientnet_b0").state_dict(), tmp_path / "b0.pth")
    network = build("efficientnet_b0", weights=tmp_path / "b0.pth", classes=3)
    record = {"network": network.spec.to_dict(), "preprocessing": {"mean": [1, 2, 3], "std": [4, 5, 6]}}
    record["preprocessing"]["interpolation"] = "bilinear"
    save_state(tmp_path / "model.safetensors", network.state_dict(), record)
    again = build("efficientnet_b0", weights=tmp_path / "model.safetensors", classes=3)
    assert again.spec.form == "torchvision"
    assert (again.preprocessing.mean, again.preprocessing.std) == ((1, 2, 3), (4, 5, 6))
    record["network"]["form"] = "nobody"
    save_state(tmp_path / "model.safetensors", network.state_dict(), record)
    with pytest.raises(FieldmarkError, match="no form 'nobody'"):
        build("efficientnet_b0", weights=tmp_path / "model.safetensors", classes=3)


def test_our_own_files_are_as_before(tmp_path: Path):
    network = build("efficientnet_b0", classes=3)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    again = build("efficientnet_b0", weights=tmp_path / "own.safetensors", classes=3)
    assert again.spec.form is None and again.preprocessing == PUBLISHED_WEIGHTS["efficientnet_b0"].preprocessing
