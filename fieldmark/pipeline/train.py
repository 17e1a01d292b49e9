"""Photos + recipe -> RUN: the whole way of a training, from the audit to the report.

What a run leaves: bundle/, recipe.yaml, split.csv, quarantine.csv, audit.json, history.csv, log.txt, metrics.json,
predictions.csv, answers.npz, gallery.npz, curves.svg, card.md, report.html, and resume/ with the checkpoint and, until
all else is there, the packed photos.
"""

import itertools
import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import get_language
from fieldmark.core.progress import Reporter
from fieldmark.data.cache import pack
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.inference.classifier import Classifier
from fieldmark.models import Network
from fieldmark.pipeline import cross_validate
from fieldmark.pipeline.prepare import PreparedData, load_prepared_data, prepare_data
from fieldmark.pipeline.worker import train_on_devices
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe, ineffective_settings
from fieldmark.training import budget, checkpoint, distributed
from fieldmark.training.feature_cache import restore_features, store_features
from fieldmark.training.loggers import LoggerGroup, parse_loggers
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe, standardise_inputs
from fieldmark.training.phases import train_crop_size
from fieldmark.training.trainer import Trainer

TIMED_PARTS = ("decode", "features", "phase1", "phase2", "evaluate", "report")


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and its figures."""

    folder: Path
    metrics: dict[str, Any]
    """What metrics.json holds, as `metrics["test"]["accuracy"]`."""

    def classifier(self) -> Classifier:
        """What it has learnt, from its bundle."""
        return Classifier(self.folder)


@runtime.torch_settings()
def train(
    photos: str | Path,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    started: float | None = None,
    command: str | None = None,
    feature_cache_dir: Path | None = None,
) -> Run:
    """Train a classifier on a folder of photos and leave everything in the new folder `out`.

    Args:
        photos: class folders, or train/, val/, test/ with class folders inside; never changed.
        recipe: the settings; `Recipe()` by default. With `resume`, the run's own.
        out: must not exist, unless `resume`; without it, a new folder in `runs/` under the name of the photos' folder.
        resume: go on where an interrupted run stopped; without a checkpoint it starts anew.
        started: `time.monotonic()` of the start, from which a budget counts.
        command: what the report says repeats the run.
        shared: a folder where runs leave features of the frozen layers for each other.

    Raises:
        FieldmarkError: whatever the user can mend.
    """
    requested = distributed.resolve_devices(recipe or Recipe())
    has_recipe = resume and out is not None and (Path(out) / "recipe.yaml").exists()
    recipe = (
        distributed.resolve_devices(_reconcile_recipes(_read_begun_recipe(Path(out)), requested, Path(out)))
        if has_recipe and out is not None
        else requested
    )
    parse_loggers(recipe.logger)
    cross_validate.validate_folds(recipe)
    if has_recipe and out is not None and is_finished(Path(out)):
        return Run(Path(out), json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8")))
    if recipe.folds and not recipe.fold:
        out = Path(out) if out is not None else _default_run_dir(Path(photos))
        _refuse_existing(out, resume)

        def train_fold(recipe: Recipe, fold_dir: Path) -> dict[str, Any]:
            return train(photos, recipe, out=fold_dir, resume=resume, command=command).metrics

        return Run(out, cross_validate.cross_validate(train_fold, recipe, out))
    out = Path(out) if out is not None else _default_run_dir(Path(photos))
    if distributed.needs_workers(recipe):
        _refuse_existing(out, resume)
        options = {"started": started or time.monotonic(), "command": command, "feature_cache_dir": feature_cache_dir}
        train_on_devices(recipe.devices, photos=photos, recipe=requested, out=out, resume=resume, **options)
        return Run(out, json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    fabric = distributed.make_fabric(recipe)
    if not fabric.is_global_zero:
        _train_as_worker(fabric)
        raise SystemExit(0)  # only the main process goes on
    recipe, catalog, table, network, reporter = _prepare_run(Path(photos), recipe, out, resume, has_recipe, started)

    loggers = LoggerGroup(out, recipe, reporter.warning)
    trainer = Trainer(network, table.data, recipe, out / "resume", reporter, fabric, loggers)
    for line in ineffective_settings(requested, trainer.phase_builder.has_exact_probe) if not has_recipe else []:
        reporter.warning(line)
    cached_feature_seconds = restore_features(feature_cache_dir, trainer, out) if feature_cache_dir else 0.0
    with distributed.process_group(fabric):
        fabric.broadcast(str(out))
        trainer.train(
            lambda trainer: _resolve_plan(trainer, out, table.final_images),
            lambda pass_seconds: budget.has_time_for_pass(trainer, pass_seconds, table.final_images),
        )
    if feature_cache_dir:
        store_features(feature_cache_dir, trainer, out, reporter.stage_seconds.get("features", 0.0))
    # Not before: figures bring scikit-learn and SciPy, over a second of each start, and most processes never judge.
    from fieldmark.pipeline.finish import check_export_agreement, diagnose_labels_and_curve, finish_run
    from fieldmark.report.run_report import write_report

    with reporter.timer("evaluate"):
        split_metrics = finish_run(trainer, table, make_preprocessing(network, recipe), out, reporter)
        label_warnings, curve = (
            diagnose_labels_and_curve(out, table, recipe, reporter) if not feature_cache_dir else ([], None)
        )
    export_warnings = check_export_agreement(split_metrics["export"])
    for warning in export_warnings:
        reporter.warning(warning)
    metrics = split_metrics | {
        "learning_curve": curve,
        "bundle": str(out / "bundle"),
        "warnings": [*table.audit.report.warnings, *label_warnings, *export_warnings],
        "classes": table.classes,
        "network": network.spec.to_dict(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "best_epoch": trainer.best_epoch(),
        "fingerprint": table.audit.fingerprint,
        "seed": recipe.seed,
        "borrowed_s": cached_feature_seconds,
        "environment": runtime.describe_environment(),
        "command": command or f"fieldmark train {shlex.quote(str(photos))} --out {shlex.quote(str(out))}",
    }
    with reporter.timer("report"):
        io.write_json(out / "metrics.json", metrics | {"seconds": _seconds_by_part(reporter)})
        write_report(out, catalog.files, get_language(recipe.lang))
        loggers.close(split_metrics, trainer.recipe)
    metrics["seconds"] = _seconds_by_part(reporter)
    io.write_json(out / "metrics.json", metrics)
    for large_file in [*(out / "resume").glob("*.npy"), out / "resume" / "best.safetensors"]:
        large_file.unlink(missing_ok=True)
    pack.delete_record(out / "resume")
    return Run(out, json.loads(io.to_json(metrics)))


def _train_as_worker(fabric: Fabric) -> None:
    """The part of every process but the first, which has prepared everything, and will do the rest."""
    with distributed.process_group(fabric):
        out = Path(fabric.broadcast(""))
        checkpoint.wait_for_file(out / "recipe.yaml")
        recipe = recipes.read_recipe(out / "recipe.yaml")
        table = load_prepared_data(out, recipe)
        torch.manual_seed(recipe.seed)
        network = build_network(recipe, len(table.classes))
        standardise_inputs(network, recipe, table.data)
        trainer = Trainer(network, table.data, recipe, out / "resume", Reporter(quiet=True), fabric)
        trainer.train(lambda trainer: _resolve_plan(trainer, out, table.final_images))


def _default_run_dir(photos: Path) -> Path:
    """The first free name in `runs/` for a run on these photos."""
    name = photos.resolve().name
    names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())


def is_finished(out: Path) -> bool:
    """Whether the run has its report and figures; the packed photos go last of all."""
    return (out / "metrics.json").exists() and not pack.has_record(out / "resume")


# ---- before the training


class _PreparedRun(NamedTuple):
    recipe: Recipe
    catalog: Catalog
    table: PreparedData
    network: Network
    reporter: Reporter


def _prepare_run(
    photos: Path, recipe: Recipe, out: Path, resume: bool, has_recipe: bool, started: float | None
) -> _PreparedRun:
    """Everything up to the training: what can be wrong is refused, cheapest first."""
    _refuse_existing(out, resume)
    if not has_recipe and out.is_dir() and {entry.name for entry in out.iterdir()} - {"resume", "recipe.yaml.half"}:
        raise FieldmarkError(f"{out} holds other things than a run: give another --out")
    if recipe.budget and not has_recipe:  # a plan that another run has left in its recipe does not hold for this one
        recipe = recipe.replace(steps_per_epoch=None)
    recipe = resolve_recipe(recipe, Reporter(started=started).info)
    catalog = load_recipe_catalog(photos, recipe)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe, len(catalog.classes))  # and weights that cannot be had or do not fit as well
    input_spec = make_preprocessing(network, recipe)
    if not recipe.batch:
        size, parts = train_crop_size(recipe, input_spec["size"]), recipe.devices * recipe.nodes * recipe.accumulate
        recipe = recipe.replace(batch=budget.find_batch_size(network, size, len(catalog.photos), parts))
    fresh = not out.exists()
    try:
        (out / "resume").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FieldmarkError(f"{out} cannot be made ({error.strerror}): give another --out") from None
    _write_recipe(recipe, out)
    reporter = Reporter(out / "log.txt", started)
    try:
        with reporter.timer("decode"):
            table = prepare_data(catalog, input_spec, recipe, out, reporter)
    except FieldmarkError:
        if fresh:  # nothing is lost, and the same command works once the photos are in order
            shutil.rmtree(out)
        raise
    if len(table.classes) != len(catalog.classes):  # a class without a photo that can be read
        torch.manual_seed(recipe.seed)
        network = build_network(recipe, len(table.classes))
    standardise_inputs(network, recipe, table.data)
    return _PreparedRun(recipe, catalog, table, network, reporter)


def _refuse_existing(out: Path, resume: bool) -> None:
    if out.exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")


def _resolve_plan(trainer: Trainer, out: Path, final_images: int) -> Recipe:
    """The recipe, with what was left open until the speed is known; recorded, so that a resumed run does the same."""
    recipe = trainer.recipe
    if recipe.find_lr:
        recipe, message = budget.find_learning_rates(trainer, recipe)
        trainer.reporter.info(message)
    if recipe.budget and not recipe.steps_per_epoch:
        recipe, message = budget.plan_epochs(trainer, recipe, trainer.reporter.elapsed(), final_images)
        trainer.reporter.info(message)
    if recipe != trainer.recipe and trainer.fabric.is_global_zero:
        _write_recipe(recipe, out)
    return recipe


def _read_begun_recipe(out: Path) -> Recipe:
    try:
        return recipes.read_recipe(out / "recipe.yaml")
    except FieldmarkError as error:
        raise FieldmarkError(
            f"{error}: if a later Fieldmark began this run, install that one; or train into another --out"
        ) from None


def _reconcile_recipes(begun: Recipe, requested: Recipe, out: Path) -> Recipe:
    """The recipe that the run was begun with; settings that were asked for now and differ are refused.

    By torchrun other machines, and more or fewer of them, may go on.
    """
    defaults, begun_values, requested_values = (r.to_dict() for r in (Recipe(), begun, requested))
    planned = ["epochs", "steps_per_epoch"] if begun.budget else []
    planned += ["find_lr", "lr", "backbone_lr"] if requested.find_lr else []
    planned += [] if requested.batch else ["batch"]
    elastic = torch.distributed.is_torchelastic_launched()
    planned += ["devices", "nodes"] if elastic else []
    differ = [
        n for n, value in requested_values.items() if value not in (defaults[n], begun_values[n]) and n not in planned
    ]
    if differ:
        name = differ[0]
        raise FieldmarkError(
            f"{out} was begun with {recipes.option_name(name)} {begun_values[name]}, not {requested_values[name]}: "
            "resume it without that option, or train into another --out"
        )
    return begun.replace(devices=requested.devices, nodes=requested.nodes) if elastic else begun


# ---- after the training


def _seconds_by_part(reporter: Reporter) -> dict[str, float]:
    parts = {name: reporter.stage_seconds.get(name, 0.0) for name in TIMED_PARTS}
    return parts | {"other": reporter.elapsed() - sum(parts.values())}


def _write_recipe(recipe: Recipe, out: Path) -> None:
    recipes.write_recipe(recipe, out / "recipe.yaml")
