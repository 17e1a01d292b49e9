"""Data sets of benchmarks/suite.py: a name or a folder -> images, their split of a seed, groups."""

import csv
import hashlib
import json
import shlex
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SETS = {
    "solar-cells": "--positive defective",  # of the package elpv-dataset
    "magnetic-tile": r"--group-by _num_(\d+)",  # a tile under several exposures
    "flowers128": "",
    "trashnet": "",
    "birds100": "",
}
"""Options of `fieldmark train` for each data set."""
ARCHIVES = {"mnist": 200}
"""Data sets that --sets may name as well: zip files, of which so many images of each folder are taken."""


@dataclass(frozen=True)
class ImageSet:
    """A folder of images, and the options of `fieldmark train` for it."""

    name: str
    folder: Path
    options: str = ""

    @property
    def positive(self) -> str | None:
        return self._option("--positive")

    @property
    def group_by(self) -> str | None:
        return self._option("--group-by")

    def _option(self, name: str) -> str | None:
        words = split_words(self.options)
        return words[words.index(name) + 1] if name in words else None


def split_words(options: str) -> list[str]:
    """The words of a command line; a backslash is a character like others, for regular expressions."""
    lexer = shlex.shlex(options, posix=True, punctuation_chars="")
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    return list(lexer)


def find_sets(words: Sequence[str], data: Path, work: Path, images_per_class: int | None) -> Iterator[ImageSet]:
    """The data sets of these names or paths; one that is missing is named and left out."""
    for word in words:
        name, *options = split_words(word)
        known = name in SETS or name in ARCHIVES
        folder = data / name if known else Path(name).resolve()
        limit = images_per_class
        if name == "solar-cells":
            folder = copy_solar_cells(work / name)
        elif name in ARCHIVES and (data / f"{name}.zip").exists():
            limit = limit or ARCHIVES[name]
            folder = unpack(data / f"{name}.zip", limit, work / f"{name}-{limit}")
        if not folder.is_dir():
            print(f"{name} is left out: {folder} is missing", flush=True)
            continue
        if limit and name not in ARCHIVES:
            folder = take_few(folder, limit, work / "few" / f"{folder.name}-{limit}")
        own = " ".join(map(quote, options)) or SETS.get(name, "")
        yield ImageSet(f"{Path(name).name}-{limit}" if limit else Path(name).name, folder, own)


def quote(word: str) -> str:
    """As `split_words` reads it."""
    return word if word and not set(word) & set(" '\"") else f"'{word}'" if "'" not in word else f'"{word}"'


def copy_solar_cells(folder: Path) -> Path:
    from fieldmark.core.errors import FieldmarkError
    from fieldmark.pipeline import demo

    try:
        return demo.copy_solar_cells(folder)
    except FieldmarkError as error:
        print(f"solar-cells: {error}", flush=True)
        return folder


def unpack(archive: Path, limit: int, out: Path) -> Path:
    """At most so many images of each folder of a zip file -> the folder with the classes."""
    from fieldmark.core.io import new_folder

    if not out.exists():
        with zipfile.ZipFile(archive) as file, new_folder(out) as half:
            taken = Counter[str]()
            for name in sorted(name for name in file.namelist() if not name.endswith("/")):
                parent = name.rpartition("/")[0]
                taken[parent] += 1
                if taken[parent] <= limit:
                    file.extract(name, half)
    inside = list(out.iterdir())
    return inside[0] if len(inside) == 1 else out


def take_few(folder: Path, limit: int, out: Path) -> Path:
    """A tree of links to at most so many images of each folder."""
    from fieldmark.core.io import new_folder

    if not out.exists():
        with new_folder(out) as half:
            for part in filter(Path.is_dir, folder.rglob("*")):
                for file in sorted(filter(Path.is_file, part.iterdir()))[:limit]:
                    link(file, half / file.relative_to(folder))
    return out


def link(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(file.resolve())


def draw_split(images: ImageSet, seed: int, tree: Path) -> Path:
    """Fieldmark's split of the seed: a tree of links, split.csv, and groups.json with the group of each image."""
    if tree.exists():
        return tree
    from fieldmark.core.io import new_folder, write_json
    from fieldmark.core.progress import Reporter
    from fieldmark.data.decisions import load_recipe_catalog
    from fieldmark.pipeline.prepare import prepare_data
    from fieldmark.recipes.recipe import Recipe
    from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe

    recipe = Recipe(seed=seed, group_by=images.group_by, stream=True)  # streamed: no pixels are cached
    recipe = resolve_recipe(recipe, print)
    catalog = load_recipe_catalog(images.folder, recipe)
    preprocessing = make_preprocessing(build_network(recipe, len(catalog.classes), weights=False), recipe)
    try:
        with tempfile.TemporaryDirectory() as run, new_folder(tree) as half:
            (Path(run) / "resume").mkdir()
            groups = prepare_data(catalog, preprocessing, recipe, Path(run), Reporter(quiet=True)).groups
            group_of_place = {}
            for path, label, split in read_split(Path(run) / "split.csv"):
                place = place_in_tree(path, label, split)
                link(images.folder / path, half / place)
                group_of_place[place] = groups[path]
            shutil.copyfile(Path(run) / "split.csv", half / "split.csv")
            write_json(half / "groups.json", group_of_place)
    except OSError:  # another suite was faster
        if not tree.exists():
            raise
    return tree


def place_in_tree(path: str, label: str, split: str) -> str:
    return f"{split}/{label}/{path.replace('/', '_')}"


def read_split(file: Path) -> list[tuple[str, str, str]]:
    """(path, label, split) of every image."""
    return sorted((row["path"], row["label"], row["split"]) for row in read_csv(file))


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def hash_split(file: Path) -> str:
    return hashlib.sha256(repr(read_split(file)).encode()).hexdigest()[:12]


@cache
def read_groups(tree: Path) -> dict[str, int]:
    return json.loads((tree / "groups.json").read_text(encoding="utf-8"))


def tree_name(images: ImageSet) -> str:
    """Of the folder of its splits: another one for another source or other options."""
    key = f"{images.folder}\n{images.options}"
    return f"{images.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
