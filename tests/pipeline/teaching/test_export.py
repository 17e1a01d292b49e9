"""What a session writes is what `train` reads, and the user's files stay as they are."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from taught import Pool, clusters, collect, write, zipped

from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import apply_decisions
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline.teaching.export import MIN_TESTS, write_decisions, write_labels
from fieldmark.pipeline.teaching.session import TeachingSession

NAMES = [f"{folder}/{k}.png" for folder in ("cat", "dog", "狗, 大") for k in range(45)]


def open_on(data: Path, folder: Path, **words: bool) -> TeachingSession:
    images = collect(data, **words)  # type: ignore[arg-type]
    return TeachingSession(folder, images, Pool(clusters(len(images.sources))[0]))


def read(file: Path) -> Catalog:
    catalog = read_catalog(file)
    for photo in catalog.photos:
        assert catalog.read_bytes(photo)
    return catalog


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write(tmp_path / "photos", *NAMES)
    shutil.copy(folder / NAMES[0], folder / os.fsdecode(b"cat/\xff.png"))
    return folder


@pytest.mark.parametrize("n", [12, 136])
def test_labels_are_read_as_they_were_given(photos: Path, tmp_path: Path, n: int):
    session, before = open_on(photos, tmp_path / "s", ignore_labels=True), snapshot(photos)
    names = [name for question in session.next(n) for name in [question.path]]
    names.append(os.fsdecode(b"cat/\xff.png"))
    for k, name in enumerate(names):
        session.answer(name, ("a, b", '"鹰"', "plain")[k % 3])
    session.answer(NAMES[-1], exclude=True)
    catalog = read(write_labels(session))
    assert {os.path.relpath(photo.path, photos): photo.label for photo in catalog.photos} == {
        name: label for name, (label, _) in session.labels.items()
    }
    tests = {name for name, (_, purpose) in session.labels.items() if purpose == "test"}
    assert len(tests) > 1 and (len(tests) >= MIN_TESTS) == (n == 136)
    splits = {os.path.relpath(photo.path, photos): photo.split for photo in catalog.photos}
    for name, split in splits.items():
        assert split == (None if n == 12 else "test" if name in tests else "train")
    assert snapshot(photos) == before and write_decisions(session) is None


def test_the_test_split_of_the_dataset_stays_its_own(tmp_path: Path):
    names = [f"{split}/{label}/{k}.png" for split in ("train", "test") for label in ("cat", "dog") for k in range(12)]
    data = write(tmp_path / "photos", *names, "unlabelled/1.png")
    session = open_on(data, tmp_path / "s")
    session.answer("unlabelled/1.png", "dog")
    splits = {os.path.relpath(photo.path, data): photo.split for photo in read(write_labels(session)).photos}
    is_test = session.labels["unlabelled/1.png"][1] == "test"
    assert splits == {name: name.partition("/")[0] for name in names} | {
        "unlabelled/1.png": "test" if is_test else "train"
    }


@pytest.mark.parametrize("ignore_labels", [True, False])
def test_images_of_an_archive_are_copied(photos: Path, tmp_path: Path, ignore_labels: bool):
    (photos / os.fsdecode(b"cat/\xff.png")).unlink()
    session = open_on(zipped(photos), tmp_path / "s", ignore_labels=ignore_labels)
    session.record([])
    for question in session.next(40):
        session.answer(question.path, question.path.partition("/")[0])
    write_labels(session)
    assert not (tmp_path / "s" / "images").exists()
    file = write_labels(session, extracts=True)
    catalog = read(file)
    found = {catalog.read_bytes(photo): photo.label for photo in catalog.photos}
    expected = {(photos / name).read_bytes(): label for name, (label, _) in session.labels.items()}
    assert found == expected and len(catalog.photos) == len(session.labels)
    assert len(list((tmp_path / "s" / "images").iterdir())) == len(session.labels)
    before = snapshot(tmp_path / "s" / "images")
    write_labels(session, extracts=True)
    assert snapshot(tmp_path / "s" / "images") == before


def test_an_unreadable_image_of_an_archive_is_left_out(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fieldmark.data.image import UnreadableImageError
    from fieldmark.pipeline.teaching.images import TeachingImages

    (photos / os.fsdecode(b"cat/\xff.png")).unlink()
    session, read_bytes = open_on(zipped(photos), tmp_path / "s"), TeachingImages.read_bytes

    def fails(images: TeachingImages, name: str) -> bytes:
        if name == NAMES[3]:
            raise UnreadableImageError("damaged")
        return read_bytes(images, name)

    monkeypatch.setattr(TeachingImages, "read_bytes", fails)
    assert len(read(write_labels(session, extracts=True)).photos) == len(session.labels) - 1


@pytest.mark.parametrize("is_archive", [True, False])
def test_decisions_correct_a_labelled_dataset(photos: Path, tmp_path: Path, is_archive: bool):
    if is_archive:
        (photos / os.fsdecode(b"cat/\xff.png")).unlink()
    data = zipped(photos) if is_archive else photos
    write(photos, "loose.png")
    session, before = open_on(data, tmp_path / "s"), snapshot(photos)
    names = [name for name in session.names if name in session.images.labels]
    rng = np.random.default_rng(0)
    for name in rng.permutation(names)[:40].tolist():
        label = session.images.labels[name]
        session.answer(name, str(rng.choice([label, "dog", "狗, 大", "new, one"])))
    session.answer(names[0], exclude=True)
    session.answer(names[1], skip=True)
    session.answer(names[2], "dog")
    session.undo()
    if not is_archive:
        session.answer("loose.png", "cat")
    file = write_decisions(session)
    assert file is not None
    corrected = apply_decisions(read_catalog(data), file)
    expected = {name: label for name, (label, _) in session.labels.items() if name != "loose.png"}
    assert {photo.path: photo.label for photo in corrected.photos} == expected and names[0] not in expected
    assert snapshot(photos) == before
