"""Table of photos + recipe -> audited, packed and split, ready to train on; kept in the run's folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark import records
from fieldmark.dataset import Data, Pack, Packer
from fieldmark.errors import FieldmarkError
from fieldmark.photos.audit import audit, fingerprint, usable
from fieldmark.photos.catalog import Catalog
from fieldmark.photos.split import read_split, split, write_split
from fieldmark.progress import Reporter
from fieldmark.recipe import Recipe


@dataclass(frozen=True)
class Table:
    """The photos of a run, ready to train on."""

    classes: list[str]
    data: Data
    test: list[str]  # paths of the test photos
    audit: dict[str, Any]


def prepare(catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter) -> Table:
    """Audit, packed pixels and split; taken up from the run's folder where they are complete."""
    cache, split_file = out / "resume", out / "split.csv"
    if not (split_file.exists() and Pack.exists(cache)):
        _audit(catalog, preprocessing, recipe, out, reporter)
    rows, findings = read_split(split_file), json.loads((out / "audit.json").read_text(encoding="utf-8"))
    packed = {path: i for i, path in enumerate(json.loads((cache / "packed.json").read_text(encoding="utf-8")))}
    now, then = {photo.path for photo in catalog.photos}, set(packed) | {u["path"] for u in findings["unreadable"]}
    if now != then:
        raise FieldmarkError(
            f"the photos in {catalog.root} have changed since {out} was begun "
            f"({len(now - then)} new, {len(then - now)} gone): train into another --out"
        )
    number = {name: k for k, name in enumerate(findings["trained"])}
    which = {side: [row.path for row in rows if row.split == side] for side in ("train", "val", "test")}
    labels = np.zeros(len(packed), np.int64)
    for row in rows:
        labels[packed[row.path]] = number[row.label]
    train, val, test = (np.array([packed[path] for path in paths], np.int64) for paths in which.values())
    sides = f"{len(train)} to train on, {len(val)} to choose by, {len(test)} to test"
    reporter.say(f"{len(rows)} photos of {len(number)} classes: {sides}")
    return Table(list(number), Data(Pack(cache), labels, train, val, test), which["test"], findings)


def _audit(catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter) -> None:
    """One pass over the files: findings, split and packed pixels into the run's folder."""
    packer, packed = Packer(out / "resume"), []

    def keep(i: int, photo: np.ndarray) -> None:
        packer.add(photo)
        packed.append(catalog.photos[i].path)

    with packer.file, reporter.bar("reading", "photos") as advance:
        shorter = round(preprocessing["size"] / preprocessing["crop"])
        found = audit(
            catalog, shorter=shorter, interpolation=preprocessing["interpolation"], keep=keep, progress=advance
        )
    kept, groups, _ = usable(catalog, found)
    sides = split(kept, groups, seed=recipe.seed, leaks=found.leaks, allow_leaks=recipe.allow_leaks)
    findings = found.to_json(catalog)
    findings["warnings"] = [*kept.warnings, *_testless(catalog), *found.warnings]
    for warning in findings["warnings"]:
        reporter.warn(warning)
    findings |= {"folder": str(catalog.root.resolve()), "fingerprint": fingerprint(catalog, found)}
    findings["trained"] = list(kept.classes)
    records.write(out / "audit.json", findings)
    records.write(out / "resume" / "packed.json", packed)
    records.table(out / "quarantine.csv", [dict(u) for u in findings["unreadable"]], ["path", "reason"])
    packer.finish()
    write_split(out / "split.half", kept, sides)
    (out / "split.half").replace(out / "split.csv")


def _testless(catalog: Catalog) -> list[str]:
    """A warning where the folders give a split, but no test."""
    given = {photo.split for photo in catalog.photos} - {None}
    return ["no test/ is given: 15 % of the photos in train/ become the test"] if given and "test" not in given else []
