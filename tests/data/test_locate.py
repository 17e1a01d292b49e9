"""What people name -> photos: the same bytes from a folder, from shards, archives, tables and addresses."""

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import CONTENT, folder, tarred, zipped

from fieldmark.core.progress import Reporter
from fieldmark.data.image import UnreadableImageError, decode
from fieldmark.data.locate import ImageSource, RemoteImage, find_images
from fieldmark.data.pack import write_shards

WANTED = set(CONTENT.values())


def content(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source
    return Path(source).read_bytes() if isinstance(source, str) else source.read()


def contents(*named: object) -> list[bytes]:
    return [content(source) for _, source in find_images(map(str, named))]


def parquet(file: Path, column: str = "image") -> Path:
    photos = [{"bytes": content, "path": path} for path, content in CONTENT.items()]
    pq.write_table(pa.table({column: photos, "other": list(CONTENT)}), file, row_group_size=4)
    return file


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(folder(tmp_path / "photos"), tmp_path / "shards", Reporter(quiet=True))
    return tmp_path / "shards"


def test_a_holder_is_all_that_it_holds(shards: Path, tmp_path: Path):
    for place in ("z", "t", "g"):
        (tmp_path / place).mkdir()
    archives = [zipped(tmp_path / "z"), tarred("w")(tmp_path / "t"), tarred("w:gz")(tmp_path / "g")]
    archives[2] = archives[2].rename(tmp_path / "photos.tar.gz")
    for holder in (*archives, parquet(tmp_path / "photos.parquet"), shards, shards / "*.tar"):
        found = contents(holder)
        assert set(found) == WANTED and len(found) == len(WANTED), holder


def test_names_lead_back_to_the_photo(shards: Path, tmp_path: Path):
    names = [name for name, _ in find_images([shards])]
    assert names == sorted(names) and len(set(names)) == len(CONTENT)
    inside = {name.removeprefix(f"{shards}/").replace("-000000.tar", "") for name in names}
    assert inside == set(CONTENT)  # what all photos of a holder have in common is not said
    rows = [name for name, _ in find_images([parquet(tmp_path / "t.parquet")])]
    assert rows[0] == f"{tmp_path}/t.parquet/t.parquet/000000"


def test_an_archive_beside_photos_is_somebodys_backup(tmp_path: Path):
    (root := tmp_path / "photos").mkdir()
    folder(root)
    (tmp_path / "backup").mkdir()
    tarred("w")(tmp_path / "backup").rename(root / "backup.tar")
    assert sorted(contents(root)) == sorted(CONTENT.values())


def test_what_holds_nothing_is_a_row_with_its_reason(tmp_path: Path):
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "half.zip").write_bytes(b"PK\3\4 no more")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "numbers.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    for name, reason in {
        "text.tar": "no table, zip or tar",
        "half.zip": "cannot be read",
        "numbers.parquet": "no column image",
        "torn.parquet": "cannot be read",
    }.items():
        ((path, source),) = find_images([tmp_path / name])
        assert path == str(tmp_path / name)
        with pytest.raises(UnreadableImageError, match=reason):
            decode(source)  # type: ignore[arg-type]


@pytest.fixture
def bucket(shards: Path, tmp_path: Path):
    """What lies there, and shards.tar, photos.parquet and half.jpg, in a store that fsspec knows."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    for path, content in CONTENT.items():
        store.pipe(f"/bucket/photos/{path}", content)
    store.pipe("/bucket/photos/notes.txt", b"none")
    for file in shards.iterdir():
        store.pipe(f"/bucket/shards/{file.name}", file.read_bytes())
    store.pipe("/bucket/photos.parquet", parquet(tmp_path / "photos.parquet").read_bytes())
    store.pipe("/bucket/torn.tar", b"no tar")
    yield "memory://bucket"
    store.store.clear()


def test_an_address_is_like_a_path(bucket: str):
    for place in ("photos", "photos/*/*/*.png", "shards", "shards/*.tar", "photos.parquet"):
        found = contents(f"{bucket}/{place}")
        assert set(found) == WANTED and len(found) == len(WANTED), place
    ((name, source),) = find_images([f"{bucket}/photos/train/猫 2/1.png"])
    assert name == "memory:///bucket/photos/train/猫 2/1.png"
    assert content(source) == CONTENT["train/猫 2/1.png"]


def test_an_address_of_nothing(bucket: str):
    ((_, source),) = find_images([f"{bucket}/photos/none.png"])
    with pytest.raises(UnreadableImageError, match="no such file"):
        content(source)
    ((_, source),) = find_images([f"{bucket}/torn.tar"])
    with pytest.raises(UnreadableImageError, match="no table, zip or tar"):
        content(source)
    ((_, source),) = find_images([f"{bucket}/none.tar"])
    with pytest.raises(UnreadableImageError, match="cannot be fetched"):
        content(source)
    ((name, source),) = find_images([f"{bucket}/photos/typo*.png"])
    assert name == f"{bucket}/photos/typo*.png"
    with pytest.raises(UnreadableImageError, match="no such file"):
        content(source)
    ((name, source),) = find_images(["nosuch://x/y.jpg"])
    assert name == "nosuch://x/y.jpg"
    with pytest.raises(UnreadableImageError, match="nosuch:// is not known"):
        content(source)


def test_a_photo_at_an_address_has_a_limit(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fieldmark.data.remote.MAX_FILE_BYTES", 100)
    with pytest.raises(UnreadableImageError, match="more than"):
        RemoteImage(f"{bucket}/photos/train/鳥/0.png").read()


def test_what_is_fetched_and_is_no_such_thing_does_not_stay(bucket: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    list(find_images([f"{bucket}/torn.tar", f"{bucket}/none.tar"]))
    assert not list((tmp_path / "temporary").iterdir())


def test_linked_folders_are_followed_and_unreadable_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (there := tmp_path / "elsewhere" / "site").mkdir(parents=True)
    for file in (there / "a.png", tmp_path / "photos" / "closed" / "b.png", tmp_path / "photos" / "c.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "photos" / "linked").symlink_to(there)
    (there / "back").symlink_to(tmp_path / "photos")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    (tmp_path / "photos" / "circle").symlink_to("circle")
    found = dict(find_images([tmp_path / "photos"]))
    names = [name.removeprefix(f"{tmp_path}/photos/") for name in found]
    assert names == ["c.png", "closed", "linked/a.png"]
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        content(found[f"{tmp_path}/photos/closed"])
    write_shards(folder(tmp_path / "others"), tmp_path / "shards", Reporter(quiet=True))
    (tmp_path / "shards" / "closed").mkdir()
    found = dict(find_images([tmp_path / "shards"]))
    assert len(found) == len(CONTENT) + 1 and f"{tmp_path}/shards/closed" in found
