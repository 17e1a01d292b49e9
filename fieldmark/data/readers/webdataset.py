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
from fieldmark.data.catalog import SPLITS, Photo, count, is_photo, printable
from fieldmark.data.image import Unreadable, contents
from fieldmark.data.readers.archives import Tar
from fieldmark.data.readers.files import Files, Folder, Names
from fieldmark.data.readers.folders import Listed

_FIELDS = ("cls", "label", "class", "label_name")
"""Of KEY.json: the first that is there names the class."""


class Shards:
    """The photos of several tar files: SHARD/KEY.jpg."""

    def __init__(self, root: Path, tars: dict[str, Tar]) -> None:
        self.root, self.tars = root, tars

    def entries(self, folder: str = "") -> Names:
        return (sorted(self.tars), []) if not folder else ([], sorted(self.below(folder)))

    def below(self, folder: str = "") -> Iterator[str]:
        for name, tar in self.tars.items():
            if folder in ("", name):
                yield from (f"{name}/{member}" for member in tar.members)

    def contents(self, path: str) -> bytes:
        shard, _, member = path.partition("/")
        if shard not in self.tars:
            raise Unreadable("no such file")
        return self.tars[shard].read(member)


def listed(files: Files) -> Listed | None:
    """The photos of a folder of shards, or of a tar that is one; None where this is no such thing."""
    beside = files.root.parent if isinstance(files, Tar) else files.root
    if isinstance(files, Tar):
        tars = {files.root.name: files}
    elif isinstance(files, Folder):
        folders, names = files.entries()
        if folders:  # a tar beside class folders is somebody's backup
            return None
        tars = {name: Tar(files.root / name) for name in names if name.endswith(".tar")}
    else:
        return None
    if not any(is_photo(name) and _beside(tar, name) for tar in tars.values() for name in tar.members):
        return None
    named = beside / "classes.txt"
    classes = contents(named).decode("utf-8", "surrogateescape").splitlines() if named.is_file() else []
    photos, without = [], 0
    for shard, tar in tars.items():
        split = SPLITS.get(re.split(r"[-_.\d]", shard)[0].lower())
        for name in filter(is_photo, tar.members):
            said = _said(tar, name)
            if (label := said["label"]) is None:
                without += 1
                continue
            if label.isdecimal() and len(label) < 10 and int(label) < len(classes):
                label = classes[int(label)]
            photos.append(Photo(f"{shard}/{name}", label, split, said["group"], said["box"]))
    warnings = [f"{count(without, 'photo')} without a class left out"] if without else []
    return Listed(Shards(files.root, tars), photos, warnings)


def _beside(tar: Tar, photo: str) -> list[str]:
    """The names of the files that say something about the photo."""
    key = photo.rpartition(".")[0]
    return [name for name in (f"{key}.cls", f"{key}.json") if name in tar.members]


def _said(tar: Tar, photo: str) -> dict[str, Any]:
    """label, group and box of a photo; each None where nothing says it."""
    said, label = dict[str, Any](), None
    for name in _beside(tar, photo):
        try:
            content = tar.read(name)
            if name.endswith(".cls"):
                label = content.decode("utf-8", "surrogateescape").strip() or None
            elif isinstance(found := json.loads(content), dict):
                said = found
            box = tuple(map(float, said["box"])) if said.get("box") else None
            if box and len(box) != 4:
                raise ValueError(f"a box of {len(box)} numbers")
        except (Unreadable, ValueError, TypeError) as error:
            raise FieldmarkError(f"{printable(f'{tar.root}: {name}')} cannot be read ({error}): pack it anew") from None
    if label is None:
        label = next((str(said[field]) for field in _FIELDS if said.get(field) is not None), None)
    group = said.get("group")
    return {"label": label, "group": None if group is None else str(group), "box": box}


class Writer:
    """Shards of about `size` bytes in a folder: PREFIX-000000.tar and so on.

    Names are those of the photos, so that each can be found again; two of one name but for its ending, which would be
    one to WebDataset, get a number.
    """

    def __init__(self, folder: Path, prefix: str, size: int) -> None:
        self.folder, self.prefix, self.size = folder, prefix, size
        self.files, self.keys = list[Path](), set[str]()
        self.tar: tarfile.TarFile | None = None

    def add(self, photo: Photo, number: int, content: bytes) -> None:
        """A photo with the number of its class."""
        if self.tar is None:
            self.files.append(self.folder / f"{self.prefix}-{len(self.files):06}.tar")
            self.tar = tarfile.open(self.files[-1], "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  # `close` does
        key, ending = self._key(photo.path), photo.path.rpartition(".")[2].lower()
        self._put(f"{key}.{ending if is_photo(photo.path) else _ending(content)}", content)
        self._put(f"{key}.cls", str(number).encode())
        more = {"group": photo.group, "box": photo.box}
        if any(value is not None for value in more.values()):
            said = {"label": photo.label, **{name: value for name, value in more.items() if value is not None}}
            self._put(f"{key}.json", json.dumps(said).encode())
        if self.tar.offset >= self.size:
            self.close()

    def close(self) -> None:
        """The last shard is whole."""
        if self.tar is not None:
            self.tar.close()
            self.tar = None

    def _put(self, name: str, content: bytes) -> None:
        assert self.tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.tar.addfile(member, io.BytesIO(content))

    def _key(self, path: str) -> str:
        """The photo's path without what ends or splits a key: WebDataset's end at the first dot of the last name."""
        *folders, name = (part for part in path.split("/") if part not in ("", ".", ".."))
        stem = name.rpartition(".")[0] if is_photo(name) else name
        plain = "/".join([*folders, stem.replace(".", "_").lstrip("_") or "photo"])
        key = next(k for k in _numbered(plain) if k not in self.keys)
        self.keys.add(key)
        return key


def _numbered(name: str) -> Iterable[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _ending(content: bytes) -> str:
    """The extension of a photo that came without one, as from a table."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG2000": "jp2"}.get(str(image.format), str(image.format).lower())
    except Exception:  # a damaged photo, which the audit will name
        return "jpg"
