"""Table of photos + recipe -> audited, packed and split, ready to train on; kept in the run's folder."""

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.audit.audit import audit_catalog, dataset_fingerprint, drop_unreadable
from fieldmark.audit.report import RunAudit
from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import summarize_names
from fieldmark.data.cache.pack import STREAM_RECORD_NAME, MemmapImages, MemmapWriter, decoding_key
from fieldmark.data.cache.stream import StreamedImages
from fieldmark.data.catalog import Catalog
from fieldmark.data.dataset import DatasetSplits
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.data.decoded import DecodedImage
from fieldmark.data.readers.huggingface import DatasetFiles
from fieldmark.data.splits import assign_splits, read_split_file, write_split_file
from fieldmark.recipes.recipe import Recipe

REFERENCE_IMAGES, MIN_REFERENCE_PER_CLASS = 400, 8
"""Training photos whose features are kept, at least so many of each class: more find no more strangers
(docs/performance.md)."""


@dataclass(frozen=True)
class PreparedData:
    """The photos of a run, ready to train on."""

    classes: list[str]
    data: DatasetSplits
    test_paths: list[str]  # paths of the test photos
    groups: dict[str, int]  # path -> group of all photos, by number
    audit: RunAudit

    @property
    def reference_indices(self) -> np.ndarray:
        """The training photos whose features are kept: as many of each class, spread over all that it has."""
        labels, train = self.data.labels, self.data.train
        by_class = [train[labels[train] == k] for k in np.unique(labels[train])]
        share = max(MIN_REFERENCE_PER_CLASS, REFERENCE_IMAGES // max(1, len(by_class)))
        return np.sort(np.concatenate([indices[:: -(-len(indices) // share)] for indices in by_class]))

    @property
    def final_images(self) -> int:
        """Photos that the network looks at when it is trained, beside those that it was chosen by."""
        return len(self.test_paths) + len(self.reference_indices)


def prepare_data(
    catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter
) -> PreparedData:
    """Audit, packed pixels and split; taken up from the run's folder where they are whole."""
    if recipe.positive and (len(catalog.classes) != 2 or recipe.positive not in catalog.classes):
        raise FieldmarkError(
            f"--positive {recipe.positive}: name one of two classes; these are {summarize_names(list(catalog.classes))}"
        )
    if recipe.stream and isinstance(catalog.files, DatasetFiles) and catalog.files.is_sequential:
        raise FieldmarkError(
            f"--stream: {catalog.root} gives photos by the row group, not one by one; fieldmark pack it first"
        )
    if has_split := (out / "split.csv").exists():
        _refuse_changed_images(catalog, out)
    resume, many = out / "resume", recipe.nodes > 1  # machines, which share the run's folder and nothing else
    is_packed = (
        (resume / STREAM_RECORD_NAME).exists()
        if recipe.stream
        else MemmapImages.is_complete(resume, in_run_folder=many)
    )
    if not (has_split and is_packed):
        _audit_split_and_pack(catalog, preprocessing, recipe, out, reporter)
        runtime.trim_malloc()  # of a hundred thousand photos it is too much to carry along
    prepared = load_prepared_data(out, recipe, catalog)
    rows, data = sum(map(len, (prepared.data.train, prepared.data.val, prepared.data.test))), prepared.data
    split_counts = f"{len(data.train)} to train on, {len(data.val)} to choose by, {len(data.test)} to test"
    reporter.info(f"{rows} photos of {len(prepared.classes)} classes: {split_counts}")
    return prepared


def load_prepared_data(out: Path, recipe: Recipe, catalog: Catalog | None = None) -> PreparedData:
    """What `prepare` has left in the run's folder; any process may open it."""
    rows, audit = read_split_file(out / "split.csv"), RunAudit.load(out)
    groups = _read(out / "resume" / "packed.json")
    packed = {path: i for i, path in enumerate(groups)}
    number = {name: k for k, name in enumerate(audit.trained_classes)}
    paths_by_split = {side: [row.path for row in rows if row.split == side] for side in ("train", "val", "test")}
    labels = np.zeros(len(packed), np.int64)
    for row in rows:
        labels[packed[row.path]] = number[row.label]
    train, val, test = (np.array([packed[path] for path in paths], np.int64) for paths in paths_by_split.values())
    if recipe.stream:
        pack = StreamedImages(out / "resume", catalog or load_recipe_catalog(audit.folder, recipe), list(groups))
    else:
        pack = MemmapImages(out / "resume")
    return PreparedData(
        list(number), DatasetSplits(pack, labels, train, val, test), paths_by_split["test"], groups, audit
    )


def _audit_split_and_pack(
    catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter
) -> None:
    """One pass over the files: findings, split and, unless they stream, packed pixels into the run's folder."""
    resize_options = {
        "shorter": round(preprocessing["size"] / preprocessing["crop"]),
        "interpolation": preprocessing["interpolation"],
    }
    packed: list[int] = []
    cached = decoding_key(**resize_options) if recipe.nodes == 1 else ""  # other machines see the run's folder alone
    with ExitStack() as stack:
        packer = None if recipe.stream else stack.enter_context(MemmapWriter(out / "resume", cached, reporter.info))
        lookup_cached = None if packer is None else packer.find_cached

        def keep(i: int, image: DecodedImage) -> None:
            packed.append(i)
            if packer is not None:
                packer.add(image)

        with reporter.progress_bar("reading", "photos") as advance:
            report = audit_catalog(
                catalog, **resize_options, find_cached=lookup_cached, on_decoded=keep, progress=advance
            )
        if packer is None:
            StreamedImages.write_record(out / "resume", **resize_options)
        else:
            packer.finish()
    usable_catalog, groups, _ = drop_unreadable(catalog, report)
    assignment = assign_splits(
        usable_catalog,
        groups,
        seed=recipe.seed,
        leaks=report.leaks,
        group_leaks=report.group_leaks,
        allow_leaks=recipe.allow_leaks,
        fold=(recipe.fold, recipe.folds) if recipe.folds else None,
    )
    report = replace(report, catalog_warnings=(*usable_catalog.warnings, *_warn_missing_test(catalog)))
    for warning in report.warnings:
        reporter.warning(warning)
    fingerprint = dataset_fingerprint(catalog, report)
    if (out / "split.csv").exists() and RunAudit.load(out).fingerprint != fingerprint:
        raise FieldmarkError(f"photos in {catalog.root} are not what they were: train into another --out")
    RunAudit(report, str(catalog.source.resolve()), fingerprint, usable_catalog.classes).save(out)
    io.write_json(out / "resume" / "packed.json", {catalog.photos[i].path: report.groups[i] for i in packed})
    io.write_csv(out / "quarantine.csv", [file.to_dict() for file in report.unreadable], ["path", "reason"])
    write_split_file(out / "split.csv", usable_catalog, assignment)


def _refuse_changed_images(catalog: Catalog, out: Path) -> None:
    """Refuse to go on with other photos than the run was begun with."""
    current_paths, unreadable = {photo.path for photo in catalog.photos}, RunAudit.load(out).report.unreadable
    recorded_paths = {*_read(out / "resume" / "packed.json"), *(file.path for file in unreadable)}
    if current_paths != recorded_paths:
        raise FieldmarkError(
            f"the photos in {catalog.root} have changed since {out} was begun "
            f"({len(current_paths - recorded_paths)} new, {len(recorded_paths - current_paths)} gone): "
            "train into another --out"
        )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _warn_missing_test(catalog: Catalog) -> list[str]:
    """A warning where the folders give a split, but no test."""
    given = {photo.split for photo in catalog.photos} - {None}
    return ["no test/ is given: 15 % of the photos in train/ become the test"] if given and "test" not in given else []
