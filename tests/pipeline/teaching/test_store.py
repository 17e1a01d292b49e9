"""The store keeps what holds and nothing else: after a kill, after files have changed, gone or come."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline.teaching import features, reader
from fieldmark.pipeline.teaching.images import TeachingImages, from_folder
from fieldmark.pipeline.teaching.projection import DIMENSIONS, Projection
from fieldmark.pipeline.teaching.reader import BATCH_SIZE, find_groups, read_images, reading_order
from fieldmark.pipeline.teaching.store import READ, UNREADABLE, WAITING, FeatureStore, open_store

N = 90
READER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_store as t
t.reader.FIRST_IMAGES = 40
t.features.FeatureExtractor = t.Colours
store = t.open_images(Path(sys.argv[1]), Path(sys.argv[2]))[1]
t.fill(t.from_folder(Path(sys.argv[1])), store, lambda done, total: print(done, flush=True))
"""


class Colours:
    """Features without a network: the colours of a grid."""

    def __init__(self, model: Path | None = None) -> None:
        pass

    def read(self, content: bytes) -> np.ndarray:
        import io

        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((8, 8)))

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack(images).reshape(len(images), -1).astype(np.float32)


def draw(file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    file.parent.mkdir(parents=True, exist_ok=True)
    small.resize((48, 48), Image.Resampling.BICUBIC).save(file)


def open_images(photos: Path, folder: Path, model: str = "colours") -> tuple[TeachingImages, FeatureStore]:
    images = from_folder(photos)
    names = list(images.sources)
    return images, open_store(folder, names, [images.signature(name) for name in names], model)


def fill(images: TeachingImages, store: FeatureStore, progress: object = lambda done, total: None) -> None:
    read_images(images, store, reading_order(np.zeros(len(store), bool), 0), progress)  # type: ignore[arg-type]


def rows(store: FeatureStore) -> dict[str, np.ndarray]:
    return {name: np.array(getattr(store, name)) for name in ("features", "hashes", "thumbnails", "status", "groups")}


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FeatureExtractor", Colours)
    monkeypatch.setattr(reader, "FIRST_IMAGES", 40)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, of which the last ten are copies of the first ones; one is damaged. Do not write into it."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(N):
        draw(folder / f"{k:03}.png", k % (N - 10))
    (folder / "050.png").write_bytes(b"\x89PNG damaged")
    return folder


@pytest.fixture(scope="module")
def filled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of these images; do not write into it."""
    folder = tmp_path_factory.mktemp("store") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "FeatureExtractor", Colours)
        patch.setattr(reader, "FIRST_IMAGES", 40)
        fill(*open_images(photos, folder))
    return folder


@pytest.fixture
def copy(photos: Path, filled: Path, tmp_path: Path) -> Path:
    """Links to these images, to be changed, beside a copy of their store."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in photos.iterdir():
        os.link(file, folder / file.name)
    shutil.copytree(filled, tmp_path / "store")
    return folder


@pytest.mark.usefixtures("colours")
def test_all_is_read_and_near_duplicates_are_found(photos: Path, tmp_path: Path):
    images, store = open_images(photos, tmp_path / "store")
    assert (store.status == WAITING).all() and store.projection is None and (store.groups == np.arange(N)).all()
    done = list[int]()
    fill(images, store, lambda n, total: done.append(n))
    assert done == list(range(1, N + 1)) and store.is_grouped
    assert store.status[50] == UNREADABLE and (np.delete(store.status, 50) == READ).all()
    np.testing.assert_allclose(np.linalg.norm(np.delete(store.features, 50, 0), axis=1), 1, rtol=1e-5)
    assert store.groups.tolist() == [*range(N - 10), *range(10)] and not store.features[50].any()


def test_what_is_read_again_is_nothing(copy: Path, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "FeatureExtractor", None)
    images, again = open_images(copy, tmp_path / "store")
    fill(images, again)
    for name, values in rows(again).items():
        np.testing.assert_array_equal(values, rows(FeatureStore(filled))[name])


@pytest.mark.parametrize("reads", [5, 75])
@pytest.mark.usefixtures("colours")
def test_a_reader_that_is_killed_leaves_a_store_that_the_next_one_completes(
    photos: Path, filled: Path, tmp_path: Path, reads: int
):
    command = [sys.executable, "-c", READER, str(photos), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in range(reads):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    images, store = open_images(photos, tmp_path / "store")
    kept = store.status == READ
    before = np.array(store.features)
    fill(images, store)
    np.testing.assert_array_equal(store.features[kept], before[kept])
    for name, values in rows(FeatureStore(filled)).items():
        np.testing.assert_allclose(rows(store)[name], values, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("colours")
def test_a_kill_before_the_search_for_near_duplicates_does_not_lose_it(copy: Path, filled: Path, tmp_path: Path):
    (tmp_path / "store" / "groups.npy").unlink()
    images, store = open_images(copy, tmp_path / "store")
    assert not store.is_grouped
    fill(images, store)
    np.testing.assert_array_equal(store.groups, FeatureStore(filled).groups)
    groups = find_groups(store)
    groups[60:] = -1  # as after the first images
    store.write_groups(groups)
    assert not store.is_grouped and (store.groups[60:] == np.arange(60, N)).all()


@pytest.mark.usefixtures("colours")
def test_rows_of_unchanged_files_are_kept_and_others_dropped(copy: Path, filled: Path, tmp_path: Path):
    before, names = FeatureStore(filled).features, list(from_folder(copy).sources)
    (copy / "003.png").unlink()
    (copy / "004.png").unlink()
    draw(copy / "004.png", 1000)
    draw(copy / "003a.png", 1001)
    images, store = open_images(copy, tmp_path / "store")
    again = list(images.sources)
    assert {again[row] for row in np.flatnonzero(store.status == WAITING)} == {"004.png", "003a.png"}
    for row, name in enumerate(again):
        if store.status[row] == READ:
            np.testing.assert_array_equal(store.features[row], before[names.index(name)])
    fill(images, store)
    assert store.is_grouped and store.groups[again.index("083.png")] == again.index("083.png")  # its original has gone
    assert store.groups[again.index("085.png")] == again.index("005.png")


@pytest.mark.usefixtures("colours")
def test_near_duplicates_are_known_after_images_have_gone(copy: Path, tmp_path: Path):
    (copy / "000.png").unlink()
    images, store = open_images(copy, tmp_path / "store")
    assert not (store.status == WAITING).any() and not store.is_grouped
    fill(images, store)
    assert store.groups.tolist() == [*range(N - 11), N - 11, *range(9)]


def test_another_network_reads_all_anew(copy: Path, tmp_path: Path):
    assert (open_images(copy, tmp_path / "store")[1].status != WAITING).all()
    assert (open_images(copy, tmp_path / "store", "other")[1].status == WAITING).all()


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize(("more", "is_anew"), [(5, False), (30, True)])
def test_directions_of_a_few_images_do_not_serve_for_many(tmp_path: Path, more: int, is_anew: bool):
    photos = tmp_path / "photos"
    for k in range(10):
        draw(photos / f"{k}.png", k)
    fill(*open_images(photos, tmp_path / "store"))
    for k in range(more):
        draw(photos / f"new-{k}.png", 100 + k)
    store = open_images(photos, tmp_path / "store")[1]
    assert (store.status == READ).sum() == (0 if is_anew else 10)


def test_a_damaged_folder_says_what_to_do(photos: Path, tmp_path: Path):
    folder = tmp_path / "store"
    open_images(photos, folder)
    for name, content in (
        ("features.npy", b""),
        ("status.npy", b"no array"),
        ("images.json", b"{"),
        ("images.json", b"[]"),
        ("images.json", b"{}"),
        ("hashes.npy", None),
    ):
        before = (folder / name).read_bytes()
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(FieldmarkError, match="damaged"):
            open_images(photos, folder)
        (folder / name).write_bytes(before)
    np.save(folder / "status.npy", np.zeros(3, np.uint8))
    with pytest.raises(FieldmarkError, match=r"lengths.*delete it"):
        open_images(photos, folder)


def test_a_store_of_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "FeatureExtractor", Colours)
    for k in range(2):
        draw(tmp_path / "photos" / f"{k}.png", k)
    images, store = open_images(tmp_path / "photos", tmp_path / "store")
    fill(images, store)
    assert (store.status == READ).all() and np.isfinite(store.features).all()
    assert store.features[0] @ store.features[1] == pytest.approx(-1)


@pytest.mark.parametrize("n", [1, 2, BATCH_SIZE + 1])
def test_images_of_one_colour_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int):
    monkeypatch.setattr(features, "FeatureExtractor", Colours)
    (tmp_path / "photos").mkdir()
    for k in range(n):
        Image.new("RGB", (20, 20), (0, 0, 0)).save(tmp_path / "photos" / f"{k:02}.png")
    images, store = open_images(tmp_path / "photos", tmp_path / "store")
    fill(images, store)
    assert (store.status == READ).all() and np.isfinite(store.features).all() and len(store.groups) == n


def test_all_images_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "FeatureExtractor", Colours)
    (tmp_path / "photos").mkdir()
    for k in range(3):
        (tmp_path / "photos" / f"{k}.jpg").write_bytes(b"no image")
    images, store = open_images(tmp_path / "photos", tmp_path / "store")
    fill(images, store)
    assert (store.status == UNREADABLE).all() and store.is_grouped


# ---- the projection


def test_it_keeps_the_angles_of_centred_features():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(60, 400)).astype(np.float32) + 5
    projected = Projection.fit(sample)(sample)
    centred = sample - sample.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert projected.shape == (60, 59)
    np.testing.assert_allclose(projected @ projected.T, centred @ centred.T, atol=1e-4)


def test_its_directions_are_the_principal_ones_and_come_back(tmp_path: Path):
    rng = np.random.default_rng(0)
    sample = (rng.normal(size=(DIMENSIONS + 90, 300)) * np.linspace(3, 0.1, 300)).astype(np.float32)
    projection = Projection.fit(sample)
    assert projection.directions.shape == (300, DIMENSIONS)
    vectors = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2]
    np.testing.assert_allclose(np.abs(np.diag(vectors[:20] @ projection.directions[:, :20])), 1, atol=1e-3)
    projection.save(tmp_path / "projection.npz")
    np.testing.assert_array_equal(Projection.load(tmp_path / "projection.npz")(sample), projection(sample))
