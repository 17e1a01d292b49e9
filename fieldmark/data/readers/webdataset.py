"""WebDataset shards (tar files of KEY.jpg beside KEY.cls or KEY.json) -> table of photos, read in place; and back.

The layout: https://github.com/webdataset/webdataset. A class is what KEY.cls says, or "label" in KEY.json; a number is
its own name unless classes.txt beside the shards has a line for it. KEY.json may name a "group" and a "box" too.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import SPLIT_ALIASES, Photo, has_image_extension
from fieldmark.data.image import UnreadableImageError, read_file
from fieldmark.data.readers.archives import TarArchive
from fieldmark.data.readers.files import FileTree, Folder, FolderListing
from fieldmark.data.readers.folders import ReaderResult

_LABEL_FIELDS = ("cls", "label", "class", "label_name")
"""Of KEY.json: the first that is there names the class."""


class ShardFiles:
    """The photos of several tar files: SHARD/KEY.jpg."""

    def __init__(self, root: Path, tars: dict[str, TarArchive]) -> None:
        self.root, self.tars = root, tars

    def list_folder(self, folder: str = "") -> FolderListing:
        return (sorted(self.tars), []) if not folder else ([], sorted(self.walk(folder)))

    def walk(self, folder: str = "") -> Iterator[str]:
        for name, tar in self.tars.items():
            if folder in ("", name):
                yield from (f"{name}/{member}" for member in tar.members)

    def read_bytes(self, path: str) -> bytes:
        shard, _, member = path.partition("/")
        if shard not in self.tars:
            raise UnreadableImageError("no such file")
        return self.tars[shard].read_member(member)


def list_images(files: FileTree) -> ReaderResult | None:
    """The photos of a folder of shards, or of a tar that is one; None where this is no such thing."""
    folder = files.root.parent if isinstance(files, TarArchive) else files.root
    if isinstance(files, TarArchive):
        tars = {files.root.name: files}
    elif isinstance(files, Folder):
        folders, names = files.list_folder()
        if folders:  # a tar beside class folders is somebody's backup
            return None
        tars = {name: TarArchive(files.root / name) for name in names if name.endswith(".tar")}
    else:
        return None
    if not any(
        has_image_extension(name) and _annotation_names(tar, name) for tar in tars.values() for name in tar.members
    ):
        return None
    classes_file = folder / "classes.txt"
    classes = read_file(classes_file).decode("utf-8", "surrogateescape").splitlines() if classes_file.is_file() else []
    photos, n_unlabelled = [], 0
    for shard, tar in tars.items():
        split = SPLIT_ALIASES.get(re.split(r"[-_.\d]", shard)[0].lower())
        for name in filter(has_image_extension, tar.members):
            annotation = _read_annotation(tar, name)
            if (label := annotation["label"]) is None:
                n_unlabelled += 1
                continue
            if label.isdecimal() and len(label) < 10 and int(label) < len(classes):
                label = classes[int(label)]
            photos.append(Photo(f"{shard}/{name}", label, split, annotation["group"], annotation["box"]))
    warnings = [f"{pluralize(n_unlabelled, 'photo')} without a class left out"] if n_unlabelled else []
    return ReaderResult(ShardFiles(files.root, tars), photos, warnings)


def _annotation_names(tar: TarArchive, photo: str) -> list[str]:
    """The names of the files that say something about the photo."""
    key = photo.rpartition(".")[0]
    return [name for name in (f"{key}.cls", f"{key}.json") if name in tar.members]


def _read_annotation(tar: TarArchive, photo: str) -> dict[str, Any]:
    """label, group and box of a photo; each None where nothing says it."""
    annotation, label = dict[str, Any](), None
    for name in _annotation_names(tar, photo):
        try:
            content = tar.read_member(name)
            if name.endswith(".cls"):
                label = content.decode("utf-8", "surrogateescape").strip() or None
            elif isinstance(parsed := json.loads(content), dict):
                annotation = parsed
            box = tuple(map(float, annotation["box"])) if annotation.get("box") else None
            if box and len(box) != 4:
                raise ValueError(f"a box of {len(box)} numbers")
        except (UnreadableImageError, ValueError, TypeError) as error:
            raise FieldmarkError(f"{printable(f'{tar.root}: {name}')} cannot be read ({error}): pack it anew") from None
    if label is None:
        label = next((str(annotation[field]) for field in _LABEL_FIELDS if annotation.get(field) is not None), None)
    group = annotation.get("group")
    return {"label": label, "group": None if group is None else str(group), "box": box}


class ShardWriter:
    """Shards of about `size` bytes in a folder: PREFIX-000000.tar and so on.

    Names are those of the photos, so that each can be found again; two of one name but for its ending, which would be
    one to WebDataset, get a number.
    """

    def __init__(self, folder: Path, prefix: str, size: int) -> None:
        self.folder, self.prefix, self.size = folder, prefix, size
        self.files, self.keys = list[Path](), set[str]()
        self.tar: tarfile.TarFile | None = None

    def add(self, photo: Photo, class_index: int, content: bytes) -> None:
        """A photo with the number of its class."""
        if self.tar is None:
            self.files.append(self.folder / f"{self.prefix}-{len(self.files):06}.tar")
            self.tar = tarfile.open(self.files[-1], "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  # `close` does
        key, extension = self._unique_key(photo.path), photo.path.rpartition(".")[2].lower()
        self._add_member(
            f"{key}.{extension if has_image_extension(photo.path) else _guess_extension(content)}", content
        )
        self._add_member(f"{key}.cls", str(class_index).encode())
        extra_fields = {"group": photo.group, "box": photo.box}
        if any(value is not None for value in extra_fields.values()):
            annotation = {
                "label": photo.label,
                **{name: value for name, value in extra_fields.items() if value is not None},
            }
            self._add_member(f"{key}.json", json.dumps(annotation).encode())
        if self.tar.offset >= self.size:
            self.close()

    def close(self) -> None:
        """The last shard is whole."""
        if self.tar is not None:
            self.tar.close()
            self.tar = None

    def _add_member(self, name: str, content: bytes) -> None:
        assert self.tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.tar.addfile(member, io.BytesIO(content))

    def _unique_key(self, path: str) -> str:
        """The photo's path without what ends or splits a key: WebDataset's end at the first dot of the last name."""
        *folders, name = (part for part in path.split("/") if part not in ("", ".", ".."))
        stem = name.rpartition(".")[0] if has_image_extension(name) else name
        base_key = "/".join([*folders, stem.replace(".", "_").lstrip("_") or "photo"])
        key = next(k for k in _candidate_names(base_key) if k not in self.keys)
        self.keys.add(key)
        return key


def _candidate_names(name: str) -> Iterable[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _guess_extension(content: bytes) -> str:
    """The extension of a photo that came without one, as from a table."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG2000": "jp2"}.get(str(image.format), str(image.format).lower())
    except Exception:  # a damaged photo, which the audit will name
        return "jpg"
