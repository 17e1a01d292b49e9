"""Reader and writer of WebDataset shards: tar files of KEY.jpg beside KEY.cls or KEY.json, read in place.

The layout: https://github.com/webdataset/webdataset. The class is in KEY.cls, or in KEY.json as "label". A number is a
line of classes.txt beside the shards, if there is such a line, and else its own name. KEY.json may have a "group" and a
"box".
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import Photo, has_image_extension
from fieldmark.data.image import Box, UnreadableImageError, read_file, read_header
from fieldmark.data.readers.archives import TarArchive
from fieldmark.data.readers.files import FileTree, Folder, ReaderResult, VirtualTree
from fieldmark.data.split_names import splits_of_files

_LABEL_FIELDS = ("cls", "label", "class", "label_name")
"""Fields of KEY.json: the first that is there is the class."""


class ShardFiles(VirtualTree):
    """The images of several tar files, as SHARD/KEY.jpg."""

    def __init__(self, root: Path, tars: dict[str, TarArchive]) -> None:
        super().__init__(root, tars)
        self.tars = tars

    def file_names(self, folder: str) -> Iterable[str]:
        return self.tars[folder].members

    def read_bytes(self, path: str) -> bytes:
        shard, _, member = path.partition("/")
        if shard not in self.tars:
            raise UnreadableImageError("no such file")
        return self.tars[shard].read_member(member)


def list_images(files: FileTree) -> ReaderResult | None:
    """The images of a folder of shards, or of a tar that is one; None if this is another dataset."""
    tars = _open_shards(files)
    if not any(
        has_image_extension(name) and _annotation_names(tar, name) for tar in tars.values() for name in tar.members
    ):
        return None
    classes, photos, n_unlabelled = _read_class_names(files), list[Photo](), 0
    splits = splits_of_files(tars)
    for shard, tar in tars.items():
        split = splits[shard]
        for name in filter(has_image_extension, tar.members):
            label, group, box = _read_annotation(tar, name)
            if label is None:
                n_unlabelled += 1
                continue
            if label.isdecimal() and len(label) < 10 and int(label) < len(classes):
                label = classes[int(label)]
            photos.append(Photo(f"{shard}/{name}", label, split, group, box))
    warnings = [f"{pluralize(n_unlabelled, 'photo')} without a class left out"] if n_unlabelled else []
    return ReaderResult(ShardFiles(files.root, tars), photos, warnings)


def _open_shards(files: FileTree) -> dict[str, TarArchive]:
    """The tar files by name; none if this is no folder of shards."""
    if isinstance(files, TarArchive):
        return {files.root.name: files}
    if not isinstance(files, Folder):
        return {}
    folders, names = files.list_folder()
    if folders:  # a tar beside class folders is a backup
        return {}
    return {name: TarArchive(files.root / name) for name in names if name.endswith(".tar")}


def _read_class_names(files: FileTree) -> list[str]:
    """The lines of classes.txt beside the shards."""
    file = (files.root.parent if isinstance(files, TarArchive) else files.root) / "classes.txt"
    return read_file(file).decode("utf-8", "surrogateescape").splitlines() if file.is_file() else []


def _annotation_names(tar: TarArchive, photo: str) -> list[str]:
    """The names of the files that annotate an image."""
    key = photo.rpartition(".")[0]
    return [name for name in (f"{key}.cls", f"{key}.json") if name in tar.members]


class _Annotation(NamedTuple):
    label: str | None
    group: str | None
    box: Box | None


def _read_annotation(tar: TarArchive, photo: str) -> _Annotation:
    fields, label, box = dict[str, Any](), None, None
    for name in _annotation_names(tar, photo):
        try:
            content = tar.read_member(name)
            if name.endswith(".cls"):
                label = content.decode("utf-8", "surrogateescape").strip() or None
            elif isinstance(parsed := json.loads(content), dict):
                fields, box = parsed, _parse_box(parsed.get("box"))
        except (UnreadableImageError, ValueError, TypeError) as error:
            raise FieldmarkError(f"{printable(f'{tar.root}: {name}')} cannot be read ({error}): pack it anew") from None
    if label is None:
        label = next((str(fields[field]) for field in _LABEL_FIELDS if fields.get(field) is not None), None)
    group = fields.get("group")
    return _Annotation(label, None if group is None else str(group), box)


def _parse_box(value: Any) -> Box | None:
    if not value:
        return None
    numbers = tuple(map(float, value))
    if len(numbers) != 4:
        raise ValueError(f"a box of {len(numbers)} numbers")
    return numbers


class ShardWriter:
    """Writes shards of about `size` bytes into a folder: PREFIX-000000.tar, PREFIX-000001.tar, ...

    A key is the path of the image. Paths that differ only in the extension would be one sample to WebDataset: the
    second gets a number.
    """

    def __init__(self, folder: Path, prefix: str, size: int) -> None:
        self.folder, self.prefix, self.size = folder, prefix, size
        self.files, self.keys = list[Path](), set[str]()
        self.tar: tarfile.TarFile | None = None

    def add(self, photo: Photo, class_index: int, content: bytes) -> None:
        """An image, the number of its class, and the bytes of its file."""
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
        """Complete the last shard."""
        if self.tar is not None:
            self.tar.close()
            self.tar = None

    def _add_member(self, name: str, content: bytes) -> None:
        assert self.tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.tar.addfile(member, io.BytesIO(content))

    def _unique_key(self, path: str) -> str:
        """The path without extension and other dots in the name, since a key of WebDataset ends at the first dot."""
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
    """The extension for an image without one, as from a table."""
    try:
        kind = read_header(content).format
    except UnreadableImageError:  # a damaged image, which the audit reports
        return "jpg"
    return {"JPEG2000": "jp2", "DICOM": "dcm"}.get(kind, kind.lower())
