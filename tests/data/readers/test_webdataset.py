"""Photos -> shards -> the same photos, for us and for webdataset's own reader."""

import gc
import json
from pathlib import Path

import pytest
from containers import CONTAINERS, CONTENT, png, table
from webdataset.compat import WebDataset

from fieldmark.audit.audit import audit_catalog
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.pack import PackReport, write_shards
from fieldmark.data.readers import read_catalog
from fieldmark.data.readers.huggingface import DataFile
from fieldmark.pipeline.train import train
from fieldmark.recipes.recipe import Recipe


def packed(photos: Path, out: Path, **how) -> PackReport:
    return write_shards(photos, out, Reporter(quiet=True), **how)


@pytest.mark.parametrize("container", CONTAINERS)
def test_whatever_held_the_photos_the_shards_hold_the_same(container: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    photos = CONTAINERS[container](tmp_path / "in")
    found = packed(photos, tmp_path / "shards")
    names = [file.name for file in found.files]
    assert names == ["classes.txt", "test-000000.tar", "train-000000.tar"]
    again = read_catalog(tmp_path / "shards")
    assert (
        table(again) == table(read_catalog(photos))
        and again.classes == read_catalog(photos).classes
        and not again.warnings
    )
    assert found.n_images == len(CONTENT) and found.unreadable == ()
    assert found.classes == dict.fromkeys(again.classes, 3)


def test_shards_packed_again_are_the_same_shards(tmp_path: Path):
    photos = CONTAINERS["folder"](tmp_path / "photos")
    packed(photos, tmp_path / "one")
    packed(photos, tmp_path / "two")
    packed(photos, tmp_path / "other", recipe=Recipe(seed=1))
    one, two, other = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("one", "two", "other"))
    assert one == two != other and one.keys() == other.keys()


def test_no_photo_is_lost_between_shards_and_order_is_mixed(tmp_path: Path):
    (root := tmp_path / "photos").mkdir()
    for label in ("a", "b"):
        (root / label).mkdir()
        for k in range(40):
            (root / label / f"{k}.png").write_bytes(bytes([k]) * 60_000)
    found = packed(root, tmp_path / "shards", shard_mb=1)
    catalog = read_catalog(tmp_path / "shards")
    assert len(found.files) == 6 and len(catalog.photos) == 80
    assert {(catalog.read_bytes(photo), photo.label) for photo in catalog.photos} == {
        (bytes([k]) * 60_000, label) for label in "ab" for k in range(40)
    }
    first = [photo.label for photo in catalog.photos if photo.path.startswith("photos-000000")]
    assert 4 < first.count("a") < 14 and len(first) == 17  # 60,000 bytes and three heads each


def read_by_webdataset(shards: list[str]) -> list[dict]:
    """It leaves closing files to the collector, which warns."""
    rows = list(WebDataset(shards, shardshuffle=False, empty_check=False))
    gc.collect()
    return rows


LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@LEFT_OPEN
def test_webdataset_reads_them(tmp_path: Path):
    found = packed(CONTAINERS["folder"](tmp_path / "photos"), tmp_path / "shards")
    classes = (tmp_path / "shards" / "classes.txt").read_text(encoding="utf-8").splitlines()
    shards = [str(file) for file in found.files if file.suffix == ".tar"]
    rows = [(row["png"], row["cls"]) for row in read_by_webdataset(shards)]
    wanted = {(content, path.split("/")[1]) for path, content in CONTENT.items()}
    assert {(content, classes[int(number)]) for content, number in rows} == wanted and len(rows) == len(CONTENT)


@LEFT_OPEN
def test_names_that_would_be_one_key_or_none(tmp_path: Path):
    """WebDataset cuts a name at its first dot; two endings of one name are one key to it; a key needs a name."""
    (root := tmp_path / "photos").mkdir()
    names = ("a.png", "a.jpg", "a.b.png", "a_b.png", "A.PNG", "..png", "七.png", "x" * 150 + ".png")
    for k, name in enumerate(names):
        for label in ("one", "two.tar"):
            (root / label).mkdir(exist_ok=True)
            (root / label / ("_" + name if name.startswith(".") else name)).write_bytes(png(k + 50 * (label == "one")))
    found = packed(root, tmp_path / "shards")
    assert table(read_catalog(tmp_path / "shards")) == table(read_catalog(root))
    rows = read_by_webdataset(list(map(str, found.files[1:])))
    assert len(rows) == len({row["__key__"] for row in rows}) == 2 * len(names)


def test_groups_and_boxes_go_along(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    lines = [{"path": f"{k}.png", "label": "ab"[k % 2], "group": f"p{k // 2}", "box": [1, 2, 20, 10]} for k in range(6)]
    for k in range(6):
        (tmp_path / "photos" / f"{k}.png").write_bytes(png(k))
    (tmp_path / "photos" / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = tmp_path / "photos" / "photos.jsonl"
    packed(source, tmp_path / "shards", recipe=Recipe(group_by="group"))
    want, have = read_catalog(source, group_by="group"), read_catalog(tmp_path / "shards")
    one, other = ({(c.read_bytes(p), p.label, p.group, p.box) for p in c.photos} for c in (want, have))
    assert one == other and all(photo.group and photo.box for photo in have.photos)
    assert audit_catalog(have, shorter=32).groups != tuple(range(6))


def test_what_cannot_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = CONTAINERS["folder"](tmp_path / "photos")
    (tmp_path / "there").mkdir()
    with pytest.raises(FieldmarkError, match="give another --shards"):
        packed(root, tmp_path / "there")
    (root / "train" / "鳥").rename(root / "train" / "two\nlines")
    with pytest.raises(FieldmarkError, match=r"cannot stand on a line of classes.txt"):
        packed(root, tmp_path / "shards")
    (tmp_path / "shards.half").mkdir()  # somebody's
    monkeypatch.setattr("fieldmark.data.pack.ShardWriter.add", lambda *_: 1 / 0)
    (root / "train" / "two\nlines").rename(root / "train" / "鳥")
    with pytest.raises(ZeroDivisionError):
        packed(root, tmp_path / "shards")
    assert {entry.name for entry in tmp_path.iterdir()} == {"photos", "there", "shards.half"}


def test_the_command_lists_what_the_system_does_not_give(tmp_path: Path, here):
    root = CONTAINERS["folder"](tmp_path / "photos")
    lost = root / "train" / "鳥" / "lost.png"
    lost.symlink_to(tmp_path / "nowhere.png")
    done = here("pack", root, "--shards", tmp_path / "shards", "--json")
    assert done.code == 1 and [photo["path"] for photo in done.json["unreadable"]] == ["train/鳥/lost.png"]
    assert done.json["photos"] == len(CONTENT) and all(Path(file).is_file() for file in done.json["files"])
    lost.unlink()
    done = here("pack", root, "--shards", tmp_path / "again", "--shard-mb", 1)
    assert (done.code, done.out) == (0, f"6 photos, 0 MiB in 2 shards: {tmp_path / 'again'}\n")


def test_one_shard_alone_has_the_names_that_stand_beside_it(tmp_path: Path):
    packed(CONTAINERS["folder"](tmp_path / "photos"), tmp_path / "shards")
    (tmp_path / "alone").mkdir()
    (tmp_path / "shards" / "train-000000.tar").rename(tmp_path / "alone" / "train-000000.tar")
    assert read_catalog(tmp_path / "alone" / "train-000000.tar").classes == ("0", "1")
    (tmp_path / "alone" / "classes.txt").write_bytes((tmp_path / "shards" / "classes.txt").read_bytes())
    assert read_catalog(tmp_path / "alone" / "train-000000.tar").classes == read_catalog(tmp_path / "photos").classes


def test_many_row_groups_are_each_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Packed in a random order, of tables that give a whole row group for a photo; a stream of them is refused."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    photos = [{"bytes": png(k), "path": f"{k}.png"} for k in range(60)]
    rows = pa.table({"image": photos, "label": [k % 2 for k in range(60)]})
    (tmp_path / "data").mkdir()
    pq.write_table(rows, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=5)
    asked, group = list[int](), DataFile.read_row_group
    monkeypatch.setattr(DataFile, "read_row_group", lambda part, number: asked.append(number) or group(part, number))
    found = packed(tmp_path, tmp_path / "shards")
    assert asked == list(range(12)) and found.n_images == 60
    want, have = (
        sorted((c.read_bytes(photo), photo.label) for photo in c.photos)
        for c in (read_catalog(tmp_path), read_catalog(tmp_path / "shards"))
    )
    assert want == have
    with pytest.raises(FieldmarkError, match="fieldmark pack it first"):
        train(tmp_path, Recipe(stream=True, image_size=64), out=tmp_path / "run")
