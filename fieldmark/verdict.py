"""Trained network -> bundle, exported file, and the figures of that file on the test photos."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from fieldmark import bundle, evaluate, records
from fieldmark.dataset import Judged
from fieldmark.export import export, verify
from fieldmark.finetune import Trainer
from fieldmark.predict import Classifier
from fieldmark.prepare import Table
from fieldmark.progress import Reporter
from fieldmark.recipe import Recipe, seconds

TOLERANCE = 1e-5
"""Largest difference of a probability between the network and its export that is called equal."""
VERIFIED = 32
"""Photos on which the export is compared with the original."""


def judge(
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


def disagreement(checked: dict[str, Any]) -> list[str]:
    """A warning where the exported file does not say what the network says."""
    if checked["max_difference"] <= TOLERANCE and checked["label_agreement"] in (1.0, None):
        return []
    return [
        f"model.onnx differs from the network by up to {checked['max_difference']:.1e} in a probability, "
        f"labels agree on {checked['label_agreement']:.1%} of {checked['photos']} photos"
    ]


def doubted_labels(out: Path, table: Table, recipe: Recipe, reporter: Reporter) -> list[str]:
    """Look for wrong labels by the features of phase 1, where there are some and the budget has time; -> warnings."""
    features = [out / "resume" / f"{side}_features.npy" for side in ("train", "val")]
    needed = reporter.elapsed() + 2 * reporter.seconds.get("phase1", 0.0) if recipe.budget else 0.0
    if not all(file.exists() for file in features) or (recipe.budget and needed > seconds(recipe.budget)):
        return []
    from fieldmark import labels

    errors = labels.of_run(features, table.data, table.classes, table.groups)
    records.write(out / "audit.json", table.audit | {"label_errors": errors})
    doubts = labels.warnings_of(errors)
    for warning in doubts:
        reporter.warn(warning)
    return doubts
