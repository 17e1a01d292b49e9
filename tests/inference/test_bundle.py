"""A bundle gives back the network, says clearly when it cannot, and holds nothing that runs code."""

import hashlib
import io
import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.core import io as records
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import Normalize
from fieldmark.data.image import preprocess
from fieldmark.inference import bundle
from fieldmark.inference.bundle import BundleInfo
from fieldmark.inference.classifier import Classifier


@pytest.fixture(scope="module")
def copy(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to damage; a test puts back what it broke."""
    return Path(shutil.copytree(small_run / "bundle", tmp_path_factory.mktemp("copy") / "bundle"))


def refused(path: Path, what: Any = Classifier) -> str:
    with pytest.raises(FieldmarkError) as caught:
        what(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_metadata(file: Path, value: str | None) -> None:
    model = onnx.load(file)
    del model.metadata_props[:]
    if value is not None:
        model.metadata_props.append(onnx.StringStringEntryProto(key="fieldmark", value=value))
    onnx.save(model, file)


def test_the_network_gives_the_logits_of_the_onnx(small_run: Path, small_photos: Path):
    network, info, classifier = bundle.load_network(small_run), bundle.read_info(small_run), Classifier(small_run)
    assert not network.training
    normalise = Normalize(tuple(info.preprocessing["mean"]), tuple(info.preprocessing["std"]))
    for file in sorted(small_photos.glob("*/0[0-4].jpg")):
        photo = preprocess(file, info.preprocessing)
        with torch.inference_mode():
            logits = network(normalise(torch.from_numpy(photo)[None].permute(0, 3, 1, 2)))[0].numpy()
        np.testing.assert_allclose(logits, classifier.infer(photo)["logits"], rtol=0, atol=1e-5)


def test_the_json_says_what_the_onnx_says(small_run: Path):
    info = bundle.read_info(small_run)
    assert info == bundle.read_info(small_run / "bundle") == Classifier(small_run).info
    assert info.classes == ["cross, blue", "disc", "square"]
    assert info.format == bundle.FORMAT_VERSION
    assert info.preprocessing["size"] == 64
    assert info.to_dict() == json.loads((small_run / "bundle" / "bundle.json").read_text())
    assert (info.versions or {}).keys() >= {"fieldmark", "pillow", "onnxruntime"}
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert info.fingerprint == metrics["fingerprint"]


def test_the_identifier_follows_from_all_that_decides_a_prediction(small_run: Path, tmp_path: Path):
    info, network, scorer = (
        bundle.read_info(small_run),
        bundle.load_network(small_run),
        bundle.load_ood_scorer(small_run),
    )
    assert re.fullmatch("[0-9a-f]{12}", info.model or "")

    def identify(**changed: Any) -> str | None:
        return bundle.save(tmp_path, replace(info, **changed), network, scorer).model

    assert identify() == identify(versions={}, fingerprint="other", model=None, extra={"later": 1}) == info.model
    assert json.loads((tmp_path / "bundle.json").read_text())["model"] == info.model
    others = [
        identify(classes=info.classes[::-1]),
        identify(temperature=info.temperature + 0.1),
        identify(threshold=info.threshold + 0.1),
        identify(preprocessing={**info.preprocessing, "crop": 0.5}),
    ]
    for module in (network, scorer):
        next(iter(module.state_dict().values())).view(-1)[0] += 1
        others.append(identify())
    assert len({info.model, *others}) == 7


def test_predictions_name_the_model(small_run: Path, small_photos: Path, tmp_path: Path):
    photo = next(small_photos.glob("*/*.jpg"))
    model = bundle.read_info(small_run).model
    assert [Classifier(small_run / part).predict(photo).model for part in (".", "bundle")] == [model, model]
    older = tmp_path / "model.onnx"
    shutil.copy(small_run / "bundle" / "model.onnx", older)
    with_metadata(older, json.dumps(replace(bundle.read_info(small_run), model=None).to_dict()))
    named = Classifier(older).predict(photo).model
    assert named == hashlib.sha256(older.read_bytes()).hexdigest()[:12] != model


@settings(max_examples=30)
@given(name=st.text(st.characters(blacklist_categories=()), min_size=1))
def test_any_class_name_comes_back(name: str, small_run: Path, tmp_path: Path):
    shutil.copy(small_run / "bundle" / "model.onnx", tmp_path)
    info = replace(bundle.read_info(small_run), classes=[name, "other"])
    records.write_json(tmp_path / "bundle.json", info.to_dict())
    assert bundle.read_info(tmp_path) == info


def test_a_later_version_is_refused(copy: Path):
    info = bundle.read_info(copy)
    kept = {file: (copy / file).read_bytes() for file in ("bundle.json", "model.onnx")}
    later = info.to_dict() | {"format": 99}
    (copy / "bundle.json").write_text(json.dumps(later))
    with_metadata(copy / "model.onnx", json.dumps(later))
    for what in (Classifier, bundle.read_info, bundle.load_network):
        said = refused(copy, what)
        assert "a later Fieldmark" in said and "install that one" in said and "99" in said
    for name, content in kept.items():
        (copy / name).write_bytes(content)
    assert bundle.read_info(copy) == info


@pytest.mark.parametrize("key", [*bundle.REQUIRED_KEYS, "format"])
def test_missing_keys_are_refused(key: str, copy: Path, small_run: Path):
    data = bundle.read_info(small_run).to_dict()
    for damaged in ({k: v for k, v in data.items() if k != key}, data | {key: None}):
        with pytest.raises(FieldmarkError):
            BundleInfo.from_dict(damaged, "x")
    later = data | {"added later": [1]}
    assert BundleInfo.from_dict(later, "x").to_dict() == later, "keys of later versions are passed on"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"format": "1"}', b'{"format": 1}']
)
def test_damaged_json(content: bytes, copy: Path):
    whole = (copy / "bundle.json").read_bytes()
    (copy / "bundle.json").write_bytes(content)
    refused(copy, bundle.read_info)
    refused(copy, bundle.load_network)
    (copy / "bundle.json").unlink()
    refused(copy, bundle.read_info)
    (copy / "bundle.json").write_bytes(whole)


@pytest.mark.parametrize("value", [None, "", "{", "[]", "null", '{"format": 1}'])
def test_damaged_metadata(value: str | None, copy: Path):
    whole = (copy / "model.onnx").read_bytes()
    with_metadata(copy / "model.onnx", value)
    said = refused(copy)
    (copy / "model.onnx").write_bytes(whole)
    assert "model.onnx" in said


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_files(name: str, part: float, copy: Path):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: int(len(whole) * part)])
    said = refused(copy, Classifier if name == "model.onnx" else bundle.load_network)
    (copy / name).write_bytes(whole)
    assert name in said and "damaged" in said


@settings(max_examples=30)
@given(content=st.binary(max_size=300))
def test_rubbish_is_no_model(content: bytes, tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(content)
    refused(tmp_path)
    refused(tmp_path / "model.onnx")


def test_weights_of_another_network(copy: Path):
    whole = (copy / "bundle.json").read_bytes()
    info = json.loads(whole)
    for words in ({"backbone": "resnet18"}, {"backbone": "none of these"}, {"surplus": 1}, {"classes": 9}):
        records.write_json(copy / "bundle.json", info | {"network": info["network"] | words})
        refused(copy, bundle.load_network)
    records.write_json(copy / "bundle.json", info | {"network": {}})
    refused(copy, bundle.load_network)
    (copy / "bundle.json").write_bytes(whole)
    weights = copy / "model.safetensors"
    weights.rename(copy / "away")
    refused(copy, bundle.load_network)
    (copy / "away").rename(weights)
    bundle.load_network(copy)


# ---- nothing in a run is a pickle


def looks_pickled(content: bytes) -> bool:
    """A pickle of protocol 2 or later, or a zip with one in it, as torch.save writes."""
    if content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content.rstrip(b"\0")[-1:] == b".":
        return True
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(name.endswith(".pkl") or looks_pickled(archive.read(name)) for name in archive.namelist())
    return False


def test_the_look_for_pickles_sees_them():
    for zipped in (True, False):
        saved = io.BytesIO()
        torch.save({"x": torch.zeros(2)}, saved, _use_new_zipfile_serialization=zipped)
        assert zipfile.is_zipfile(saved) == zipped
        assert looks_pickled(saved.getvalue()) or not zipped
        assert b"ctorch._utils" in saved.getvalue() or zipped


def test_nothing_in_a_run_is_a_pickle(small_run: Path):
    files = [file for file in small_run.rglob("*") if file.is_file()]
    assert {"model.safetensors", "model.onnx", "bundle.json", "checkpoint.safetensors"} <= {f.name for f in files}
    for file in files:
        content = file.read_bytes()
        assert not looks_pickled(content), file
        assert b"ctorch._utils" not in content and b"cnumpy" not in content, file
        assert file.suffix not in (".pt", ".pth", ".pkl", ".ckpt", ".bin"), file
        if file.suffix == ".npy":
            np.load(file, allow_pickle=False)
