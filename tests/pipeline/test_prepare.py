"""Audit, pack and split of a run: made once, taken up when whole, refused when the photos have changed."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from fieldmark.audit import audit
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.cache import pack
from fieldmark.data.image import preprocess as decoded
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline import prepare as module
from fieldmark.pipeline.prepare import PreparedData, load_prepared_data, prepare_data
from fieldmark.recipes.recipe import Recipe

LOOK = {"size": 56, "crop": 0.875, "interpolation": "bilinear", "fit": "squash"}


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(small_photos, tmp_path / "photos")
    (copy / "disc" / "00.jpg").write_bytes(b"no photo")
    return copy


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Grows by the file's bytes with every photo that the audit decodes."""
    whole, seen = audit.decode, []
    monkeypatch.setattr(audit, "decode", lambda content, *a, **how: seen.append(content) or whole(content, *a, **how))
    return seen


def equal(one: PreparedData, other: PreparedData) -> bool:
    """The same photos with the same labels on the same sides, and the same findings."""
    sides = all(
        np.array_equal(getattr(one.data, f.name), getattr(other.data, f.name))
        for f in dataclasses.fields(one.data)
        if f.name != "images"
    )
    pixels = all(np.array_equal(one.data.images[k], other.data.images[k]) for k in range(len(one.data.images)))
    found = [dataclasses.replace(table.audit, folder="") for table in (one, other)]
    return (
        sides and pixels and found[0] == found[1] and (one.classes, one.test_paths) == (other.classes, other.test_paths)
    )


def made(photos: Path, out: Path, stream: bool = False) -> PreparedData:
    (out / "resume").mkdir(parents=True, exist_ok=True)
    return prepare_data(read_catalog(photos), LOOK, Recipe(stream=stream), out, Reporter())


def test_sides_labels_and_pixels_belong_together(photos: Path, tmp_path: Path):
    table = made(photos, tmp_path / "run")
    data = table.data
    together = np.concatenate([data.train, data.val, data.test])
    assert sorted(together) == list(range(47)) and len(table.test_paths) == len(data.test)
    for k, path in zip(data.test, table.test_paths, strict=True):
        assert table.classes[data.labels[k]] == path.split("/")[0]
        h, w = data.images[k].shape[:2]
        top, left = (h - 56) // 2, (w - 56) // 2
        assert np.array_equal(data.images[k][top : top + 56, left : left + 56], decoded(photos / path, LOOK))
    assert table.audit.report.unreadable[0].path == "disc/00.jpg"


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_taken_up_without_reading_a_photo(
    stream: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = made(photos, tmp_path / "run", stream)
    monkeypatch.setattr(module, "audit_catalog", None)
    for again in (made(photos, tmp_path / "run", stream), load_prepared_data(tmp_path / "run", Recipe(stream=stream))):
        assert equal(again, first)


def test_a_stream_is_the_same_photos_and_keeps_none(photos: Path, tmp_path: Path, cached: Path):
    kept, streamed = made(photos, tmp_path / "kept"), made(photos, tmp_path / "streamed", stream=True)
    files = {file.name for file in (tmp_path / "streamed" / "resume").iterdir()}
    assert equal(kept, streamed) and files == {"packed.json", "streamed.json"}
    assert pack.has_record(tmp_path / "streamed" / "resume")
    pack.delete_record(tmp_path / "streamed" / "resume")
    assert not pack.has_record(tmp_path / "streamed" / "resume")


def test_a_photo_that_is_gone_from_a_stream_is_named(photos: Path, tmp_path: Path):
    table = made(photos, tmp_path / "run", stream=True)
    (photos / "disc" / "01.jpg").unlink()
    with pytest.raises(FieldmarkError, match=r"disc/01.jpg in .* cannot be read any more .*: restore it"):
        [table.data.images[k] for k in range(len(table.data.images))]


def test_a_second_run_decodes_nothing_but_what_has_changed(photos: Path, tmp_path: Path, decodings: list[bytes]):
    first = made(photos, tmp_path / "run")
    assert len(decodings) == 48
    decodings.clear()
    assert equal(made(photos, tmp_path / "second"), first)
    assert decodings == [b"no photo"]  # why it cannot be read may change with the machine
    changed, moved = photos / "disc" / "01.jpg", photos / "square" / "new.jpg"
    (photos / "disc" / "02.jpg").rename(moved)
    changed.write_bytes(changed.read_bytes() + b"\0")
    decodings.clear()
    third = made(photos, tmp_path / "third")
    assert sorted(decodings) == sorted([b"no photo", changed.read_bytes()])
    assert third.audit.fingerprint != first.audit.fingerprint


def test_another_size_is_decoded_anew(photos: Path, tmp_path: Path, decodings: list[bytes], monkeypatch):
    made(photos, tmp_path / "run")
    decodings.clear()
    monkeypatch.setitem(LOOK, "size", 48)
    table = made(photos, tmp_path / "second")
    assert len(decodings) == 48 and min(table.data.images[0].shape[:2]) == round(48 / 0.875)


@pytest.mark.parametrize("gone", ["the cache", "a segment's first byte", "the record"])
def test_a_pack_that_is_gone_is_made_again(
    gone: str, photos: Path, tmp_path: Path, cached: Path, decodings: list[bytes]
):
    first = made(photos, tmp_path / "run")
    kept = [np.array(first.data.images[k]) for k in range(47)]
    split = (tmp_path / "run" / "split.csv").read_bytes()
    (segment,) = cached.rglob("*.seg")
    decodings.clear()
    if gone == "the cache":
        shutil.rmtree(cached)
    elif gone == "the record":
        pack.delete_record(tmp_path / "run" / "resume")
    else:
        segment.write_bytes(bytes([segment.read_bytes()[0] ^ 1]) + segment.read_bytes()[1:])
    again = made(photos, tmp_path / "run")
    assert len(decodings) == {"the cache": 48, "a segment's first byte": 2, "the record": 1}[gone]
    assert all(np.array_equal(again.data.images[k], kept[k]) for k in range(47))
    assert (tmp_path / "run" / "split.csv").read_bytes() == split and again.audit == first.audit


def test_other_bytes_under_the_same_names_are_refused(photos: Path, tmp_path: Path, cached: Path):
    """Unless the run has the old ones still: then it goes on with them."""
    first, changed = made(photos, tmp_path / "run"), photos / "disc" / "01.jpg"
    changed.write_bytes((photos / "square" / "01.jpg").read_bytes())
    assert equal(made(photos, tmp_path / "run"), first)
    shutil.rmtree(cached)
    with pytest.raises(FieldmarkError, match=r"have changed since.*another --out"):
        made(photos, tmp_path / "run")


def test_changed_photos_are_refused(photos: Path, tmp_path: Path):
    made(photos, tmp_path / "run")
    (photos / "disc" / "01.jpg").rename(photos / "disc" / "new.jpg")
    with pytest.raises(FieldmarkError, match=r"1 new, 1 missing.*another --out"):
        made(photos, tmp_path / "run")
