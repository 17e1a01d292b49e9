"""WebDataset shards (tar files of KEY.jpg beside KEY.cls or KEY.json) -> table of photos, read in place.

The layout: https://github.com/webdataset/webdataset. A class is what KEY.cls says, or "label" in KEY.json; a number is
its own name unless classes.txt beside the shards has a line for it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fieldmark.errors import FieldmarkError
from fieldmark.photos.catalog import SPLITS, Photo, count, is_photo, printable
from fieldmark.photos.decode import Unreadable
from fieldmark.photos.files import Files, Folder, Names, Tar
from fieldmark.photos.folders import Listed

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
    classes = list[str]()
    if isinstance(files, Tar):
        if not any(map(_says_class, files.members)):
            return None
        tars = {files.root.name: files}
    elif isinstance(files, Folder):
        _, names = files.entries()
        found = sorted(name for name in names if name.endswith(".tar"))
        if not found:
            return None
        tars = {name: Tar(files.root / name) for name in found}
        if not any(_says_class(name) for tar in tars.values() for name in tar.members):
            return None
        if "classes.txt" in names:
            classes = files.contents("classes.txt").decode("utf-8", "replace").splitlines()
    else:
        return None
    photos, without = [], 0
    for shard, tar in tars.items():
        split = SPLITS.get(re.split(r"[-_.\d]", shard)[0].lower())
        for name in filter(is_photo, tar.members):
            if (label := _label(tar, name.rpartition(".")[0])) is None:
                without += 1
                continue
            named = classes[int(label)] if label.isdecimal() and int(label) < len(classes) else label
            photos.append(Photo(f"{shard}/{name}", named, split))
    warnings = [f"{count(without, 'photo')} without a class left out"] if without else []
    return Listed(Shards(files.root, tars), photos, warnings)


def _says_class(name: str) -> bool:
    return name.endswith((".cls", ".json"))


def _label(tar: Tar, key: str) -> str | None:
    if f"{key}.cls" in tar.members:
        return tar.read(f"{key}.cls").decode("utf-8", "surrogateescape").strip() or None
    if f"{key}.json" not in tar.members:
        return None
    try:
        said: Any = json.loads(tar.read(f"{key}.json"))
    except ValueError:
        raise FieldmarkError(f"{printable(f'{tar.root}: {key}.json')} is no JSON: pack it anew") from None
    found = next((said[name] for name in _FIELDS if name in said), None) if isinstance(said, dict) else None
    return None if found is None else str(found)
