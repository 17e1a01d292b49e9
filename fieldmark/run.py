"""Photos + recipe -> RUN: the whole way of a training, from the audit to the report.

What a run leaves: bundle/, recipe.yaml, split.csv, quarantine.csv, audit.json, history.csv, log.txt, metrics.json,
predictions.csv, curves.svg, card.md, report.html, and resume/ with the checkpoint and, until all else is there, the
packed photos.
"""

import dataclasses
import itertools
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from fieldmark import bundle, evaluate, machine, records
from fieldmark import recipe as recipes
from fieldmark.dataset import Judged
from fieldmark.errors import FieldmarkError
from fieldmark.export import export, judging_time, verify
from fieldmark.finetune import MOST_EPOCHS, Trainer
from fieldmark.network import Network, build
from fieldmark.network.inspect import require_size
from fieldmark.phases import training_size
from fieldmark.photos.catalog import read
from fieldmark.predict import Classifier
from fieldmark.prepare import Table, prepare
from fieldmark.progress import Reporter
from fieldmark.recipe import Recipe
from fieldmark.report import write_report

CLOSING = 8.0
"""Seconds that a budget keeps for the export and the report, beside the test photos: measured, docs/performance.md."""
PARTS = ("decode", "features", "phase1", "phase2", "evaluate", "report")
TOLERANCE = 1e-5
"""Largest difference of a probability between the network and its export that is called equal."""
VERIFIED = 32
"""Photos on which the export is compared with the original."""


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and its figures."""

    folder: Path
    metrics: dict[str, Any]

    def classifier(self) -> Classifier:
        return Classifier(self.folder)


def train(
    photos: str | Path,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    started: float | None = None,
    command: str | None = None,
) -> Run:
    """Train a classifier on a folder of photos and leave everything in the new folder `out`.

    Args:
        photos: class folders, or train/, val/, test/ with class folders inside; never changed.
        recipe: the settings; `Recipe()` by default. With `resume`, the run's own.
        out: must not exist, unless `resume`; without it, a new folder in `runs/` under the name of the photos' folder.
        resume: go on where an interrupted run stopped; without a checkpoint it starts anew.
        started: `time.monotonic()` of the start, from which a budget counts.
        command: what the report says repeats the run.

    Raises:
        FieldmarkError: whatever the user can mend.
    """
    out = Path(out) if out is not None else _new_folder(Path(photos))
    if out.exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")
    begun = resume and (out / "recipe.yaml").exists()
    if begun:
        recipe = _same(_begun(out), recipe, out)
    elif out.is_dir() and {entry.name for entry in out.iterdir()} - {"resume", "recipe.half"}:
        raise FieldmarkError(f"{out} holds other things than a run: give another --out")
    if resume and finished(out):
        return Run(out, json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    recipe = recipe or Recipe()
    if recipe.budget and not begun:  # a plan that another run has left in its recipe does not hold for this one
        recipe = dataclasses.replace(recipe, steps_per_epoch=None)
    with torch.device("meta"):  # wrong words are refused before anything is read or written
        network = _build(recipe, 2, weights=False)
    size = recipe.image_size or network.preprocessing.size
    for pixels in (size, training_size(recipe, size)):
        require_size(network, pixels)
    preprocessing = dataclasses.asdict(network.preprocessing) | {"size": size}
    catalog = read(photos)
    torch.manual_seed(recipe.seed)
    network = _build(recipe, len(catalog.classes))  # and weights that cannot be had or do not fit as well
    fresh = not out.exists()
    try:
        (out / "resume").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FieldmarkError(f"{out} cannot be made ({error.strerror}): give another --out") from None
    _record(recipe, out)
    reporter = Reporter(out / "log.txt", started)
    machine.prepare()

    try:
        with reporter.part("decode"):
            table = prepare(catalog, preprocessing, recipe, out, reporter)
    except FieldmarkError:
        if fresh:  # nothing is lost, and the same command works once the photos are in order
            shutil.rmtree(out)
        raise
    if len(table.classes) != len(catalog.classes):  # a class without a photo that can be read
        torch.manual_seed(recipe.seed)
        network = _build(recipe, len(table.classes))
    trainer = Trainer(network, table.data, recipe, out / "resume", reporter)
    plan = _planner(out, reporter, table) if recipe.budget and not recipe.steps_per_epoch else None
    history = trainer.train(plan)
    records.table(out / "history.csv", history, list(history[0]) if history else ["epoch"])

    with reporter.part("evaluate"):
        figures = _judge(trainer, table, preprocessing, out, reporter)
    disagreement = _disagreement(figures["export"])
    for warning in disagreement:
        reporter.warn(warning)
    metrics = figures | {
        "bundle": str(out / "bundle"),
        "warnings": [*table.audit["warnings"], *disagreement],
        "classes": table.classes,
        "network": network.spec,
        "parameters": sum(p.numel() for p in network.parameters()),
        "best_epoch": trainer.best_epoch(),
        "fingerprint": table.audit["fingerprint"],
        "seed": recipe.seed,
        "environment": machine.describe(),
        "command": command or f"fieldmark train {shlex.quote(str(photos))} --out {shlex.quote(str(out))}",
    }
    with reporter.part("report"):
        records.write(out / "metrics.json", metrics | {"seconds": _seconds(reporter)})
        write_report(out, catalog.root)
    metrics["seconds"] = _seconds(reporter)
    records.write(out / "metrics.json", metrics)
    for heavy in ("features.npy", "val_maps.npy", "index.npy", "photos.u8"):
        (out / "resume" / heavy).unlink(missing_ok=True)
    return Run(out, json.loads(records.text(metrics)))


def _new_folder(photos: Path) -> Path:
    """The first free name in `runs/` for a run on these photos."""
    name = photos.resolve().name
    names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())


def finished(out: Path) -> bool:
    """Whether the run has its report and figures; the packed photos go last of all."""
    return (out / "metrics.json").exists() and not (out / "resume" / "photos.u8").exists()


# ---- before the training


def _build(recipe: Recipe, classes: int, weights: bool = True) -> Network:
    named = {"none": None}.get(recipe.weights, recipe.weights) if weights else None
    return build(
        recipe.backbone,
        attention=recipe.attention,
        after=recipe.after,
        head=recipe.head,
        classes=classes,
        weights=named,
        channels=recipe.channels,
        aux=recipe.aux,
    )


def _begun(out: Path) -> Recipe:
    try:
        return recipes.read(out / "recipe.yaml")
    except FieldmarkError as error:
        raise FieldmarkError(
            f"{error}: if a later version began this run, pip install --upgrade fieldmark; or train into another --out"
        ) from None


def _same(begun: Recipe, asked: Recipe | None, out: Path) -> Recipe:
    """The recipe that the run was begun with; settings that were asked for now and differ are refused."""
    plain, begun_, asked_ = (dataclasses.asdict(r) for r in (Recipe(), begun, asked or Recipe()))
    planned = ("epochs", "steps_per_epoch") if begun.budget else ()
    differ = [n for n, value in asked_.items() if value not in (plain[n], begun_[n]) and n not in planned]
    if differ:
        name = differ[0]
        raise FieldmarkError(
            f"{out} was begun with {recipes.option(name)} {begun_[name]}, not {asked_[name]}: "
            "resume it without that option, or train into another --out"
        )
    return begun


# ---- between the phases


def _planner(out: Path, reporter: Reporter, table: Table):
    """-> the function that turns what is left of the budget into epochs and steps, once, and records it."""

    def plan(trainer: Trainer) -> Recipe:
        recipe = trainer.recipe
        step, look = trainer.epoch_costs()
        closing = CLOSING + len(table.test) * judging_time(trainer.network, trainer.size) + look
        left = recipes.seconds(recipe.budget or "") - reporter.elapsed() - closing
        full = max(1, len(table.data.train) // recipe.batch)
        epochs = min(MOST_EPOCHS, max(1, round(left / (full * step + look))))
        steps = min(int((left / epochs - look) / step), full if epochs == MOST_EPOCHS else 2 * full)
        planned = dataclasses.replace(recipe, epochs=epochs if steps > 0 else 0, steps_per_epoch=max(1, steps))
        _record(planned, out)
        reporter.say(
            f"plan: {left:.0f} s are left for phase 2: {planned.epochs} epochs of {steps} steps at {step:.2f} s"
            if steps > 0
            else f"plan: the budget is spent; phase 2 is left out ({left:.0f} s left)"
        )
        return planned

    return plan


# ---- after the training


def _judge(
    trainer: Trainer, table: Table, preprocessing: dict[str, Any], out: Path, reporter: Reporter
) -> dict[str, Any]:
    """Calibrate on the validation photos, write the bundle, and test the file that people will use."""
    data = table.data
    val, test = data.labels[data.val], data.labels[data.test]
    logits = trainer.validation_logits() if len(val) else np.zeros((0, len(table.classes)))
    network = trainer.network.cpu()
    t = evaluate.temperature(logits, val)
    least = evaluate.threshold(logits, t)
    info = bundle.describe(network, table.classes, preprocessing, t, least, table.audit["fingerprint"])
    if len(table.classes) == 2:  # what one looks for is the rarer class
        used = data.labels[np.concatenate([data.train, data.val, data.test])]
        info["positive"] = table.classes[int(np.bincount(used, minlength=2).argmin())]
    bundle.write(out / "bundle", info, network)
    export(network, info, out / "bundle" / "model.onnx")
    classifier = Classifier(out)
    judged = Judged(data.pack, data.val if len(val) else data.train, preprocessing["size"])
    checked = verify(network, info, classifier, [judged.photo(k) for k in range(min(VERIFIED, len(judged)))])
    photos = Judged(data.pack, data.test, preprocessing["size"])
    probabilities = np.zeros((len(photos), len(table.classes)), np.float32)
    with reporter.bar("testing", "photos") as advance:
        for k in range(len(photos)):
            probabilities[k] = classifier.judge(photos.photo(k))["probabilities"]
            advance(k + 1, len(photos))
    confidence = probabilities.max(1)
    columns = {
        "path": table.test,
        "label": [table.classes[k] for k in test],
        "predicted": [table.classes[k] for k in probabilities.argmax(1)],
        "confidence": confidence.tolist(),
        "known": (confidence >= least).tolist(),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    records.table(out / "predictions.csv", rows, list(columns))
    return {
        "test": evaluate.figures(probabilities, test, table.classes, least, info.get("positive")),
        "validation": evaluate.figures(softmax(logits / t, axis=1), val, table.classes, least, info.get("positive")),
        "temperature": t,
        "export": checked,
    }


def _disagreement(checked: dict[str, Any]) -> list[str]:
    """A warning where the exported file does not say what the network says."""
    if checked["max_difference"] <= TOLERANCE and checked["label_agreement"] in (1.0, None):
        return []
    return [
        f"model.onnx differs from the network by up to {checked['max_difference']:.1e} in a probability, "
        f"labels agree on {checked['label_agreement']:.1%} of {checked['photos']} photos"
    ]


def _seconds(reporter: Reporter) -> dict[str, float]:
    parts = {name: reporter.seconds.get(name, 0.0) for name in PARTS}
    return parts | {"other": reporter.elapsed() - sum(parts.values())}


def _record(recipe: Recipe, out: Path) -> None:
    recipes.write(recipe, out / "recipe.half")
    (out / "recipe.half").replace(out / "recipe.yaml")
