"""The same photos in any container give the same table and bytes; what could do harm is refused in one line."""

import csv
import gzip
import io
import json
import os
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from fieldmark.errors import FieldmarkError
from fieldmark.photos.audit import audit
from fieldmark.photos.catalog import Catalog
from fieldmark.photos.decode import Unreadable, decode
from fieldmark.photos.inputs import read

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(packed, "PNG")
    return packed.getvalue()


CONTENT = {
    f"{split}/{label}/{k}.png": png(10 * i + k)
    for i, label in enumerate(("鳥", "猫 2"))
    for k, split in enumerate(("train", "train", "test"))
}
"""Split folders with class folders: what is packed into every container."""


def table(catalog: Catalog) -> set[tuple[bytes, str, str | None]]:
    """What a table says, whatever its paths are called."""
    return {(catalog.contents(photo), photo.label, photo.split) for photo in catalog.photos}


WANTED = {(content, path.split("/")[1], path.split("/")[0]) for path, content in CONTENT.items()}


def folder(root: Path) -> Path:
    for path, content in CONTENT.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def zipped(root: Path) -> Path:
    with zipfile.ZipFile(root / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in CONTENT.items():
            archive.writestr(f"my photos/{path}", content)
        archive.writestr("__MACOSX/my photos/._x.png", b"litter")
    return root / "photos.zip"


def tarred(mode: Literal["w", "w:gz", "w:xz"]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        with tarfile.open(root / "photos.tar", mode) as archive:
            for path, content in CONTENT.items():
                add(archive, f"./set/{path}", content)
        return root / "photos.tar"

    return make


def add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    archive.addfile(info, io.BytesIO(content))


def rows() -> list[dict[str, str]]:
    return [{"path": path, "label": path.split("/")[1], "split": path.split("/")[0]} for path in CONTENT]


def manifest_csv(root: Path) -> Path:
    folder(root)
    with (root / "list.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["split", "label", "path"])
        writer.writeheader()
        writer.writerows(rows())
    return root / "list.csv"


def manifest_jsonl(root: Path) -> Path:
    folder(root)
    lines = [json.dumps({"file_name": row["path"], **row} | {"path": None}) for row in rows()]
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def manifest_parquet(root: Path) -> Path:
    folder(root)
    pq.write_table(pa.Table.from_pylist(rows()), root / "list.parquet")
    return root / "list.parquet"


def manifest_in_zip(root: Path) -> Path:
    lines = ["path,label,split", *(",".join(row.values()) for row in rows())]
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        archive.writestr("manifest.csv", "\n".join(lines))
        for path, content in CONTENT.items():
            archive.writestr(path, content)
    return root / "photos.zip"


CLASSES = ["猫 2", "鳥"]


def hub_table(paths: list[str]) -> Any:
    """As `datasets` writes it: photos as structs, labels as numbers whose names are in the schema."""
    names = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
    images = [{"bytes": CONTENT[path], "path": Path(path).name} for path in paths]
    labels = [CLASSES.index(path.split("/")[1]) for path in paths]
    return pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(names)})


def hub_parquet(root: Path) -> Path:
    (root / "data").mkdir()
    for split in ("train", "test"):
        found = hub_table([path for path in CONTENT if path.startswith(split)])
        pq.write_table(found, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=3)
    return root


def hub_arrow(root: Path) -> Path:
    for split in ("train", "test"):
        (root / split).mkdir()
        (root / split / "dataset_info.json").write_text("{}")
        found = hub_table([path for path in CONTENT if path.startswith(split)])
        path = str(root / split / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, found.schema) as stream:
            stream.write_table(found, max_chunksize=3)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return root


def shards(root: Path) -> Path:
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}-000000.tar", "w") as archive:
            for k, path in enumerate(path for path in CONTENT if path.startswith(split)):
                label = path.split("/")[1]
                add(archive, f"{k:06}.png", CONTENT[path])
                if k % 2:
                    add(archive, f"{k:06}.cls", str(CLASSES.index(label)).encode())
                else:
                    add(archive, f"{k:06}.json", json.dumps({"label": label}).encode())
    return root


CONTAINERS = {
    "folder": folder,
    "zip": zipped,
    "tar": tarred("w"),
    "tar.gz": tarred("w:gz"),
    "tar.xz": tarred("w:xz"),
    "csv": manifest_csv,
    "jsonl": manifest_jsonl,
    "parquet": manifest_parquet,
    "csv in zip": manifest_in_zip,
    "hub's parquet": hub_parquet,
    "hub's arrow": hub_arrow,
    "shards": shards,
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_photos_in_any_container(tmp_path, container):
    catalog = read(CONTAINERS[container](tmp_path))
    assert table(catalog) == WANTED
    assert catalog.classes == tuple(sorted(CLASSES)) and catalog.warnings == ()
    found = audit(catalog, shorter=32)
    assert found.unreadable == () and found.duplicates == ()


@pytest.mark.parametrize("container", CONTAINERS)
def test_bad_photos_are_named_in_any_container(tmp_path, container, monkeypatch):
    good = next(iter(CONTENT))
    bad = {"train/鳥/cut.png": CONTENT[good][:-40], "train/鳥/empty.png": b"", "train/鳥/text.png": b"no photo"}
    for path, content in bad.items():
        monkeypatch.setitem(CONTENT, path, content)
    catalog = read(CONTAINERS[container](tmp_path))
    assert len(catalog.photos) == len(CONTENT)
    reasons = sorted(reason for _, reason in audit(catalog, shorter=32).unreadable)
    assert reasons == ["empty file", "not a photo (text?)", "truncated"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 28, 28), np.uint8)
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([7, 0, 7, 1], np.uint8))))
    catalog = read(tmp_path)
    assert [photo.label for photo in catalog.photos] == ["7", "0", "7", "1"] * 2
    assert {photo.split for photo in catalog.photos} == {"train", "test"}
    for k, photo in enumerate(catalog.photos):
        grey = np.asarray(decode(catalog.contents(photo)).convert("L"))
        assert np.array_equal(grey, pixels[k % 4])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels))[:-9])
    with pytest.raises(FieldmarkError, match="truncated"):
        read(tmp_path)


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_files(tmp_path, hundred):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 3, 32, 32), np.uint8)
    labels = np.array([0, 1, 2, 2, 1, 0], np.uint8)
    first = np.zeros((6, 1), np.uint8) if hundred else np.zeros((6, 0), np.uint8)
    content = np.concatenate([first, labels[:, None], pixels.reshape(6, -1)], 1).tobytes()
    for name in ("train.bin", "test.bin") if hundred else ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ("fine_label_names.txt" if hundred else "batches.meta.txt")).write_text("cat\ndog\nfrog\n")
    catalog = read(tmp_path)
    assert sorted(photo.label for photo in catalog.photos if photo.split == "train") == sorted(
        ["cat", "dog", "frog"] * 2
    )
    photo = next(photo for photo in catalog.photos if photo.split == "test")
    assert np.array_equal(np.asarray(decode(catalog.contents(photo))), pixels[0].transpose(1, 2, 0))


def test_pickles_are_refused(tmp_path):
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(FieldmarkError, match="pickle may run any program: give its binary version"):
        read(tmp_path)


def test_cub_as_shipped(tmp_path):
    root = tmp_path / "CUB_200_2011"
    lines: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    for k in range(1, 5):
        name = f"{(k - 1) // 2 + 1:03}.Bird_{(k - 1) // 2 + 1}"
        path = root / "images" / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
        lines["images"].append(f"{k} {name}/{k}.png")
        lines["image_class_labels"].append(f"{k} {(k - 1) // 2 + 1}")
        lines["train_test_split"].append(f"{k} {k % 2}")
        lines["bounding_boxes"].append(f"{k} {float(k)} 2.0 20.0 10.0")
    for name, text in lines.items():
        (root / f"{name}.txt").write_text("\n".join(text))
    (root / "classes.txt").write_text("1 001.Bird_1\n2 002.Bird_2\n")
    catalog = read(root)
    assert catalog.classes == ("001.Bird_1", "002.Bird_2")
    assert [(photo.split, photo.box) for photo in catalog.photos][:2] == [
        ("train", (1.0, 2.0, 20.0, 10.0)),
        ("test", (2.0, 2.0, 20.0, 10.0)),
    ]
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 9\n4 2\n")
    with pytest.raises(FieldmarkError, match="photo 3 do"):
        read(root)


def test_a_box_is_what_it_would_be_alone(tmp_path):
    content, box = png(3, (160, 120)), (20.0, 30.0, 64.0, 48.0)
    whole = decode(content)
    part = whole.crop((20, 30, 84, 78))
    assert np.array_equal(np.asarray(decode(content, box=box)), np.asarray(part))
    assert decode(content, 32, box=box).size == (43, 32)
    with pytest.raises(Unreadable, match="outside"):
        decode(content, box=(500.0, 0.0, 10.0, 10.0))


def test_a_box_of_a_large_jpeg_keeps_its_detail():
    """A reduced decode must still have as many pixels in the box as are asked for."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (100, 150, 3)).astype(np.uint8)).resize((1500, 1000))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=95)
    box = (600.0, 400.0, 300.0, 200.0)
    found = np.asarray(decode(packed.getvalue(), 100, box=box), np.float32)
    wanted = np.asarray(image.crop((600, 400, 900, 600)).resize((150, 100), Image.Resampling.BICUBIC), np.float32)
    assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 4


MANIFESTS = [
    ("a,b\n1,2\n", "has the columns a, b; it needs path and label"),
    ("path,label\na.png,\n", "photo 1: path or label is missing"),
    ("path,label\na.png,x\na.png,y\n", "photo 2: a.png is listed twice"),
    ("path,label,split\na.png,x,often\n", "photo 1: split is 'often'"),
    ("path,label\nhttp://x/a.png,x\n", "is an address: get the photos first"),
    ('path,label,box\na.png,x,"1,2,3"\n', "is written as x,y,width,height"),
    ('path,label,box\na.png,x,"1,2,3,nan"\n', "holds nothing"),
]


@pytest.mark.parametrize(("text", "message"), MANIFESTS)
def test_a_wrong_manifest_names_its_row(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(FieldmarkError, match=message) as caught:
        read(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.parquet"])
def test_a_damaged_manifest_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"{nonsense")
    with pytest.raises(FieldmarkError, match="cannot be read") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_groups_by_column_and_by_pattern(tmp_path):
    folder(tmp_path)
    lines = [
        "path,label,patient,group",
        *(f"{row['path']},{row['label']},p{k % 2},g{k}" for k, row in enumerate(rows())),
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")

    def groups(group_by: str | None = None) -> set[str | None]:
        return {photo.group for photo in read(tmp_path / "list.csv", group_by=group_by).photos}

    assert groups() == {f"g{k}" for k in range(6)}
    assert groups("Patient") == {"p0", "p1"}
    assert groups(r"/(\d)\.") == {"0", "1", "2"}
    assert {photo.group for photo in read(tmp_path, group_by="鳥").photos} == {"鳥", None}
    for wrong, message in (("(", "no regular expression"), ("xyz", "matches no path")):
        with pytest.raises(FieldmarkError, match=message):
            groups(wrong)


# ---- what could do harm


def evil_zip(root: Path, name: str, content: bytes = b"x", link: bool = False) -> Path:
    with zipfile.ZipFile(root / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", png(1))
        archive.writestr("b/1.png", png(2))
        info = zipfile.ZipInfo(name)
        if link:
            info.external_attr = 0o120777 << 16
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return root / "evil.zip"


def evil_tar(root: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(root / "evil.tar", "w") as archive:
        add(archive, "a/1.png", png(1))
        add(archive, "b/1.png", png(2))
        add(archive, name, b"", kind, link)
    return root / "evil.tar"


@pytest.mark.parametrize("make", [evil_zip, evil_tar])
@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/x.png", "C:/x.png", "a\\..\\..\\x.png"])
def test_paths_that_lead_out_are_refused(tmp_path, make, name):
    with pytest.raises(FieldmarkError, match=r"refused: .* leads out of it") as caught:
        read(make(tmp_path, name))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["evil.zip"], ["evil.tar"])


def test_links_and_devices_are_refused(tmp_path):
    with pytest.raises(FieldmarkError, match="is a link"):
        read(evil_zip(tmp_path, "a/2.png", b"/etc/passwd", link=True))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with pytest.raises(FieldmarkError, match="is a link"):
            read(evil_tar(tmp_path, "a/2.png", kind, "/etc/passwd"))
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE):
        with pytest.raises(FieldmarkError, match="no ordinary file"):
            read(evil_tar(tmp_path, "a/2.png", kind))


def test_archives_in_archives_are_refused(tmp_path):
    with pytest.raises(FieldmarkError, match=r"a/inner\.zip is an archive within it"):
        read(evil_zip(tmp_path, "a/inner.zip", b"PK\x03\x04"))
    with pytest.raises(FieldmarkError, match=r"inner\.tgz is an archive within it"):
        read(evil_tar(tmp_path, "inner.tgz"))


def test_encrypted_and_broken_archives_are_one_line(tmp_path):
    path = evil_zip(tmp_path, "c/1.png", png(5))
    content = bytearray(path.read_bytes())
    for at in (content.find(b"PK\x01\x02") + 8,):
        content[at] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FieldmarkError, match="encrypted"):
        read(path)
    for cut in (b"PK\x03\x04 no zip", b"\x1f\x8b no gzip", b"BZ", b"\xfd7zXZ\0"):
        (tmp_path / "cut").write_bytes(cut)
        with pytest.raises(FieldmarkError, match=r"cut .*is it whole|holds no photos") as caught:
            read(tmp_path / "cut")
        assert "\n" not in str(caught.value)


def zeros(root: Path, kind: str, gigabytes: int) -> Path:
    """So many GB of zeros, packed."""
    path, block = root / f"bomb.{kind}", bytes(1 << 24)
    blocks = gigabytes * 64
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("a/1.png", png(1))
            with archive.open("b/1.png", "w", force_zip64=True) as file:
                for _ in range(blocks):
                    file.write(block)
        return path
    head = tarfile.TarInfo("a/1.png")
    head.size = blocks << 24
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head.tobuf())
        for _ in range(blocks):
            file.write(block)
    return path


@pytest.mark.parametrize(("kind", "why"), [("zip", "unpacks to"), ("tar.gz", "unpacks to over")])
def test_bombs_are_refused(tmp_path, kind, why):
    """Of 2 GB here; the benchmark takes ten."""
    before = os.statvfs(tmp_path).f_bavail
    with pytest.raises(FieldmarkError, match=why) as caught:
        read(zeros(tmp_path, kind, 2))
    assert "\n" not in str(caught.value)
    assert (before - os.statvfs(tmp_path).f_bavail) * os.statvfs(tmp_path).f_frsize < 2**30


def test_many_files_that_are_a_bomb_together(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k in range(11):
            archive.writestr(f"{'ab'[k % 2]}/{k}.png", bytes(100 << 20))
    with pytest.raises(FieldmarkError, match="over 100 times its size"):
        read(tmp_path / "bomb.zip")


def test_names_of_a_chinese_zip(tmp_path):
    """Windows in China writes GBK and does not say so."""
    names = {f"{label}{k}": label for k, label in enumerate(("可回收", "其他"))}
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for k, name in enumerate(names):
            archive.writestr("x" * len(name.encode("gbk")) + f"/{k}.png", png(k))
    content = (tmp_path / "photos.zip").read_bytes()
    for k, name in enumerate(names):
        raw = name.encode("gbk")
        content = content.replace(b"x" * len(raw) + b"/%d.png" % k, raw + b"/%d.png" % k)
    (tmp_path / "photos.zip").write_bytes(content)
    catalog = read(tmp_path / "photos.zip")
    assert catalog.classes == tuple(sorted(names))
    assert {catalog.contents(photo) for photo in catalog.photos} == {png(0), png(1)}


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    """The directory says 100 bytes, and 64 MiB of zeros are there."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", png(1))
        archive.writestr("b/1.png", bytes(64 << 20))
    content = path.read_bytes().replace(struct.pack("<I", 64 << 20), struct.pack("<I", 100))
    path.write_bytes(content)
    catalog = read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unreadable, match="damaged in the archive"):
        catalog.contents(catalog.photos[1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/1.png", png(1))
    with pytest.raises(FieldmarkError, match="cannot be read in small steps"):
        read(path)


def test_a_tar_that_is_damaged_in_the_middle(tmp_path):
    path = tarred("w")(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"./set/test")
    content[at] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FieldmarkError, match="is it whole"):
        read(path)
    path.write_bytes(tarred("w")(tmp_path).read_bytes() * 2)
    with pytest.raises(FieldmarkError, match="several archives in one"):
        read(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_a_tar_that_are_too_large(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a/1.png", png(1))
        add(archive, "a/2.png", bytes(1 << 20), kind)
    with pytest.raises(FieldmarkError, match="damaged header"):
        read(tmp_path / "x.tar")


def test_names_too_long_or_too_deep_are_refused(tmp_path):
    for name in ("a/" * 100 + "1.png", "a/" + "x" * 5000):
        for make in (evil_zip, evil_tar):
            with pytest.raises(FieldmarkError, match="too long, too deep"):
                read(make(tmp_path, name))


def test_western_names_of_an_old_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for k, name in enumerate(("Kxfer", "Bxcher")):
            archive.writestr(f"{name}/{k}.png", png(k))
    path = tmp_path / "photos.zip"
    path.write_bytes(path.read_bytes().replace(b"Kxfer", b"K\x84fer").replace(b"Bxcher", b"B\x81cher"))
    assert read(path).classes == ("Bücher", "Käfer")


def test_what_only_looks_like_another_format(tmp_path):
    """Class folders stay class folders, whatever lies beside them."""
    folder(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos" / "backup.tar", "w") as archive:
        add(archive, "x.json", b"{}")
    (tmp_path / "photos" / "labels.csv").write_text("id,breed\n1,dog\n")
    catalog = read(tmp_path / "photos")
    assert table(catalog) == WANTED
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path, content in CONTENT.items():
            add(archive, path, content)
        add(archive, "labels.json", b"{}")
    assert table(read(tmp_path / "set.tar")) == WANTED


def test_mnist_as_torchvision_leaves_it(tmp_path):
    """Packed and unpacked files lie side by side."""
    files = {"images-idx3": np.zeros((2, 28, 28), np.uint8), "labels-idx1": np.arange(2, dtype=np.uint8)}
    for name, array in files.items():
        (tmp_path / f"train-{name}-ubyte").write_bytes(idx(array))
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    assert [photo.label for photo in read(tmp_path).photos] == ["0", "1"]


def test_an_imagefolder_with_metadata_in_each_split(tmp_path):
    for split in ("train", "test"):
        lines = ["file_name,label"]
        for path, content in CONTENT.items():
            if path.startswith(split):
                name = path.removeprefix(split + "/").replace("/", "-")
                (tmp_path / split).mkdir(exist_ok=True)
                (tmp_path / split / name).write_bytes(content)
                lines.append(f"{name},{path.split('/')[1]}")
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    assert table(read(tmp_path)) == WANTED


def test_photos_without_a_group_are_said(tmp_path):
    (warning,) = read(folder(tmp_path), group_by="鳥").warnings
    assert warning == "3 photos in which --group-by finds no group"
