"""Images + recipe -> RUN: the audit, the training, the evaluation and the report of one run.

A run leaves bundle/, recipe.yaml, split.csv, quarantine.csv, audit.json, history.csv, log.txt, metrics.json,
predictions.csv, answers.npz, images.npz, gallery.npz, curves.svg, card.md, report.html, and resume/ with the
checkpoint and, until everything else is written, the packed images.
"""

import itertools
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import get_language
from fieldmark.core.progress import Reporter
from fieldmark.core.text import summarize_names
from fieldmark.data.cache import pack
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.models import Network
from fieldmark.pipeline.cross_validate import cross_validate, validate_folds
from fieldmark.pipeline.prepare import PreparedData, load_prepared_data, prepare_data, refuse_changed_images
from fieldmark.pipeline.run import Run, exclusive_run, is_finished
from fieldmark.pipeline.worker import train_on_devices
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe, ineffective_settings
from fieldmark.report.run_metrics import RunMetrics
from fieldmark.training import budget, checkpoint, distributed, feature_cache
from fieldmark.training.callbacks import CallbackGroup
from fieldmark.training.loggers import LoggerGroup, parse_loggers
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe, standardise_inputs
from fieldmark.training.phases import train_crop_size
from fieldmark.training.trainer import BEST_NETWORK_FILE, Trainer

TIMED_PARTS = ("decode", "features", "phase1", "phase2", "evaluate", "report")
"""Keys of `seconds` in metrics.json, beside "other"."""
MAX_NEXT_STEPS = 3
"""Recommendations among the messages; the report has all."""
AUTOMATIC_FIELDS = ("backbone", "image_size", "head")
"""Settings whose None is replaced when a run starts."""


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
    callbacks: Sequence[Any] = (),
    quiet: bool = False,
) -> Run:
    """Train a classifier on a folder of images and write everything into the run folder `out`.

    Args:
        photos: class folders, or train/, val/, test/ with class folders inside, or another source that
            `fieldmark.data.readers` reads; never changed.
        recipe: the settings; `Recipe()` by default. With `resume`, the run's own recipe applies.
        out: the run folder, which must not exist unless `resume`; by default a new folder in `runs/`.
        resume: continue an interrupted run; without a checkpoint it starts anew.
        started: `time.monotonic()` of the start, from which a budget counts; by default the time of the call.
        command: the command that repeats the run, for the report.
        feature_cache_dir: a folder in which several runs share the features of their frozen layers.
        callbacks: objects with methods of `fieldmark.Callback`; on one device only.
        quiet: send no message and draw no bar.

    Returns:
        The finished run; its `metrics` are the content of metrics.json.

    Raises:
        FieldmarkError: anything that the user can correct.
    """
    job = _resolve(Path(photos), recipe or Recipe(), out, resume, started, command, feature_cache_dir)
    job = replace(job, callbacks=callbacks, quiet=quiet)
    if job.has_recipe and is_finished(job.out):
        _refuse_changed_dataset(job)
        return Run.load(job.out)
    if job.recipe.folds and not job.recipe.fold:
        return _train_folds(job)
    if distributed.needs_workers(job.recipe):
        if callbacks:
            raise FieldmarkError("callbacks follow a training on one device: set --devices to 1")
        return _launch_workers(job)
    fabric = distributed.make_fabric(job.recipe)
    if not fabric.is_global_zero:
        _join(fabric)
        raise SystemExit(0)  # only the main process goes on
    with exclusive_run(job.out):
        prepared = _prepare(job)
        return _finish(job, prepared, _fit(job, prepared, fabric))


# ---- resolve: which run this is


@dataclass(frozen=True)
class TrainingJob:
    """The resolved arguments of `train`.

    Attributes:
        requested: the recipe that was given.
        recipe: the recipe that applies: the run's own when it is resumed.
        has_recipe: whether the run was started before.
    """

    photos: Path
    out: Path
    requested: Recipe
    recipe: Recipe
    resume: bool
    has_recipe: bool
    started: float | None
    command: str | None
    feature_cache_dir: Path | None
    callbacks: Sequence[Any] = ()
    quiet: bool = False

    def require_new(self) -> None:
        """Raise FieldmarkError if the run folder exists and is not to be resumed."""
        if not self.resume:
            io.require_new(self.out, can_resume=True)


def _resolve(
    photos: Path,
    requested: Recipe,
    out: str | Path | None,
    resume: bool,
    started: float | None,
    command: str | None,
    feature_cache_dir: Path | None,
) -> TrainingJob:
    folder = Path(out) if out is not None else default_run_dir(photos)
    has_recipe = resume and (folder / "recipe.yaml").exists()
    recipe = distributed.resolve_devices(requested)
    if has_recipe:
        recipe = distributed.resolve_devices(
            _reconcile(_read_started_recipe(folder), recipe, requested.explicit, folder)
        )
    parse_loggers(recipe.logger)
    validate_folds(recipe)
    return TrainingJob(photos, folder, requested, recipe, resume, has_recipe, started, command, feature_cache_dir)


def default_run_dir(photos: Path) -> Path:
    """The first free name in `runs/` for a run on these images."""
    name = photos.resolve().name
    names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())


def _read_started_recipe(out: Path) -> Recipe:
    try:
        return recipes.read_recipe(out / "recipe.yaml")
    except FieldmarkError as error:
        raise FieldmarkError(
            f"{error}: if a later Fieldmark started this run, install that one; or train into another --out"
        ) from None


def _reconcile(started: Recipe, requested: Recipe, explicit: frozenset[str], out: Path) -> Recipe:
    """The recipe that the run was started with; a different value in a field that was given now is refused.

    Under torchrun, a different number of devices or machines may continue the run.
    """
    changeable = {"epochs", "steps_per_epoch"} if started.budget else set()
    changeable |= {"find_lr", "lr", "backbone_lr"} if requested.find_lr else set()
    changeable |= set() if requested.batch else {"batch"}
    changeable |= {name for name in AUTOMATIC_FIELDS if getattr(requested, name) is None}
    is_elastic = torch.distributed.is_torchelastic_launched()
    changeable |= {"devices", "nodes"} if is_elastic else set()
    for name in Recipe.model_fields:
        was, now = getattr(started, name), getattr(requested, name)
        if name in explicit - changeable and was != now:
            raise FieldmarkError(
                f"{out} was started with {recipes.option_name(name)} {was}, not {now}: resume without that option, "
                "or train into another --out"
            )
    return started.replace(devices=requested.devices, nodes=requested.nodes) if is_elastic else started


def _refuse_changed_dataset(job: TrainingJob) -> None:
    """Raise FieldmarkError if a finished run is to be resumed on other images; those that are gone are not needed."""
    if not (job.out / "split.csv").exists():
        return
    try:
        catalog = load_recipe_catalog(job.photos, job.recipe)
    except FieldmarkError:
        return
    refuse_changed_images(catalog, job.out)


# ---- several trainings, several processes


def _train_folds(job: TrainingJob) -> Run:
    job.require_new()

    def train_fold(recipe: Recipe, folder: Path) -> Run:
        settings = {"resume": job.resume, "command": job.command, "callbacks": job.callbacks, "quiet": job.quiet}
        return train(job.photos, recipe, out=folder, **settings)

    return cross_validate(train_fold, job.recipe, job.out)


def _launch_workers(job: TrainingJob) -> Run:
    """Run `train` once on each device, in child processes under torchrun."""
    job.require_new()
    train_on_devices(
        job.recipe.devices,
        photos=job.photos,
        recipe=job.requested,
        out=job.out,
        resume=job.resume,
        started=time.monotonic() if job.started is None else job.started,
        command=job.command,
        feature_cache_dir=job.feature_cache_dir,
    )
    return Run.load(job.out)


def _join(fabric: Fabric) -> None:
    """The training, in every process but the main one, which prepares the data and writes the results."""
    with distributed.process_group(fabric):
        out = Path(fabric.broadcast(""))
        checkpoint.wait_for_file(out / "recipe.yaml")
        recipe = recipes.read_recipe(out / "recipe.yaml")
        data = load_prepared_data(out, recipe)
        recipe = _limit_batch(recipe, data)
        network = _build_network(recipe, data)
        trainer = Trainer(network, data.data, recipe, out / "resume", Reporter(quiet=True), fabric)
        trainer.train(lambda trainer: _plan(trainer, out, data))


# ---- prepare: everything up to the training


@dataclass(frozen=True)
class PreparedTraining:
    """All that a training starts from."""

    recipe: Recipe
    catalog: Catalog
    data: PreparedData
    network: Network
    reporter: Reporter


def _prepare(job: TrainingJob) -> PreparedTraining:
    """Check everything that can be wrong, cheapest first; then audit, split and pack the images."""
    job.require_new()
    if not job.has_recipe and job.out.is_dir():
        _require_run_folder(job.out)
    recipe = job.recipe
    if recipe.budget and not job.has_recipe:  # the plan of another run, in its recipe, does not apply to this one
        recipe = recipe.replace(steps_per_epoch=None)
    recipe = resolve_recipe(recipe, Reporter(started=job.started, quiet=job.quiet).info)
    catalog = load_recipe_catalog(job.photos, recipe)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe, len(catalog.classes))  # fails if weights are unavailable or do not fit
    preprocessing = make_preprocessing(network, recipe)
    if not recipe.batch:
        size, parts = train_crop_size(recipe, preprocessing["size"]), recipe.devices * recipe.nodes * recipe.accumulate
        recipe = recipe.replace(batch=budget.find_batch_size(network, size, len(catalog.photos), parts))
    is_new = not job.out.exists()
    _make_run_folder(job.out, recipe)
    reporter = Reporter(job.out / "log.txt", job.started, job.quiet)
    try:
        with reporter.timer("decode"):
            data = prepare_data(catalog, preprocessing, recipe, job.out, reporter)
    except FieldmarkError:
        if is_new:  # nothing is lost, and the same command works once the images are corrected
            shutil.rmtree(job.out)
        raise
    if recipe != (recipe := _limit_batch(recipe, data)):
        reporter.info(f"the batch is {recipe.batch}, since there are {len(data.data.train):,} training images")
    if len(data.classes) != len(catalog.classes):  # a class has no readable image
        network = _build_network(recipe, data)
    else:
        standardise_inputs(network, recipe, data.data)
    return PreparedTraining(recipe, catalog, data, network, reporter)


def _limit_batch(recipe: Recipe, data: PreparedData) -> Recipe:
    """The recipe with a batch of no more than all training images, in equal parts for all processes."""
    parts = recipe.devices * recipe.nodes * recipe.accumulate
    largest = max(1, len(data.data.train) // parts) * parts
    return recipe.replace(batch=largest) if recipe.batch and recipe.batch > largest else recipe


def _require_run_folder(out: Path) -> None:
    if {entry.name for entry in out.iterdir()} - {"resume", "recipe.yaml" + io.PARTIAL_SUFFIX}:
        raise FieldmarkError(f"{out} holds other things than a run: give another --out")


def _make_run_folder(out: Path, recipe: Recipe) -> None:
    try:
        (out / "resume").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FieldmarkError(f"{out} cannot be made ({error.strerror}): give another --out") from None
    recipes.write_recipe(recipe, out / "recipe.yaml")


def _build_network(recipe: Recipe, data: PreparedData) -> Network:
    torch.manual_seed(recipe.seed)
    network = build_network(recipe, len(data.classes))
    standardise_inputs(network, recipe, data.data)
    return network


# ---- fit


@dataclass(frozen=True)
class FittedTraining:
    """A trained network.

    Attributes:
        cached_feature_seconds: how long another run took for the features that this one reused.
    """

    trainer: Trainer
    loggers: LoggerGroup
    cached_feature_seconds: float


def _fit(job: TrainingJob, prepared: PreparedTraining, fabric: Fabric) -> FittedTraining:
    out, data, reporter = job.out, prepared.data, prepared.reporter
    loggers = LoggerGroup(out, prepared.recipe, reporter.warning)
    listener = CallbackGroup(loggers, job.callbacks)
    trainer = Trainer(prepared.network, data.data, prepared.recipe, out / "resume", reporter, fabric, listener)
    if not job.has_recipe:
        for line in ineffective_settings(job.requested, trainer.phase_builder.has_exact_probe):
            reporter.warning(line)
    folder = job.feature_cache_dir
    cache = feature_cache.for_run(folder, trainer.phase_builder, out) if folder else None
    cached_feature_seconds = cache.restore() if cache else 0.0
    with distributed.process_group(fabric):
        fabric.broadcast(str(out))
        history = trainer.train(lambda trainer: _plan(trainer, out, data))
    listener.end(history)
    if cache:
        cache.store(reporter.stage_seconds.get("features", 0.0))
    return FittedTraining(trainer, loggers, cached_feature_seconds)


def _plan(trainer: Trainer, out: Path, data: PreparedData) -> Recipe:
    """The recipe with what depends on measured speed; recorded, so that a resumed run does the same."""
    recipe = trainer.recipe
    if recipe.find_lr:
        plan = budget.find_learning_rates(trainer, recipe)
        recipe = plan.recipe
        trainer.reporter.step("Plan", plan.message)
    if recipe.budget and not recipe.steps_per_epoch:
        # Features of the reference set are computed at the end, unless a head that was solved exactly has left them.
        n_reference = 0 if trainer.phase_builder.refits_head else len(data.reference_indices)
        plan = budget.plan_epochs(trainer, recipe, len(data.test_paths) + n_reference)
        recipe = plan.recipe
        trainer.reporter.step("Plan", plan.message)
        if plan.finetuning_seconds is not None:
            trainer.limit_finetuning(plan.finetuning_seconds)  # before recipe.yaml says that there is a plan
    if recipe != trainer.recipe and trainer.fabric.is_global_zero:
        recipes.write_recipe(recipe, out / "recipe.yaml")
    return recipe


# ---- finish: evaluation and report


def _finish(job: TrainingJob, prepared: PreparedTraining, fitted: FittedTraining) -> Run:
    # Not before: metrics import scikit-learn and SciPy, over a second of each start, which workers do not need.
    from fieldmark.report.recommendations.recommend import recommend_for_run
    from fieldmark.report.run_report import write_report

    reporter, out = prepared.reporter, job.out
    with reporter.timer("evaluate"):
        metrics = _evaluate(job, prepared, fitted)
    if metrics.test is not None:
        low, high = metrics.test.ci95 or (0.0, 1.0)
        images, absent = f"{metrics.test.n:,} images", metrics.test.absent_classes
        unknown = f", none of {summarize_names(absent)}" if absent else ""
        reporter.step(
            "Test", f"accuracy {metrics.test.accuracy:.1%} (95 % CI {low:.1%} to {high:.1%}) on {images}{unknown}"
        )
    with reporter.timer("report"):
        _write_metrics(out, metrics, reporter)
        recommendations = recommend_for_run(out)
        metrics = replace(metrics, next_steps=[recommendation.to_dict() for recommendation in recommendations])
        write_report(out, prepared.catalog.files, get_language(prepared.recipe.lang))
        fitted.loggers.close(metrics.to_dict(), fitted.trainer.recipe)
    _write_metrics(out, metrics, reporter)  # again, with the time of the report
    if not (prepared.recipe.fold or job.feature_cache_dir):  # one of several runs, which are reported together
        for recommendation in [one for one in recommendations if one.helps][:MAX_NEXT_STEPS]:
            reporter.step("Next", recommendation.text)
    reporter.step("Report", f"{out / 'report.html'}, after {reporter.elapsed():.0f} s")
    _delete_intermediate_files(out / "resume")
    return Run.load(out)


def _evaluate(job: TrainingJob, prepared: PreparedTraining, fitted: FittedTraining) -> RunMetrics:
    """Calibrate, export and test the network; all metrics but `seconds`."""
    from fieldmark.pipeline import finish

    recipe, data, reporter, trainer = prepared.recipe, prepared.data, prepared.reporter, fitted.trainer
    preprocessing = make_preprocessing(prepared.network, recipe)
    result = finish.finish_run(trainer, data, preprocessing, job.out, reporter)
    diagnosis = finish.Diagnosis()
    if not job.feature_cache_dir:  # runs that are compared have the same images
        diagnosis = finish.diagnose_labels_and_curve(job.out, data, prepared.network.head, recipe, reporter)
    export_warnings = finish.check_export_agreement(result.export)
    for warning in export_warnings:
        reporter.warning(warning)
    default_command = f"fieldmark train {shlex.quote(str(job.photos))} --out {shlex.quote(str(job.out))}"
    return RunMetrics(
        test=result.test,
        validation=result.validation,
        temperature=result.temperature,
        export=result.export.to_dict(),
        learning_curve=diagnosis.learning_curve,
        bundle=str(job.out / "bundle"),
        warnings=[*data.audit.report.warnings, *diagnosis.warnings, *export_warnings],
        classes=data.classes,
        network=prepared.network.spec.to_dict(),
        parameters=sum(p.numel() for p in prepared.network.parameters()),
        best_epoch=trainer.best_epoch(),
        fingerprint=data.audit.fingerprint,
        seed=recipe.seed,
        cached_feature_seconds=fitted.cached_feature_seconds,
        environment=runtime.describe_environment(),
        command=job.command or default_command,
    )


def _write_metrics(out: Path, metrics: RunMetrics, reporter: Reporter) -> None:
    timed = replace(metrics, seconds=_seconds_by_part(reporter))
    io.write_json(out / "metrics.json", timed.to_dict())


def _seconds_by_part(reporter: Reporter) -> dict[str, float]:
    parts = {name: reporter.stage_seconds.get(name, 0.0) for name in TIMED_PARTS}
    return parts | {"other": reporter.elapsed() - sum(parts.values())}


def _delete_intermediate_files(folder: Path) -> None:
    """Delete what only the training needed; the record of the packed images goes last (`is_finished`)."""
    for file in [*folder.glob("*.npy"), folder / BEST_NETWORK_FILE]:
        file.unlink(missing_ok=True)
    pack.delete_record(folder)
