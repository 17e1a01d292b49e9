"""Catalog + recipe -> audited, split and packed images, kept in the run folder."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.audit.audit import ReadableSubset, audit_catalog, dataset_fingerprint, drop_unreadable
from fieldmark.audit.report import AuditReport, RunAudit
from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize, summarize_names
from fieldmark.data.cache.pack import STREAM_RECORD_NAME, MemmapImages, MemmapWriter, decoding_key
from fieldmark.data.cache.stream import StreamedImages
from fieldmark.data.catalog import Catalog
from fieldmark.data.dataset import DatasetSplits
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.data.decoded import DecodedImage
from fieldmark.data.image_hashes import HashCollector, ImageHashes, read_trained_on
from fieldmark.data.readers.huggingface import DatasetFiles
from fieldmark.data.splits import DrawnSplits, draw_splits, read_split_file, write_split_file
from fieldmark.inference.run_folder import RunImages, save_image_hashes
from fieldmark.recipes.recipe import Recipe

REFERENCE_IMAGES, MIN_REFERENCE_PER_CLASS = 400, 8
"""Size of the reference set, and images of each class at least; more do not improve OOD detection
(docs/lab/ood.md)."""


@dataclass(frozen=True)
class PreparedData:
    """The images of a run, ready to train on.

    Attributes:
        test_paths: paths of the test set, in its order.
        groups: path -> index of the group, for all images in their order in `data`; groups are not split.
    """

    classes: list[str]
    data: DatasetSplits
    test_paths: list[str]
    groups: dict[str, int]
    audit: RunAudit

    @property
    def group_indices(self) -> np.ndarray:
        """The group of each image, int64 (n,)."""
        return np.array(list(self.groups.values()), np.int64)

    @property
    def reference_indices(self) -> np.ndarray:
        """The training images whose features are kept: equally many of each class, evenly spaced."""
        labels, train = self.data.labels, self.data.train
        by_class = [train[labels[train] == k] for k in np.unique(labels[train])]
        share = max(MIN_REFERENCE_PER_CLASS, REFERENCE_IMAGES // max(1, len(by_class)))
        return np.sort(np.concatenate([indices[:: -(-len(indices) // share)] for indices in by_class]))


def prepare_data(
    catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter
) -> PreparedData:
    """Audit, split and pack the images, or load what the run folder holds already.

    Raises:
        FieldmarkError: settings that do not fit the images, or images that have changed since the run was started.
    """
    _check_recipe(recipe, catalog)
    has_split = (out / "split.csv").exists()
    if has_split:
        refuse_changed_images(catalog, out)
    if not (has_split and _is_packed(out / "resume", recipe)):
        _audit_and_split(catalog, preprocessing, recipe, out, reporter)
        runtime.trim_malloc()  # of a hundred thousand images it is too much to keep
    prepared = load_prepared_data(out, recipe, catalog)
    train, val, test = (len(split) for split in (prepared.data.train, prepared.data.val, prepared.data.test))
    images, classes = pluralize(train + val + test, "image"), len(prepared.classes)
    reporter.step("Data", f"{images} of {classes} classes: {train:,} training, {val:,} validation, {test:,} test")
    return prepared


def load_prepared_data(out: Path, recipe: Recipe, catalog: Catalog | None = None) -> PreparedData:
    """What `prepare_data` has written into the run folder; any process may read it."""
    rows, audit = read_split_file(out / "split.csv"), RunAudit.load(out)
    groups = io.read_json(out / "resume" / "packed.json")
    index = {path: i for i, path in enumerate(groups)}
    class_index = {name: k for k, name in enumerate(audit.trained_classes)}
    labels = np.zeros(len(index), np.int64)
    for row in rows:
        labels[index[row.path]] = class_index[row.label]
    paths_by_split = {split: [row.path for row in rows if row.split == split] for split in ("train", "val", "test")}
    splits = [np.array([index[path] for path in paths], np.int64) for paths in paths_by_split.values()]
    if recipe.stream:
        catalog = catalog or load_recipe_catalog(audit.folder, recipe)
        images = StreamedImages(out / "resume", catalog, list(groups))
    else:
        images = MemmapImages(out / "resume")
    data = DatasetSplits(images, labels, *splits)
    return PreparedData(list(class_index), data, paths_by_split["test"], groups, audit)


def _check_recipe(recipe: Recipe, catalog: Catalog) -> None:
    if recipe.positive and (len(catalog.classes) != 2 or recipe.positive not in catalog.classes):
        raise FieldmarkError(
            f"--positive {recipe.positive}: name one of two classes; these are {summarize_names(list(catalog.classes))}"
        )
    if recipe.stream and isinstance(catalog.files, DatasetFiles) and catalog.files.is_sequential:
        raise FieldmarkError(
            f"--stream: {catalog.root} gives images by the row group, not one by one; fieldmark pack it first"
        )


def _is_packed(resume: Path, recipe: Recipe) -> bool:
    if recipe.stream:
        return (resume / STREAM_RECORD_NAME).exists()
    return MemmapImages.is_complete(resume, in_run_folder=recipe.nodes > 1)  # machines share the run folder alone


def _audit_and_split(
    catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, out: Path, reporter: Reporter
) -> None:
    """Write audit.json, quarantine.csv, split.csv and the packed images into the run folder."""
    audited = _audit_and_pack(catalog, preprocessing, recipe, out / "resume", reporter)
    report, packed = audited.report, audited.packed
    usable = drop_unreadable(catalog, report)
    trained_on = _find_trained_on(recipe, audited, usable)
    drawn = draw_splits(
        usable.catalog,
        usable.groups,
        usable.hard_groups,
        seed=recipe.seed,
        leaks=report.leaks,
        group_leaks=report.group_leaks,
        allow_leaks=recipe.allow_leaks,
        test_share=recipe.test_share,
        fold=(recipe.fold, recipe.folds) if recipe.folds else None,
        trained_on=trained_on,
    )
    warnings = [*usable.catalog.warnings, *_warn_missing_test(catalog, recipe), *_split_warnings(usable.catalog, drawn)]
    if trained_on:
        n = pluralize(len(trained_on), "image")
        warnings.append(f"the initial weights were trained on {n} of these, which stay among the training images")
    report = replace(report, catalog_warnings=tuple(warnings))
    for warning in report.warnings:
        reporter.warning(warning)
    n = len(report.warnings)
    found = f"{pluralize(n, 'warning')}; fieldmark check PHOTOS --out DIR shows the images" if n else "no issues found"
    reporter.step("Audit", found)
    fingerprint = dataset_fingerprint(catalog, report)
    if (out / "split.csv").exists() and RunAudit.load(out).fingerprint != fingerprint:
        raise FieldmarkError(f"images in {catalog.root} have changed since {out} was started: train into another --out")
    RunAudit(report, str(catalog.source.resolve()), fingerprint, usable.catalog.classes).save(out)
    io.write_json(out / "resume" / "packed.json", {catalog.photos[i].path: report.groups[i] for i in packed})
    io.write_csv(out / "quarantine.csv", [file.to_dict() for file in report.unreadable], ["path", "reason"])
    save_image_hashes(out, RunImages([catalog.photos[i].path for i in packed], audited.hashes))
    write_split_file(out / "split.csv", usable.catalog, drawn.splits)


def _find_trained_on(recipe: Recipe, audited: "_AuditedImages", usable: ReadableSubset) -> set[int]:
    """The usable images that the recipe's weights were trained on, as positions in that catalog.

    Raises:
        FieldmarkError: the weights' record of their images is damaged.
    """
    hashes = read_hashes_of_weights(recipe)
    if hashes is None:
        return set()
    contained = {i for i, found in zip(audited.packed, hashes.contains(audited.hashes), strict=True) if found}
    return {k for k, i in enumerate(usable.indices) if i in contained}


def read_hashes_of_weights(recipe: Recipe) -> ImageHashes | None:
    """Hashes of the images that the recipe's initial weights were trained on; None if they carry none."""
    weights = Path(recipe.weights)
    try:
        return read_trained_on(weights) if weights.suffix == ".safetensors" and weights.is_file() else None
    except ValueError as error:
        raise FieldmarkError(f"{weights}: {error}") from None


def _split_warnings(catalog: Catalog, drawn: DrawnSplits) -> Iterator[str]:
    """Lines on classes whose metrics are unknown or optimistic."""
    if drawn.divided_classes:
        yield (
            f"nearly all images of {summarize_names(drawn.divided_classes)} are near-duplicates of each other, so they "
            "were divided among the splits: test metrics are optimistic for other scenes"
        )
    for split, what in (
        ("test", "classes without test images (their accuracy stays unknown)"),
        ("val", "classes without validation images (they do not count in validation)"),
    ):
        if split in drawn.splits and (names := drawn.classes_without(split, catalog)):
            yield f"{what}: {summarize_names(names)}"


@dataclass(frozen=True)
class _AuditedImages:
    """What one pass over the files gives.

    Attributes:
        packed: the readable images, as positions in the catalog.
        hashes: of those.
    """

    report: AuditReport
    packed: list[int]
    hashes: ImageHashes


def _audit_and_pack(
    catalog: Catalog, preprocessing: dict[str, Any], recipe: Recipe, resume: Path, reporter: Reporter
) -> _AuditedImages:
    """One pass over the files.

    Unless the images are streamed, their resized pixels are written into `resume`.
    """
    resize = {
        "shorter": round(preprocessing["size"] / preprocessing["crop"]),
        "interpolation": preprocessing["interpolation"],
    }
    packed, collector = list[int](), HashCollector()
    cached = decoding_key(**resize) if recipe.nodes == 1 else ""  # other machines see the run folder alone
    with ExitStack() as stack:
        packer = None if recipe.stream else stack.enter_context(MemmapWriter(resume, cached, reporter.info))

        def keep(i: int, image: DecodedImage) -> None:
            packed.append(i)
            collector.add(image.sha256, image.thumbnail)
            if packer is not None:
                packer.add(image)

        find_cached = None if packer is None else packer.find_cached
        with reporter.progress_bar("reading", "images") as advance:
            report = audit_catalog(catalog, **resize, find_cached=find_cached, on_decoded=keep, progress=advance)
        if packer is None:
            StreamedImages.write_record(resume, **resize)
        else:
            packer.finish()
    return _AuditedImages(report, packed, collector.hashes_of_groups([report.groups[i] for i in packed]))


def refuse_changed_images(catalog: Catalog, out: Path) -> None:
    """Raise FieldmarkError if the catalog has other images than the run in `out` was started with."""
    current_paths, unreadable = {photo.path for photo in catalog.photos}, RunAudit.load(out).report.unreadable
    recorded_paths = {*io.read_json(out / "resume" / "packed.json"), *(file.path for file in unreadable)}
    if current_paths != recorded_paths:
        raise FieldmarkError(
            f"images in {catalog.root} have changed since {out} was started "
            f"({len(current_paths - recorded_paths)} new, {len(recorded_paths - current_paths)} missing): "
            "train into another --out"
        )


def _warn_missing_test(catalog: Catalog, recipe: Recipe) -> list[str]:
    given = {photo.split for photo in catalog.photos} - {None}
    is_drawn = bool(given) and "test" not in given and recipe.test_share > 0
    percent = 100 * recipe.test_share
    return [f"no test/ is given: {percent:g} % of the images in train/ become the test set"] if is_drawn else []
