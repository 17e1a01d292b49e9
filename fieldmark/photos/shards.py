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
from fieldmark.photos.archives import Tar
from fieldmark.photos.catalog import SPLITS, Photo, count, is_photo, printable
from fieldmark.photos.decode import Unreadable
from fieldmark.photos.files import Files, Folder, Names
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
        tars = {files.root.name: files}
    elif isinstance(files, Folder):
        folders, names = files.entries()
        if folders:  # a tar beside class folders is somebody's backup
            return None
        tars = {name: Tar(files.root / name) for name in names if name.endswith(".tar")}
        if "classes.txt" in names:
            classes = files.contents("classes.txt").decode("utf-8", "replace").splitlines()
    else:
        return None
    if not any(is_photo(name) and _said(tar, name) for tar in tars.values() for name in tar.members):
        return None
    photos, without = [], 0
    for shard, tar in tars.items():
        split = SPLITS.get(re.split(r"[-_.\d]", shard)[0].lower())
        for name in filter(is_photo, tar.members):
            if (label := _label(tar, name)) is None:
                without += 1
                continue
            named = classes[int(label)] if label.isdecimal() and int(label) < len(classes) else label
            photos.append(Photo(f"{shard}/{name}", named, split))
    warnings = [f"{count(without, 'photo')} without a class left out"] if without else []
    return Listed(Shards(files.root, tars), photos, warnings)


def _said(tar: Tar, photo: str) -> str | None:
    """The name of the file that says the photo's class."""
    key = photo.rpartition(".")[0]
    return next((name for name in (f"{key}.cls", f"{key}.json") if name in tar.members), None)


def _label(tar: Tar, photo: str) -> str | None:
    if (name := _said(tar, photo)) is None:
        return None
    try:
        content = tar.read(name)
        if name.endswith(".cls"):
            return content.decode("utf-8", "surrogateescape").strip() or None
        said: Any = json.loads(content)
    except (Unreadable, ValueError) as error:
        raise FieldmarkError(f"{printable(f'{tar.root}: {name}')} cannot be read ({error}): pack it anew") from None
    found = next((said[field] for field in _FIELDS if field in said), None) if isinstance(said, dict) else None
    return None if found is None else str(found)
