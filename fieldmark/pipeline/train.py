"""Photos + recipe -> RUN: the whole way of a training, from the audit to the report.

What a run leaves: bundle/, recipe.yaml, split.csv, quarantine.csv, audit.json, history.csv, log.txt, metrics.json,
predictions.csv, answers.npz, gallery.npz, curves.svg, card.md, report.html, and resume/ with the checkpoint and, until
all else is there, the packed photos.
"""

import dataclasses
import itertools
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import language
from fieldmark.core.progress import Reporter
from fieldmark.data.cache import pack
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import chosen
from fieldmark.inference.classifier import Classifier
from fieldmark.models import Network
from fieldmark.pipeline import cross_validate
from fieldmark.pipeline.prepare import Table, prepare, prepared
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.idle import idle
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import budget, checkpoint, distributed
from fieldmark.training.feature_cache import keep, lend
from fieldmark.training.loggers import Trackers, require
from fieldmark.training.model_factory import named, network_of, preprocessing, standardise
from fieldmark.training.phases import training_size
from fieldmark.training.trainer import Trainer

PARTS = ("decode", "features", "phase1", "phase2", "evaluate", "report")


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and its figures."""

    folder: Path
    metrics: dict[str, Any]
    """What metrics.json holds, as `metrics["test"]["accuracy"]`."""

    def classifier(self) -> Classifier:
        """What it has learnt, from its bundle."""
        return Classifier(self.folder)


def train(
    photos: str | Path,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    started: float | None = None,
    command: str | None = None,
    shared: Path | None = None,
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
    asked = distributed.settled(recipe or Recipe())
    begun = resume and out is not None and (Path(out) / "recipe.yaml").exists()
    recipe = distributed.settled(_same(_begun(Path(out)), asked, Path(out))) if begun and out is not None else asked
    require(recipe.logger)
    cross_validate.require(recipe)
    if begun and out is not None and finished(Path(out)):
        return Run(Path(out), json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8")))
    if recipe.folds and not recipe.fold:
        out = Path(out) if out is not None else _new_folder(Path(photos))
        _require_new(out, resume)

        def one(recipe: Recipe, at: Path) -> dict[str, Any]:
            return train(photos, recipe, out=at, resume=resume, command=command).metrics

        return Run(out, cross_validate.cross_validate(one, recipe, out))
    runtime.prepare()
    fabric = distributed.fabric(recipe)
    if not fabric.is_global_zero:
        distributed.join(fabric, lambda: _help(fabric))
    out = Path(out) if out is not None else _new_folder(Path(photos))
    recipe, catalog, table, network, reporter = _begin(Path(photos), recipe, out, resume, begun, started)

    tracked = Trackers(out, recipe, reporter.warn)
    trainer = Trainer(network, table.data, recipe, out / "resume", reporter, fabric, tracked)
    for line in idle(asked, trainer.routine.exact) if not begun else []:
        reporter.warn(line)
    borrowed = lend(shared, trainer, out) if shared else 0.0
    with distributed.first(fabric):
        fabric.broadcast(str(out))
        trainer.train(
            lambda trainer: _plan(trainer, out, table.judged_last),
            lambda pass_seconds: budget.affords(trainer, pass_seconds, table.judged_last),
        )
    if shared:
        keep(shared, trainer, out, reporter.seconds.get("features", 0.0))
    # Not before: figures bring scikit-learn and SciPy, over a second of each start, and most processes never judge.
    from fieldmark.pipeline.finish import disagreement, judge, second_look
    from fieldmark.report.run_report import write_report

    with reporter.part("evaluate"):
        figures = judge(trainer, table, preprocessing(network, recipe), out, reporter)
        doubts, curve = second_look(out, table, recipe, reporter) if not shared else ([], None)
    differs = disagreement(figures["export"])
    for warning in differs:
        reporter.warn(warning)
    metrics = figures | {
        "learning_curve": curve,
        "bundle": str(out / "bundle"),
        "warnings": [*table.audit["warnings"], *doubts, *differs],
        "classes": table.classes,
        "network": network.spec,
        "parameters": sum(p.numel() for p in network.parameters()),
        "best_epoch": trainer.best_epoch(),
        "fingerprint": table.audit["fingerprint"],
        "seed": recipe.seed,
        "borrowed_s": borrowed,
        "environment": runtime.describe(),
        "command": command or f"fieldmark train {shlex.quote(str(photos))} --out {shlex.quote(str(out))}",
    }
    with reporter.part("report"):
        io.write(out / "metrics.json", metrics | {"seconds": _seconds(reporter)})
        write_report(out, catalog.files, language(recipe.lang))
        tracked.close(figures, trainer.recipe)
    metrics["seconds"] = _seconds(reporter)
    io.write(out / "metrics.json", metrics)
    for heavy in [*(out / "resume").glob("*.npy"), out / "resume" / "best.safetensors"]:
        heavy.unlink(missing_ok=True)
    pack.clear(out / "resume")
    return Run(out, json.loads(io.text(metrics)))


def _help(fabric: Fabric) -> None:
    """The part of every process but the first, which has prepared everything, and will do the rest."""
    out = Path(fabric.broadcast(""))
    checkpoint.wait_for(out / "recipe.yaml")
    recipe = recipes.read(out / "recipe.yaml")
    table = prepared(out, recipe)
    torch.manual_seed(recipe.seed)
    network = network_of(recipe, len(table.classes))
    standardise(network, recipe, table.data)
    trainer = Trainer(network, table.data, recipe, out / "resume", Reporter(quiet=True), fabric)
    trainer.train(lambda trainer: _plan(trainer, out, table.judged_last))


def _new_folder(photos: Path) -> Path:
    """The first free name in `runs/` for a run on these photos."""
    name = photos.resolve().name
    names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())


def finished(out: Path) -> bool:
    """Whether the run has its report and figures; the packed photos go last of all."""
    return (out / "metrics.json").exists() and not pack.exists(out / "resume")


# ---- before the training


class _Start(NamedTuple):
    recipe: Recipe
    catalog: Catalog
    table: Table
    network: Network
    reporter: Reporter


def _begin(photos: Path, recipe: Recipe, out: Path, resume: bool, begun: bool, started: float | None) -> _Start:
    """Everything up to the training: what can be wrong is refused, cheapest first."""
    _require_new(out, resume)
    if not begun and out.is_dir() and {entry.name for entry in out.iterdir()} - {"resume", "recipe.half"}:
        raise FieldmarkError(f"{out} holds other things than a run: give another --out")
    if recipe.budget and not begun:  # a plan that another run has left in its recipe does not hold for this one
        recipe = dataclasses.replace(recipe, steps_per_epoch=None)
    recipe = named(recipe, Reporter(started=started).say)
    catalog = chosen(photos, recipe)
    torch.manual_seed(recipe.seed)
    network = network_of(recipe, len(catalog.classes))  # and weights that cannot be had or do not fit as well
    looks = preprocessing(network, recipe)
    if not recipe.batch:
        size, parts = training_size(recipe, looks["size"]), recipe.devices * recipe.nodes * recipe.accumulate
        recipe = dataclasses.replace(recipe, batch=budget.batch_for(network, size, len(catalog.photos), parts))
    fresh = not out.exists()
    try:
        (out / "resume").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FieldmarkError(f"{out} cannot be made ({error.strerror}): give another --out") from None
    _record(recipe, out)
    reporter = Reporter(out / "log.txt", started)
    try:
        with reporter.part("decode"):
            table = prepare(catalog, looks, recipe, out, reporter)
    except FieldmarkError:
        if fresh:  # nothing is lost, and the same command works once the photos are in order
            shutil.rmtree(out)
        raise
    if len(table.classes) != len(catalog.classes):  # a class without a photo that can be read
        torch.manual_seed(recipe.seed)
        network = network_of(recipe, len(table.classes))
    standardise(network, recipe, table.data)
    return _Start(recipe, catalog, table, network, reporter)


def _require_new(out: Path, resume: bool) -> None:
    if out.exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")


def _plan(trainer: Trainer, out: Path, judged_last: int) -> Recipe:
    """The recipe, with what was left open until the speed is known; recorded, so that a resumed run does the same."""
    recipe = trainer.recipe
    if recipe.find_lr:
        recipe, told = budget.rates_for(trainer, recipe)
        trainer.reporter.say(told)
    if recipe.budget and not recipe.steps_per_epoch:
        recipe, told = budget.epochs_for(trainer, recipe, trainer.reporter.elapsed(), judged_last)
        trainer.reporter.say(told)
    if recipe != trainer.recipe and trainer.fabric.is_global_zero:
        _record(recipe, out)
    return recipe


def _begun(out: Path) -> Recipe:
    try:
        return recipes.read(out / "recipe.yaml")
    except FieldmarkError as error:
        raise FieldmarkError(
            f"{error}: if a later Fieldmark began this run, install that one; or train into another --out"
        ) from None


def _same(begun: Recipe, asked: Recipe, out: Path) -> Recipe:
    """The recipe that the run was begun with; settings that were asked for now and differ are refused.

    By torchrun other machines, and more or fewer of them, may go on.
    """
    plain, begun_, asked_ = (dataclasses.asdict(r) for r in (Recipe(), begun, asked))
    planned = ["epochs", "steps_per_epoch"] if begun.budget else []
    planned += ["find_lr", "lr", "backbone_lr"] if asked.find_lr else []
    planned += [] if asked.batch else ["batch"]
    elastic = torch.distributed.is_torchelastic_launched()
    planned += ["devices", "nodes"] if elastic else []
    differ = [n for n, value in asked_.items() if value not in (plain[n], begun_[n]) and n not in planned]
    if differ:
        name = differ[0]
        raise FieldmarkError(
            f"{out} was begun with {recipes.option(name)} {begun_[name]}, not {asked_[name]}: "
            "resume it without that option, or train into another --out"
        )
    return dataclasses.replace(begun, devices=asked.devices, nodes=asked.nodes) if elastic else begun


# ---- after the training


def _seconds(reporter: Reporter) -> dict[str, float]:
    parts = {name: reporter.seconds.get(name, 0.0) for name in PARTS}
    return parts | {"other": reporter.elapsed() - sum(parts.values())}


def _record(recipe: Recipe, out: Path) -> None:
    recipes.write(recipe, out / "recipe.half")
    (out / "recipe.half").replace(out / "recipe.yaml")
