"""What `Classifier.predict` takes in Python, and what it says about the rest."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction


@pytest.fixture(scope="module")
def classifier(small_run: Path) -> Classifier:
    return fieldmark.load(small_run)


@pytest.fixture
def photo(small_photos: Path) -> Path:
    return small_photos / "disc" / "00.jpg"


def pixels(photo: Path) -> np.ndarray:
    return np.asarray(Image.open(photo).convert("RGB"))


FROM_FILES: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "address": lambda path: path.as_uri(),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file in memory": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "PIL image that is not loaded": Image.open,
}
FROM_PIXELS: dict[str, Callable[[Path], Any]] = {
    "PIL image": lambda path: Image.open(path).convert("RGB"),
    "array": pixels,
    "RGBA": lambda path: np.dstack([pixels(path), np.full(pixels(path).shape[:2], 255, np.uint8)]),
    "array with other strides": lambda path: np.asfortranarray(pixels(path)),
}


@pytest.mark.parametrize("kind", FROM_FILES)
def test_one_image_has_one_prediction(kind: str, classifier: Classifier, photo: Path, request: pytest.FixtureRequest):
    def make(path: Path) -> Any:
        made = FROM_FILES[kind](path)
        if hasattr(made, "close"):
            request.addfinalizer(made.close)
        return made

    expected = replace(classifier.predict([photo])[0], path="")
    prediction = classifier.predict(make(photo))
    assert isinstance(prediction, Prediction) and replace(prediction, path="") == expected  # to the bit
    many = classifier.predict([make(photo), make(photo)])
    assert [replace(each, path="") for each in many] == [expected, expected]
    probabilities = classifier.predict_proba(make(photo))
    assert probabilities.shape == (3,) and probabilities.max() == pytest.approx(expected.confidence)


@pytest.mark.parametrize("kind", FROM_PIXELS)
def test_pixels_are_predicted_as_a_file_without_loss(kind: str, classifier: Classifier, photo: Path, tmp_path: Path):
    Image.open(photo).convert("RGB").save(tmp_path / "same.png")
    expected = classifier.predict(tmp_path / "same.png")
    source = FROM_PIXELS[kind](photo)
    before = np.array(source)
    prediction: Any = classifier.predict(source)
    assert replace(prediction, path="") == replace(expected, path="")
    assert np.array_equal(np.array(source), before)  # and stay as they are


def test_grey_and_16_bit_arrays_and_upright_photos(classifier: Classifier, photo: Path, tmp_path: Path):
    grey = np.asarray(Image.open(photo).convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = replace(classifier.predict(tmp_path / "grey.png"), path="")
    for array in (grey, grey[:, :, None], grey.astype(np.uint16) * 257):
        assert classifier.predict(array) == expected
    turned = Image.open(photo).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a viewer
    turned.save(tmp_path / "turned.png", exif=exif)
    loaded = Image.open(tmp_path / "turned.png")
    loaded.load()
    file = classifier.predict(tmp_path / "turned.png")
    assert replace(classifier.predict(loaded), path="") == replace(file, path="")


def test_several_images_have_a_list(classifier: Classifier, small_photos: Path):
    paths = sorted(small_photos.glob("disc/*.jpg"))[:3]
    expected = [classifier.predict(path) for path in paths]
    for several in (paths, tuple(paths), iter(paths), (path for path in paths), pandas.Series(list(map(str, paths)))):
        assert classifier.predict(several) == expected
    assert classifier.predict(np.array(list(map(str, paths)))) == expected
    assert classifier.predict(small_photos / "disc")[:3] == expected
    assert classifier.predict(paths[:1]) == expected[:1] and classifier.predict([]) == []
    probabilities = classifier.predict_proba(paths)
    assert probabilities.shape == (3, 3) and probabilities.dtype == np.float32
    assert [classifier.classes[k] for k in probabilities.argmax(1)] == [each.label for each in expected]
    assert classifier.predict_proba([]).shape == (0, 3)


def closed_image(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file)


class WriteOnly(io.RawIOBase):
    """As a file that was opened by "wb"."""

    def read(self, size: int = -1) -> bytes:
        raise io.UnsupportedOperation("read")


class Broken(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


WRONG: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "float array": (lambda path: pixels(path) / 255, TypeError, r"array of float64 .*uint8"),
    "batch": (lambda path: pixels(path)[None], ValueError, r"a batch: give list\(array\)"),
    "channels first": (lambda path: pixels(path).transpose(2, 0, 1), ValueError, r"transpose\(1, 2, 0\)"),
    "empty array": (lambda path: np.zeros((0, 4, 3), np.uint8), ValueError, "empty"),
    "array of names in two dimensions": (lambda path: np.array([[str(path)]]), TypeError, "is not taken"),
    "array of objects": (lambda path: np.array([path, None, 3], object), TypeError, "NoneType is not taken"),
    "array of int64": (lambda path: pixels(path).astype(np.int64), TypeError, r"array of int64 .*uint8"),
    "array of bool": (lambda path: pixels(path) > 99, TypeError, r"array of bool .*uint8"),
    "two channels": (lambda path: pixels(path)[..., :2], ValueError, r"\(height, width, 3\)"),
    "a number as an array": (lambda path: np.array(3, np.uint8), ValueError, "is no image"),
    "empty PIL image": (lambda path: Image.new("RGB", (0, 4)), ValueError, "an image of 0 x 4 pixels is empty"),
    "PIL image of NaN": (lambda path: Image.fromarray(np.full((9, 9), np.nan, "f4")), ValueError, "known scale"),
    "closed PIL image": (closed_image, ValueError, "cannot be predicted: damaged"),
    "no bytes": (lambda path: b"", ValueError, "cannot be predicted: empty file"),
    "no name": (lambda path: "", ValueError, "cannot be predicted: not a file"),
    "name with a zero": (lambda path: "a\0.jpg", ValueError, "null byte"),
    "file open for writing": (lambda path: WriteOnly(), ValueError, "cannot be predicted: cannot be read"),
    "file on a broken disk": (lambda path: Broken(), ValueError, "cannot be predicted: cannot be read: .*error"),
    "unknown scheme": (lambda path: "nosuch://a/b.jpg", ValueError, "nosuch:// is not known"),
    "address of this machine": (
        lambda path: "http://127.0.0.1:9/a.jpg",
        ValueError,
        "cannot be predicted: leads to this machine or its own network",
    ),
    "tensor": (lambda path: torch.zeros(3, 8, 8), TypeError, "Tensor is not taken"),
    "number": (lambda path: 3, TypeError, "int is not taken: give a path"),
    "None": (lambda path: None, TypeError, "NoneType is not taken"),
    "mapping": (lambda path: {"a": path}, TypeError, "dict is not taken"),
    "text file": (lambda path: io.StringIO("text"), TypeError, "binary mode"),
    "no image": (lambda path: b"no image", ValueError, "cannot be predicted: not a photo"),
    "missing file": (lambda path: path / "none.jpg", ValueError, "cannot be predicted"),
    "missing text": (lambda path: "none.jpg", ValueError, "none.jpg cannot be predicted: no such file"),
    "missing address": (lambda path: (path.parent / "none.jpg").as_uri(), ValueError, "none.jpg cannot be predicted"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_ends_in_one_line(kind: str, classifier: Classifier, photo: Path):
    make, error, message = WRONG[kind]
    for predict in (classifier.predict, classifier.predict_proba):
        with pytest.raises(error, match=message) as raised:
            predict(make(photo))
        assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_a_row_among_others(classifier: Classifier, photo: Path):
    good, bad, last = classifier.predict([photo, Broken(), photo])
    assert good == last and good.error is None
    assert bad.error == "cannot be read: [Errno 5] Input/output error"


def test_an_error_of_a_generator_is_its_own(classifier: Classifier, photo: Path):
    def images():
        yield photo
        raise RuntimeError("mine")

    for predict in (classifier.predict, classifier.predict_proba):
        with pytest.raises(RuntimeError, match="mine"):
            predict(images())
    stream = classifier.stream(photo for _ in range(20))
    assert next(stream).label
    stream.close()  # type: ignore[attr-defined]


def test_bytes_in_the_other_order_are_the_same_image(classifier: Classifier):
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    assert classifier.predict(deep.astype(">u2")) == classifier.predict(deep)


def test_a_closed_file_is_named(classifier: Classifier, photo: Path):
    with photo.open("rb") as file:
        pass
    with pytest.raises(ValueError, match="the file is closed"):
        classifier.predict(file)


def test_probabilities_of_several_need_all_of_them(classifier: Classifier, photo: Path):
    with pytest.raises(ValueError, match=r"none.jpg cannot be predicted: no such file"):
        classifier.predict_proba([photo, "none.jpg"])


def test_features_come_from_the_network(classifier: Classifier, small_run: Path, small_photos: Path, tmp_path: Path):
    paths = sorted(small_photos.glob("*/*.jpg"))[:20:9]
    features = classifier.embed(paths)
    assert features.shape[0] == 3 and features.dtype == np.float32
    np.testing.assert_allclose(classifier.embed(paths[0]), features[0])
    module: Any = fieldmark.load_module(small_run)
    size, mean, std = (getattr(module.preprocessing, name) for name in ("size", "mean", "std"))
    assert features.shape[1] == list(module.backbone.stages.values())[-1] and size > 0 and len(mean) == len(std) == 3
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((small_run / "bundle" / "model.onnx").read_bytes())
    with pytest.raises(FieldmarkError, match="features need a run or its bundle"):
        fieldmark.load(alone).embed(paths)


def test_a_prediction_shows_itself_in_a_notebook(classifier: Classifier, photo: Path):
    html = classifier.predict(photo)._repr_html_()
    assert "disc" in html and "<table>" in html and "http" not in html
    assert "&lt;b&gt;" in Prediction("<b>", error="x")._repr_html_()
