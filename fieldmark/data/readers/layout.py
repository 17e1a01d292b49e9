"""Which folders are splits, which are classes, and which hold photos without a label.

What is not clear from the names and from what lies in the folders is refused with both readings: a classifier that was
trained to tell train from test looks as good as any other.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable, summarize_names
from fieldmark.data.catalog import has_image_extension
from fieldmark.data.readers.files import MAX_SNIFFED, FileTree, FolderListing, join_path, select_images
from fieldmark.data.split_names import SplitName, disambiguate, names_part, names_unlabelled, parse_split_name

MAX_WRAPPERS = 4
"""Folders around a dataset, one in the other, as unpacking an archive leaves them."""
_NOT_CLASSES = frozenset(("masks", "mask", "annotations", "annotation", "segmentations", "groundtruth", "labels"))
_IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "photos"))


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose photos, also those in its subfolders, are of one class and one split."""

    path: str
    label: str
    split: str | None = None


@dataclass(frozen=True)
class Layout:
    """What the folders of a dataset are.

    Attributes:
        parents: the folders that hold class folders; "" is the top.
        unlabelled: folders of photos without a label.
        others: folders that are neither.
        warnings: what a person should know about this reading.
    """

    classes: list[ClassFolder]
    parents: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_split(self) -> bool:
        """Whether the folders are divided into train/, val/ and test/."""
        return any(folder.split for folder in self.classes)


def find_layout(files: FileTree, min_classes: int = 2) -> Layout:
    """The layout of a folder of folders.

    Args:
        min_classes: a single folder is a class where one class is enough, unless it holds splits.

    Raises:
        FieldmarkError: it can be read in two ways, or the photos have no labels.
    """
    wrapper = _find_wrapper(files)
    if not wrapper:
        return _LayoutFinder(files).find()
    layout = _LayoutFinder(_InnerTree(files, wrapper)).find()
    if min_classes < 2 and not layout.is_split:
        return _LayoutFinder(files).find()
    note = [] if layout.is_split else [f"the class folders are those in {printable(wrapper)}"]
    parents, unlabelled, others = (
        [join_path(wrapper, path) for path in paths] for paths in (layout.parents, layout.unlabelled, layout.others)
    )
    classes = [replace(folder, path=join_path(wrapper, folder.path)) for folder in layout.classes]
    return Layout(classes, parents, unlabelled, others, [*note, *layout.warnings])


def _find_wrapper(files: FileTree) -> str:
    """The only folder at the top, or in that, which holds several folders and no photos; empty if there is none."""
    path = ""
    for _ in range(MAX_WRAPPERS):
        folders, names = files.list_folder(path)
        if len(folders) != 1 or any(map(has_image_extension, names)) or parse_split_name(folders[0]):
            break
        path = join_path(path, folders[0])
    folders, names = files.list_folder(path)
    return path if len(folders) > 1 and not any(map(has_image_extension, names)) else ""


class _InnerTree:
    """A folder of a file tree as a tree of its own."""

    def __init__(self, files: FileTree, folder: str) -> None:
        self.files, self.folder, self.root, self.note = files, folder, files.root / folder, files.note

    def list_folder(self, folder: str = "") -> FolderListing:
        return self.files.list_folder(join_path(self.folder, folder))

    def walk(self, folder: str = "") -> Iterator[str]:
        return (path.removeprefix(f"{self.folder}/") for path in self.files.walk(join_path(self.folder, folder)))

    def read_bytes(self, path: str) -> bytes:
        return self.files.read_bytes(join_path(self.folder, path))


class _LayoutFinder:
    """Looks at the names of the first two or three levels of folders."""

    def __init__(self, files: FileTree) -> None:
        self.files, self.root = files, printable(str(files.root))
        self._list = cache(files.list_folder)
        self.folders, _ = self._list("")
        self.names = {name: parsed for name in self.folders if (parsed := parse_split_name(name))}
        self.parent_of = {name: self._class_parent(name) for name in self.folders}
        self.children = {name: self._list(parent)[0] for name, parent in self.parent_of.items()}

    def find(self) -> Layout:
        layout = self._find()
        self._refuse_masks({folder.label for folder in layout.classes})
        return layout

    def _find(self) -> Layout:
        splits = self._split_folders()
        if splits:
            return self._read_splits(splits)
        self._refuse_flat_splits()
        if layout := self._read_labels_in_names():
            return layout
        if layout := self._read_splits_in_classes() or self._read_parts():
            return layout
        unlabelled = [name for name in self.folders if names_unlabelled(name) and not self.children[name]]
        classes = [ClassFolder(name, name) for name in self.folders if name not in unlabelled]
        return Layout(classes, [""], unlabelled, warnings=self._warn_equal_children())

    # ---- splits at the top

    def _split_folders(self) -> dict[str, str]:
        """The split of each folder that holds class folders and is named after a split; empty if there are none."""
        named = {
            name: parsed
            for name, parsed in self.names.items()
            if self.children[name] and not (parsed.rest and _are_splits(self.children[name]))
        }
        exact = {name: parsed for name, parsed in named.items() if not parsed.rest}
        kinds = {parsed.split for parsed in named.values()}
        if len(kinds) > 1 and (named == exact or self._are_alike(named)):
            return self._resolve(named)
        if len({parsed.split for parsed in exact.values()}) > 1:
            return self._resolve(exact)
        if len(exact) != 1:
            return {}
        (only,) = exact
        beside = [name for name in self.folders if name != only]
        if all(self._is_no_class(name) for name in beside) or any(
            self._is_no_class(name) and not self.children[name] for name in beside
        ):
            return self._resolve(exact)
        if len(self.children[only]) > 1:
            inner, outer = summarize_names(self.children[only], 3), summarize_names(self.folders, 3)
            raise FieldmarkError(
                f"{self.root}: are the classes {inner} (then give {printable(str(self.files.root / only))}) or {outer} "
                f"(then rename {printable(only)}, which is the name of a split)?"
            )
        return {}

    def _are_alike(self, named: dict[str, SplitName]) -> bool:
        """Whether folders such as seg_train and seg_test are splits: by one prefix, or by equal class folders."""
        if len({parsed.rest for parsed in named.values()}) == 1:
            return True
        by_split: dict[str, set[str]] = defaultdict(set)
        for name, parsed in named.items():
            by_split[parsed.split].update(child.casefold() for child in self.children[name])
        first, *others = by_split.values()
        return all(first & other for other in others)

    def _is_no_class(self, name: str) -> bool:
        """Whether it is named after a split, or as photos without labels."""
        return names_unlabelled(name) or (name in self.names and not self.names[name].rest)

    def _resolve(self, named: dict[str, SplitName]) -> dict[str, str]:
        kinds = {parsed.split for parsed in named.values()}
        return {name: disambiguate(parsed.split, kinds) for name, parsed in named.items()}

    def _read_splits(self, splits: dict[str, str]) -> Layout:
        classes = [
            ClassFolder(join_path(self.parent_of[name], label), label, split)
            for name, split in splits.items()
            for label in self.children[name]
        ]
        beside = [name for name in self.folders if name not in splits]
        prefixes = {self.names[name].rest for name in splits}
        unlabelled = [
            name
            for name in beside
            if self._holds_images(name)
            and (names_unlabelled(name) or (name in self.names and self.names[name].rest in prefixes))
        ]
        others = [name for name in beside if name not in unlabelled]
        return Layout(classes, [self.parent_of[name] for name in splits], unlabelled, others)

    def _class_parent(self, name: str) -> str:
        """The folder itself, or the only one in it if that repeats its name (seg_train/seg_train/CLASS)."""
        path = name
        for _ in range(3):
            inner, photos = self._list(path)
            repeats = len(inner) == 1 and not any(map(has_image_extension, photos)) and self._repeats(name, inner[0])
            if not repeats or not self._list(join_path(path, inner[0]))[0]:
                break
            path = join_path(path, inner[0])
        return path

    def _repeats(self, name: str, inner: str) -> bool:
        if name not in self.names:
            return False
        return inner.casefold() in {name.casefold(), *_IMAGE_FOLDERS} or parse_split_name(inner) == self.names[name]

    def _holds_images(self, name: str) -> bool:
        if any(map(has_image_extension, self.files.walk(name))):
            return True
        return bool(select_images(self.files, list(islice(self.files.walk(name), MAX_SNIFFED))))

    # ---- splits without class folders

    def _refuse_flat_splits(self) -> None:
        """Photos in train/ and test/ have no label; test/ beside class folders is no class."""
        exact = [name for name, parsed in self.names.items() if not parsed.rest]
        flat = [name for name in exact if not self.children[name]]
        others = [name for name in self.folders if name not in exact and not names_unlabelled(name)]
        if self._has_one_prefix():
            flat, others = list(self.names), []
        if not flat or (others and not self._is_clearly_no_class(exact, others)):
            return
        names = summarize_names(flat, 3)
        if not others:
            raise FieldmarkError(
                f"{self.root}: the photos in {names} have no labels, since these folders are named after splits and "
                "hold no class folders: put them into a folder for each class, or give a table with the columns path "
                "and label"
            )
        raise FieldmarkError(
            f"{self.root}: is {names} a class beside {summarize_names(others, 3)}, or does it hold other photos? "
            "Rename it if it is a class, or move it away if it is not"
        )

    def _has_one_prefix(self) -> bool:
        """Whether all folders are as birds_train and birds_test, of several splits."""
        rests, kinds = ({getattr(p, part) for p in self.names.values()} for part in ("rest", "split"))
        return len(rests) == 1 and len(kinds) > 1 and all(n in self.names or names_unlabelled(n) for n in self.folders)

    def _is_clearly_no_class(self, exact: list[str], others: list[str]) -> bool:
        """Whether folders named after splits are no classes: vehicles have trains, and documents may be valid."""
        kinds = {self.names[name].split for name in exact}
        return kinds != {"train"} and "invalid" not in map(str.casefold, others)

    def _read_labels_in_names(self) -> Layout | None:
        """Folders such as `cat train`, `cat test`, `dog train`, `dog test`."""
        if len(self.names) < len(self.folders) or not all(parsed.rest for parsed in self.names.values()):
            return None
        splits_of: dict[str, set[str]] = defaultdict(set)
        for parsed in self.names.values():
            splits_of[parsed.rest].add(parsed.split)
        if len(splits_of) < 2 or not all(len(splits) > 1 for splits in splits_of.values()):
            return None
        resolved = self._resolve(self.names)
        classes = [ClassFolder(name, parsed.rest, resolved[name]) for name, parsed in self.names.items()]
        return Layout(classes, [""])

    # ---- splits and parts within classes

    def _read_splits_in_classes(self) -> Layout | None:
        """Folders such as cat/train, cat/test, dog/train, dog/test."""
        parsed = {
            (name, child): p for name in self.folders for child in self.children[name] if (p := parse_split_name(child))
        }
        kinds = {p.split for p in parsed.values()}
        if not _are_splits([child for _, child in parsed]):
            return None
        plain = [
            name
            for name in self.folders
            if self._holds_images(name)
            and (
                any((name, child) not in parsed for child in self.children[name])
                or any(map(has_image_extension, self._list(name)[1]))
            )
        ]
        divided = sorted({name for name, _ in parsed})
        if plain:
            raise FieldmarkError(
                f"{self.root}: {summarize_names(divided, 3)} are divided into splits, and {summarize_names(plain, 3)} "
                "are not wholly: divide all classes into the same splits, or none"
            )
        classes = [
            ClassFolder(join_path(name, child), name, disambiguate(p.split, kinds))
            for (name, child), p in parsed.items()
        ]
        return Layout(classes, [""])

    def _read_parts(self) -> Layout | None:
        """Folders such as fold_1, fold_2 with the same class folders in each."""
        if len(self.folders) < 2 or not all(names_part(name) and self.children[name] for name in self.folders):
            return None
        labels = [set(self.children[name]) for name in self.folders]
        if not set.intersection(*labels):
            return None
        classes = [
            ClassFolder(join_path(self.parent_of[name], label), label)
            for name in self.folders
            for label in self.children[name]
        ]
        parts, inner = summarize_names(self.folders, 3), summarize_names(sorted(set.union(*labels)), 3)
        return Layout(classes, list(self.folders), warnings=[f"{parts} are read as parts of one set of {inner}"])

    def _warn_equal_children(self) -> list[str]:
        """A line if each folder holds the same folders, which may be the classes."""
        inner = [set(self.children[name]) for name in self.folders if self.children[name]]
        if len(inner) < 2 or any(len(names) < 2 for names in inner) or len(set(map(frozenset, inner))) > 1:
            return []
        if not all(self._holds_images(name) for name in self.folders):
            return []
        return [
            f"the classes are {summarize_names(self.folders, 3)}, and each holds the folders "
            f"{summarize_names(sorted(inner[0]), 3)}: if these are the classes, list the photos in a table"
        ]

    def _refuse_masks(self, labels: set[str]) -> None:
        """images/ beside masks/ is a dataset of another task."""
        words = {label: re.sub(r"[\W_\d]+", "", label).casefold() for label in labels}
        kinds = [words[label] in _IMAGE_FOLDERS for label in labels if words[label] in _IMAGE_FOLDERS | _NOT_CLASSES]
        if len(kinds) == len(labels) and any(kinds) and not all(kinds):
            raise FieldmarkError(
                f"{self.root}: {summarize_names(sorted(labels))} are no classes: give a folder of class folders, or "
                "a table with the columns path and label"
            )


def _are_splits(names: list[str]) -> bool:
    """Whether all names are of splits, of several, and say nothing else that differs."""
    parsed = [parse_split_name(name) for name in names]
    splits = {p.split for p in parsed if p}
    return None not in parsed and len(splits) > 1 and len({p.rest for p in parsed if p}) == 1
