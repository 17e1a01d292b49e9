"""The same six photos in every kind of container that can be read."""

import csv
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from fieldmark.data.catalog import Catalog


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(packed, "PNG")
    return packed.getvalue()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 white pixels, a bit each."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(b"\0" + b"\xff" * 3750) for _ in range(30_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CONTENT = {
    f"{split}/{label}/{k}.png": png(10 * i + k)
    for i, label in enumerate(("鳥", "猫 2"))
    for k, split in enumerate(("train", "train", "test"))
}
"""Split folders with class folders: what is packed into every container."""


def cub(root: Path, photos: Iterable[tuple[int, bytes]]) -> Path:
    """Labels from 1 on with PNG or JPEG files, as CUB-200-2011 is shipped: every other one to train on, with boxes."""
    lines: dict[str, list[str]] = defaultdict(list)
    for k, (label, content) in enumerate(photos, 1):
        name = f"{label:03}.Bird_{label}"
        path = root / "images" / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        lines["images"].append(f"{k} {name}/{k}.png")
        lines["image_class_labels"].append(f"{k} {label}")
        lines["train_test_split"].append(f"{k} {int(k % 2 == 0)}")
        lines["bounding_boxes"].append(f"{k} {float(k % 9)} 2.0 20.0 10.0")
        if f"{label} {name}" not in lines["classes"]:
            lines["classes"].append(f"{label} {name}")
    for name, text in lines.items():
        (root / f"{name}.txt").write_text("\n".join(text))
    return root


def table(catalog: Catalog) -> set[tuple[bytes, str, str | None]]:
    """What a table says, whatever its paths are called."""
    return {(catalog.read_bytes(photo), photo.label, photo.split) for photo in catalog.photos}


WANTED = {(content, path.split("/")[1], path.split("/")[0]) for path, content in CONTENT.items()}


def touch(root: Path, *names: str) -> Path:
    """Files that only have the names of photos; a name that ends in "/" is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"photo")
    return root


def mirrored(source: Path, target: Path) -> Path:
    """A folder of photos as other photos of the same kind: mirrored."""
    target.mkdir(parents=True)
    for file in source.glob("*.jpg"):
        with Image.open(file) as image:
            ImageOps.mirror(image).save(target / file.name, quality=90)
    return target


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
