"""Trained network -> bundle, export, gallery, and the figures of the exported file on the test photos."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from fieldmark.core import io, runtime
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import Data, Judged, judged
from fieldmark.evaluation import calibration
from fieldmark.evaluation.metrics import Answers, figures
from fieldmark.exporters.onnx import TOLERANCE, VERIFIED, export, verify
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier, ahead
from fieldmark.models.ood import Known
from fieldmark.pipeline.prepare import Table
from fieldmark.recipes.recipe import Recipe, seconds
from fieldmark.training.trainer import Trainer


def judge(
    trainer: Trainer, table: Table, preprocessing: dict[str, Any], out: Path, reporter: Reporter
) -> dict[str, Any]:
    """Calibrate on the validation photos, write the bundle, and test the file that people will use."""
    data, classes = table.data, table.classes
    val, test = data.labels[data.val], data.labels[data.test]
    network = trainer.network
    shown = table.shown
    seen, _ = described(trainer, map(trainer.routine.frozen.maps, judged(data.pack, shown, preprocessing["size"])))
    features, logits = described(trainer, trainer.routine.frozen.validation())
    network.cpu()
    t = calibration.temperature(logits, val)
    known = Known.fit(seen, data.labels[shown], features, logits)
    scores = known.scores(features, logits)
    least = calibration.threshold(scores)
    info = bundle.describe(network, classes, preprocessing, t, least, table.audit["fingerprint"])
    if len(classes) == 2:
        positive = trainer.recipe.positive or _rarer(classes, data)
        one = softmax(logits / t, axis=1)[:, classes.index(positive)]
        info |= {"positive": positive, "decision": calibration.decision(one, val == classes.index(positive))}
    bundle.write(out / "bundle", info, network, known)
    _write_gallery(out / "gallery.npz", table, shown, seen)
    export(network, known, info, out / "bundle" / "model.onnx")
    classifier = Classifier(out)
    some = Judged(data.pack, data.val if len(val) else data.train, preprocessing["size"])
    checked = verify(network, known, info, classifier, [some.photo(k) for k in range(min(VERIFIED, len(some)))])
    photos = Judged(data.pack, data.test, preprocessing["size"])
    groups = np.array(list(table.groups.values()), np.int64)
    tested = Answers(
        *(np.zeros((len(test), len(classes)), np.float32) for _ in ("logits", "probabilities")),
        scores=np.zeros(len(test), np.float32),
        labels=test,
        groups=groups[data.test],
    )
    with reporter.bar("testing", "photos") as advance:
        looks = ahead(enumerate(range(len(photos))), lambda k: classifier.judge(photos.photo(k)), runtime.cores())
        for k, found in looks:
            tested.logits[k], tested.probabilities[k] = found["logits"], found["probabilities"]
            tested.scores[k] = found["known_score"]
            advance(k + 1, len(photos))
    validated = Answers(logits, softmax(logits / t, axis=1), scores, val, groups[data.val])
    tested.write(out / "answers.npz")
    _write_predictions(out / "predictions.csv", table, tested, least)
    told = {"classes": classes, "least": least, "positive": info.get("positive"), "decision": info.get("decision", 0.5)}
    return {
        "test": figures(tested, **told),
        "validation": figures(validated, **told),
        "temperature": t,
        "export": checked,
    }


def described(trainer: Trainer, maps: Iterable[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Maps at the cut -> the last map, pooled (n, c), and logits (n, classes): by the weights of now, in 32 bits."""
    rest, head = trainer.trained.eval().children()
    width = list(trainer.network.backbone.stages.values())[-1]
    features, logits = [torch.empty(0, width)], [torch.empty(0, trainer.routine.classes)]
    with torch.inference_mode():
        for x in maps:
            last = rest(trainer.fabric.to_device(x))
            features.append(last.mean((2, 3)).float().cpu())
            logits.append(head(last).float().cpu())
    return torch.cat(features).numpy(), torch.cat(logits).numpy()


def _rarer(classes: list[str], data: Data) -> str:
    """Of two classes the one that is mostly looked for."""
    used = np.concatenate([data.train, data.val, data.test])
    return classes[int(np.bincount(data.labels[used], minlength=2).argmin())]


def _write_gallery(file: Path, table: Table, shown: np.ndarray, features: np.ndarray) -> None:
    """Paths, labels and float16 features (n, c) of some training photos: with what a photo can be compared."""
    paths, half = list(table.groups), file.with_name("gallery.half.npz")
    np.savez_compressed(
        half,
        paths=np.array([paths[k] for k in shown.tolist()], str),
        labels=np.array([table.classes[k] for k in table.data.labels[shown].tolist()], str),
        features=features.astype(np.float16),
    )
    half.replace(file)


def _write_predictions(file: Path, table: Table, tested: Answers, least: float) -> None:
    columns = {
        "path": table.test,
        "label": [table.classes[k] for k in tested.labels],
        "predicted": [table.classes[k] for k in tested.probabilities.argmax(1)],
        "confidence": tested.probabilities.max(1).tolist(),
        "known": (tested.scores >= least).tolist(),
        "group": tested.groups.tolist(),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    io.table(file, rows, list(columns))


def disagreement(checked: dict[str, Any]) -> list[str]:
    """A warning where the exported file does not say what the network says."""
    if checked["max_difference"] <= TOLERANCE and checked["label_agreement"] in (1.0, None):
        return []
    return [
        f"model.onnx differs from the network by up to {checked['max_difference']:.1e} in a probability, "
        f"labels agree on {checked['label_agreement']:.1%} of {checked['photos']} photos"
    ]


def second_look(out: Path, table: Table, recipe: Recipe, reporter: Reporter) -> tuple[list[str], dict[str, Any] | None]:
    """Labels that look wrong, as warnings, and the learning curve: by the features of phase 1.

    Nothing where there are no such features, or where the budget has no time for it.
    """
    features = [out / "resume" / f"{side}_features.npy" for side in ("train", "val")]
    known = reporter.seconds.get("phase1", math.inf)  # a run that was resumed behind phase 1 does not know
    needed = reporter.elapsed() + 4 * known if recipe.budget else 0.0
    if not all(file.exists() for file in features) or (recipe.budget and needed > seconds(recipe.budget)):
        return [], None
    from fieldmark.audit import label_errors
    from fieldmark.evaluation import learning_curve

    rows, pooled = label_errors.features_of(features, table.data)
    groups, names = list(table.groups.values()), [table.classes[k] for k in table.data.labels.tolist()]
    ranking = label_errors.ranked(rows, pooled, names, list(table.groups), groups)
    errors = label_errors.flagged(ranking)
    io.write(out / "audit.json", table.audit | {"label_errors": errors})
    doubts = label_errors.warnings_of(errors)
    for warning in doubts:
        reporter.warn(warning)
    told, paths = {one["path"]: one["suggested"] == one["label"] for one in ranking}, list(table.groups)
    right = np.array([told.get(paths[k], False) for k in rows])  # what was looked for above is the curve's end
    own = [groups[k] for k in rows]
    return doubts, learning_curve.learning_curve(pooled, table.data.labels[rows], own, table.classes, right)
