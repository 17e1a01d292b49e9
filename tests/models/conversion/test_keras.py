"""Files of Keras give what Keras gives: its answers kept in a file, and, where Keras is installed, its own."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_reference import CASES, CLASSES, FILE, IN_FILE, answer, arrays_of, make, pixels, write_legacy, write_numbered
from slow import mark_slow_except

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import VARIANTS, Network, build
from fieldmark.models.conversion.keras import KERAS_NETWORKS, find_mean_std

h5py = pytest.importorskip("h5py", reason="h5py is not installed (the extra keras)")
REFERENCE = json.loads(FILE.read_text())


@pytest.fixture
def double() -> Iterator[None]:
    """Networks in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def logits(network: Network, size: int) -> np.ndarray:
    """The logits for the test pixels under the network's own preprocessing."""
    row = network.preprocessing
    x = (pixels(size) - np.array(row.mean)) / np.array(row.std)
    return network.eval()(torch.from_numpy(x).permute(0, 3, 1, 2).to(next(network.parameters()).dtype)).numpy()


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a part of the largest value."""
    assert found.shape == expected.shape and expected.std() > 1e-3
    return abs(found - expected).max() / abs(expected).max()


@pytest.fixture
def b0(tmp_path: Path) -> Path:
    """A file of Keras' EfficientNet-B0."""
    write_legacy(tmp_path / "b0.h5", arrays_of(REFERENCE["efficientnet_b0"]["layers"]))
    return tmp_path / "b0.h5"


def test_every_network_that_keras_shares_with_us():
    assert set(KERAS_NETWORKS) == set(CASES) <= set(VARIANTS)
    assert set(REFERENCE) == set(IN_FILE)


FAST = {"resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "inception_v3", "xception"}


@pytest.mark.parametrize("name", mark_slow_except(FAST, IN_FILE))
def test_the_older_layout_gives_keras_logits(name: str, tmp_path: Path, double: None):
    arrays = arrays_of(REFERENCE[name]["layers"])
    write_legacy(tmp_path / "w.h5", arrays)
    network = build(name, weights=tmp_path / "w.h5", classes=CLASSES)
    assert difference(logits(network, CASES[name].size), np.array(REFERENCE[name]["logits"])) < 1e-8
    write_legacy(tmp_path / "nested.h5", arrays, group="model")
    again = build(name, weights=tmp_path / "nested.h5", classes=CLASSES)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in again.state_dict().items())


@pytest.mark.parametrize("name", mark_slow_except({"xception"}, ["xception", "inception_v3"]))
def test_the_layout_of_keras_3_gives_the_same(name: str, tmp_path: Path):
    arrays = arrays_of(REFERENCE[name]["layers"])
    write_legacy(tmp_path / "w.h5", arrays)
    write_numbered(tmp_path / "w.weights.h5", arrays)
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.write(tmp_path / "w.weights.h5", "model.weights.h5")
    states = [
        build(name, weights=tmp_path / file, classes=CLASSES).state_dict()
        for file in ("w.h5", "w.weights.h5", "w.keras")
    ]
    assert all(torch.equal(state[key], tensor) for state in states for key, tensor in states[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")  # those of Keras itself
def test_keras_itself(name: str, tmp_path: Path, double: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed (pip install keras h5py)")
    keras.utils.clear_session()
    case = CASES[name]._replace(size=227) if name.startswith("vgg") else CASES[name]  # 7 x 7 maps before its head
    model = make(case)
    expected = answer(case, model)
    for suffix in (".h5", ".weights.h5", ".keras"):
        path = tmp_path / f"w{suffix}"
        model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
        network = build(name, weights=path, classes=CLASSES)
        assert difference(logits(network, case.size), expected) < 1e-8, suffix
        path.unlink()


def test_names_of_earlier_versions(tmp_path: Path, double: None):
    """ResNet-50 as in Keras 1 and 2.0: `res2a_branch2a_W:0`, `bn2a_branch2a_running_std:0`."""

    def old(name: str) -> str:
        layer, kind = name.split("/")
        words = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
        if layer in ("conv1_conv", "conv1_bn"):
            layer = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[layer]
        elif layer.startswith("conv"):
            stage, block, number, kind_of_layer = layer.removeprefix("conv").replace("block", "").split("_")
            branch = "1" if number == "0" else "2" + "abc"[int(number) - 1]
            layer = f"{'res' if kind_of_layer == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_branch{branch}"
        else:
            layer = "fc1000"
        return f"{layer}/{layer}_{words.get(kind, kind)}"

    arrays = {old(name): array for name, array in arrays_of(REFERENCE["resnet50"]["layers"]).items()}
    layers: dict[str, list[str]] = {}
    for name in arrays:
        layers.setdefault(name.split("/")[0], []).append(name)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names0"], file.attrs["layer_names1"] = (
            [layer.encode() for layer in [*layers][:9]],
            [*layers][9:],
        )
        for layer, names in layers.items():
            short = [name.split("/")[1] for name in names]
            file.create_group(layer).attrs["weight_names"] = [f"{name}:0".encode() for name in short]
            for name, key in zip(short, names, strict=True):
                file[layer].create_dataset(f"{name}:0", data=arrays[key])
    network = build("resnet50", weights=tmp_path / "old.h5", classes=CLASSES)
    expected = np.array(REFERENCE["resnet50"]["logits"])
    assert difference(logits(network, CASES["resnet50"].size), expected) < 1e-8


def test_vgg_flattens_with_channels_last(tmp_path: Path):
    """One image's 7x7 maps through the first fully connected layer, as Keras does it."""
    from fieldmark.models.conversion.keras import _linear

    maps, kernel = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 6, 7, 7), (7 * 7 * 6, 4)))
    torch.testing.assert_close(
        maps.flatten(1) @ _linear(kernel, first=True).T, maps.permute(0, 2, 3, 1).flatten(1) @ kernel
    )


def test_efficientnets_normalization_is_the_files_own():
    published = {"mean": [0.485, 0.456, 0.406], "variance": [0.229, 0.224, 0.225]}  # Keras divides by the roots twice
    arrays = {f"normalization/{kind}": torch.tensor(values) for kind, values in published.items()}
    mean, std = find_mean_std("efficientnet_b0", arrays)
    assert mean == pytest.approx((123.675, 116.28, 103.53)) and std == pytest.approx((58.395, 57.12, 57.375))
    own = {"normalization/mean": torch.full((3,), 0.5), "normalization/variance": torch.full((3,), 0.04)}
    mean, std = find_mean_std("efficientnet_b0", own)
    assert mean == pytest.approx((127.5,) * 3) and std == pytest.approx((51.0,) * 3)
    assert find_mean_std("efficientnet_b0", {}) == ((0.0,) * 3, (255.0,) * 3)


def test_another_class_layer_and_none(tmp_path: Path):
    arrays = arrays_of(REFERENCE["mobilenet_v2"]["layers"])
    renamed = {name.replace("predictions/", "dense_7/"): array for name, array in arrays.items()}
    write_legacy(tmp_path / "w.h5", renamed)
    network = build("mobilenet_v2", weights=tmp_path / "w.h5", classes=CLASSES)
    expected = torch.from_numpy(arrays["predictions/kernel"].T).float()
    assert torch.equal(network.head.classifier.weight, expected)
    write_legacy(tmp_path / "notop.h5", {k: a for k, a in arrays.items() if not k.startswith("predictions")})
    assert build("mobilenet_v2", weights=tmp_path / "notop.h5", classes=4, after="-1:se").spec.form == "keras"


def refused(path: Path, name: str = "efficientnet_b0") -> str:
    with pytest.raises(FieldmarkError) as caught:
        build(name, weights=path, classes=CLASSES)
    assert "\n" not in str(caught.value) and str(path.name) in str(caught.value)
    return str(caught.value)


def test_networks_that_do_not_fit(b0: Path, tmp_path: Path):
    assert "keras.applications has no resnet18" in refused(b0, "resnet18")
    line = refused(b0, "efficientnet_b1")
    assert "-blocks.0.1.conv_dw.weight" in line and "more" in line
    assert "+stem_conv/kernel" in refused(b0, "resnet50")


def test_damaged_files(b0: Path, tmp_path: Path):
    content = b0.read_bytes()
    for number, part in enumerate((b"", bytes(range(256)), content[: len(content) // 2])):
        (tmp_path / f"{number}.h5").write_bytes(part)
        assert "cannot be read" in refused(tmp_path / f"{number}.h5")
        (tmp_path / f"{number}.keras").write_bytes(part)
        assert "cannot be read" in refused(tmp_path / f"{number}.keras")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["x"] = [1.0]
    assert "has no weights of Keras" in refused(tmp_path / "none.h5")


def test_nothing_is_read_from_elsewhere(b0: Path, tmp_path: Path):
    kernel = "stem_conv/stem_conv/kernel:0"
    links: dict[str, Any] = {"external": h5py.ExternalLink("b0.h5", kernel), "soft": h5py.SoftLink("/top_bn")}
    for kind, link in links.items():
        (tmp_path / f"{kind}.h5").write_bytes(b0.read_bytes())
        with h5py.File(tmp_path / f"{kind}.h5", "a") as file:
            del file[kernel]
            file[kernel] = link
        assert "a link, which is not followed" in refused(tmp_path / f"{kind}.h5")
    (tmp_path / "secret").write_bytes(bytes(4096))
    (tmp_path / "raw.h5").write_bytes(b0.read_bytes())
    with h5py.File(tmp_path / "raw.h5", "a") as file:
        shape = file[kernel].shape
        del file[kernel]
        file.create_dataset(kernel, shape, "f4", external=[(str(tmp_path / "secret"), 0, 4096)])
    assert "more values than it holds" in refused(tmp_path / "raw.h5")


def test_huge_shapes_take_no_memory(b0: Path, tmp_path: Path):
    with h5py.File(b0, "a") as file:
        del file["stem_conv/stem_conv/kernel:0"]
        file["stem_conv"].create_dataset("stem_conv/kernel:0", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    assert "more values than it holds" in refused(b0)
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 24))
    assert "which no file of Keras has" in refused(tmp_path / "bomb.keras")


def test_without_h5py(b0: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert "pip install 'fieldmark[keras]'" in refused(b0)
