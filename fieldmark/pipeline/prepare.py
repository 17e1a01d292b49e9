"""Table of photos + recipe -> audited, packed and split, ready to train on; kept in the run's folder."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.audit.audit import Look, audit, fingerprint, usable
from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.cache.pack import STREAMED, Pack, Packer, kind
from fieldmark.data.cache.stream import Stream
from fieldmark.data.catalog import Catalog, listing
from fieldmark.data.dataset import Data
from fieldmark.data.decisions import chosen
from fieldmark.data.readers.huggingface import Rows
from fieldmark.data.splits import read_split, split, write_split
from fieldmark.recipes.recipe import Recipe

SHOWN, LEAST_SHOWN = 400, 8
"""Training photos whose features are kept, at least so many of each class: more find no more strangers
(docs/performance.md)."""


@dataclass(frozen=True)
class Table:
    """The photos of a run, ready to train on."""

    classes: list[str]
    data: Data
    test: list[str]  # paths of the test photos
    groups: dict[str, int]  # path -> group of all photos, by number
    audit: dict[str, Any]

    @property
    def shown(self) -> np.ndarray:
        """The training photos whose features are kept: as many of each class, spread over all that it has."""
        labels, train = self.data.labels, self.data.train
        each = [train[labels[train] == k] for k in np.unique(labels[train])]
        share = max(LEAST_SHOWN, SHOWN // max(1, len(each)))
        return np.sort(np.concatenate([own[:: -(-len(own) // share)] for own in each]))

    @property
    def judged_last(self) -> int:
        """Photos that the network looks at when it is trained, beside those that it was chosen by."""
        return len(self.test) + len(self.shown)


def prepare(catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter) -> Table:
    """Audit, packed pixels and split; taken up from the run's folder where they are whole."""
    if recipe.positive and (len(catalog.classes) != 2 or recipe.positive not in catalog.classes):
        raise FieldmarkError(
            f"--positive {recipe.positive}: name one of two classes; these are {listing(list(catalog.classes))}"
        )
    if recipe.stream and isinstance(catalog.files, Rows) and catalog.files.in_order:
        raise FieldmarkError(
            f"--stream: {catalog.root} gives photos by the row group, not one by one; fieldmark pack it first"
        )
    if begun := (out / "split.csv").exists():
        _same_photos(catalog, out)
    resume, many = out / "resume", recipe.nodes > 1  # machines, which share the run's folder and nothing else
    whole = (resume / STREAMED).exists() if recipe.stream else Pack.whole(resume, own=many)
    if not (begun and whole):
        _audit(catalog, preprocessing, recipe, out, reporter)
        runtime.give_back_freed_memory()  # of a hundred thousand photos it is too much to carry along
    table = prepared(out, recipe, catalog)
    rows, data = sum(map(len, (table.data.train, table.data.val, table.data.test))), table.data
    sides = f"{len(data.train)} to train on, {len(data.val)} to choose by, {len(data.test)} to test"
    reporter.say(f"{rows} photos of {len(table.classes)} classes: {sides}")
    return table


def prepared(out: Path, recipe: Recipe, catalog: Catalog | None = None) -> Table:
    """What `prepare` has left in the run's folder; any process may open it."""
    rows, findings = read_split(out / "split.csv"), _read(out / "audit.json")
    groups = _read(out / "resume" / "packed.json")
    packed = {path: i for i, path in enumerate(groups)}
    number = {name: k for k, name in enumerate(findings["trained"])}
    which = {side: [row.path for row in rows if row.split == side] for side in ("train", "val", "test")}
    labels = np.zeros(len(packed), np.int64)
    for row in rows:
        labels[packed[row.path]] = number[row.label]
    train, val, test = (np.array([packed[path] for path in paths], np.int64) for paths in which.values())
    if recipe.stream:
        pack = Stream(out / "resume", catalog or chosen(findings["folder"], recipe), list(groups))
    else:
        pack = Pack(out / "resume")
    return Table(list(number), Data(pack, labels, train, val, test), which["test"], groups, findings)


def _audit(catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter) -> None:
    """One pass over the files: findings, split and, unless they stream, packed pixels into the run's folder."""
    how = {
        "shorter": round(preprocessing["size"] / preprocessing["crop"]),
        "interpolation": preprocessing["interpolation"],
    }
    packed: list[int] = []
    cached = kind(**how) if recipe.nodes == 1 else ""  # other machines see the run's folder alone
    with ExitStack() as stack:
        packer = None if recipe.stream else stack.enter_context(Packer(out / "resume", cached, reporter.say))
        known = None if packer is None else packer.known

        def keep(i: int, look: Look) -> None:
            packed.append(i)
            if packer is not None:
                packer.add(look)

        with reporter.bar("reading", "photos") as advance:
            found = audit(catalog, **how, known=known, keep=keep, progress=advance)
        if packer is None:
            Stream.record(out / "resume", **how)
        else:
            packer.finish()
    kept, groups, _ = usable(catalog, found)
    sides = split(
        kept,
        groups,
        seed=recipe.seed,
        leaks=found.leaks,
        group_leaks=found.group_leaks,
        allow_leaks=recipe.allow_leaks,
        fold=(recipe.fold, recipe.folds) if recipe.folds else None,
    )
    findings = found.to_json(catalog)
    findings["warnings"] = [*kept.warnings, *_testless(catalog), *found.warnings]
    for warning in findings["warnings"]:
        reporter.warn(warning)
    findings |= {"folder": str(catalog.source.resolve()), "fingerprint": fingerprint(catalog, found)}
    findings["trained"] = list(kept.classes)
    if (out / "split.csv").exists() and _read(out / "audit.json")["fingerprint"] != findings["fingerprint"]:
        raise FieldmarkError(f"photos in {catalog.root} are not what they were: train into another --out")
    io.write(out / "audit.json", findings)
    io.write(out / "resume" / "packed.json", {catalog.photos[i].path: found.groups[i] for i in packed})
    io.table(out / "quarantine.csv", [dict(u) for u in findings["unreadable"]], ["path", "reason"])
    write_split(out / "split.half", kept, sides)
    (out / "split.half").replace(out / "split.csv")


def _same_photos(catalog: Catalog, out: Path) -> None:
    """Refuse to go on with other photos than the run was begun with."""
    now, unreadable = {photo.path for photo in catalog.photos}, _read(out / "audit.json")["unreadable"]
    then = {*_read(out / "resume" / "packed.json"), *(found["path"] for found in unreadable)}
    if now != then:
        raise FieldmarkError(
            f"the photos in {catalog.root} have changed since {out} was begun "
            f"({len(now - then)} new, {len(then - now)} gone): train into another --out"
        )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _testless(catalog: Catalog) -> list[str]:
    """A warning where the folders give a split, but no test."""
    given = {photo.split for photo in catalog.photos} - {None}
    return ["no test/ is given: 15 % of the photos in train/ become the test"] if given and "test" not in given else []
