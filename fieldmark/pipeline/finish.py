"""Trained network -> bundle, export, gallery, and the figures of the exported file on the test photos."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from fieldmark.core import io, runtime
from fieldmark.core.parallel import ordered_map
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import DatasetSplits, EvalDataset, iter_eval_batches
from fieldmark.evaluation import calibration
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.exporters.onnx import NUM_VERIFICATION_IMAGES, TOLERANCE, export_onnx, verify
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.models.ood import OODScorer
from fieldmark.pipeline.prepare import PreparedData
from fieldmark.recipes.recipe import Recipe, parse_duration
from fieldmark.training.trainer import Trainer


def finish_run(
    trainer: Trainer, prepared: PreparedData, preprocessing: dict[str, Any], out: Path, reporter: Reporter
) -> dict[str, Any]:
    """Calibrate on the validation photos, write the bundle, and test the file that people will use."""
    data, classes = prepared.data, prepared.classes
    val, test = data.labels[data.val], data.labels[data.test]
    network = trainer.network
    reference = prepared.reference_indices
    reference_features, _ = extract_features_and_logits(
        trainer,
        map(
            trainer.phase_builder.frozen_features.compute_maps,
            iter_eval_batches(data.images, reference, preprocessing["size"]),
        ),
    )
    features, logits = extract_features_and_logits(trainer, trainer.phase_builder.frozen_features.val_maps())
    network.cpu()
    temperature_value = calibration.fit_temperature(logits, val)
    ood_scorer = OODScorer.fit(reference_features, data.labels[reference], features, logits)
    scores = ood_scorer.score_arrays(features, logits)
    threshold_value = calibration.fit_ood_threshold(scores)
    info = bundle.make_info(
        network, classes, preprocessing, temperature_value, threshold_value, prepared.audit.fingerprint
    )
    if len(classes) == 2:
        positive = trainer.recipe.positive or _rarer_class(classes, data)
        positive_probability = softmax(logits / temperature_value, axis=1)[:, classes.index(positive)]
        info |= {
            "positive": positive,
            "decision": calibration.fit_decision_threshold(positive_probability, val == classes.index(positive)),
        }
    bundle.save(out / "bundle", info, network, ood_scorer)
    _write_reference_set(out / "gallery.npz", prepared, reference, reference_features)
    export_onnx(network, ood_scorer, info, out / "bundle" / "model.onnx")
    classifier = Classifier(out)
    verification_set = EvalDataset(data.images, data.val if len(val) else data.train, preprocessing["size"])
    export_check = verify(
        network,
        ood_scorer,
        info,
        classifier,
        [verification_set.read_image(k) for k in range(min(NUM_VERIFICATION_IMAGES, len(verification_set)))],
    )
    test_set = EvalDataset(data.images, data.test, preprocessing["size"])
    groups = np.array(list(prepared.groups.values()), np.int64)
    test_predictions = Predictions(
        *(np.zeros((len(test), len(classes)), np.float32) for _ in ("logits", "probabilities")),
        scores=np.zeros(len(test), np.float32),
        labels=test,
        groups=groups[data.test],
    )
    with reporter.progress_bar("testing", "photos") as advance:
        results = ordered_map(
            lambda k: classifier.infer(test_set.read_image(k)), range(len(test_set)), runtime.available_cpus()
        )
        for k, result in enumerate(results):
            test_predictions.logits[k], test_predictions.probabilities[k] = result["logits"], result["probabilities"]
            test_predictions.scores[k] = result["known_score"]
            advance(k + 1, len(test_set))
    val_predictions = Predictions(logits, softmax(logits / temperature_value, axis=1), scores, val, groups[data.val])
    test_predictions.save(out / "answers.npz")
    _write_predictions(out / "predictions.csv", prepared, test_predictions, threshold_value)
    metric_options = {
        "classes": classes,
        "threshold": threshold_value,
        "positive": info.get("positive"),
        "decision_threshold": info.get("decision", 0.5),
    }
    return {
        "test": compute_metrics(test_predictions, **metric_options).to_dict() if len(test) else None,
        "validation": compute_metrics(val_predictions, **metric_options).to_dict() if len(val) else None,
        "temperature": temperature_value,
        "export": export_check,
    }


def extract_features_and_logits(trainer: Trainer, maps: Iterable[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Maps at the cut -> the last map, pooled (n, c), and logits (n, classes): by the weights of now, in 32 bits."""
    rest, head = trainer.trainable.eval().children()
    width = list(trainer.network.backbone.stages.values())[-1]
    features, logits = [torch.empty(0, width)], [torch.empty(0, trainer.phase_builder.num_classes)]
    with torch.inference_mode():
        for x in maps:
            last = rest(trainer.fabric.to_device(x))
            features.append(last.mean((2, 3)).float().cpu())
            logits.append(head(last).float().cpu())
    return torch.cat(features).numpy(), torch.cat(logits).numpy()


def _rarer_class(classes: list[str], data: DatasetSplits) -> str:
    """Of two classes the one that is mostly looked for."""
    all_indices = np.concatenate([data.train, data.val, data.test])
    return classes[int(np.bincount(data.labels[all_indices], minlength=2).argmin())]


def _write_reference_set(file: Path, prepared: PreparedData, reference: np.ndarray, features: np.ndarray) -> None:
    """Paths, labels and float16 features (n, c) of some training photos: with what a photo can be compared."""
    paths, temporary = list(prepared.groups), file.with_name("gallery.half.npz")
    np.savez_compressed(
        temporary,
        paths=np.array([paths[k] for k in reference.tolist()], str),
        labels=np.array([prepared.classes[k] for k in prepared.data.labels[reference].tolist()], str),
        features=features.astype(np.float16),
    )
    temporary.replace(file)


def _write_predictions(file: Path, prepared: PreparedData, test_predictions: Predictions, threshold: float) -> None:
    columns = {
        "path": prepared.test_paths,
        "label": [prepared.classes[k] for k in test_predictions.labels],
        "predicted": [prepared.classes[k] for k in test_predictions.probabilities.argmax(1)],
        "confidence": test_predictions.probabilities.max(1).tolist(),
        "known": (test_predictions.scores >= threshold).tolist(),
        "group": test_predictions.groups.tolist(),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    io.write_csv(file, rows, list(columns))


def check_export_agreement(export_check: dict[str, Any]) -> list[str]:
    """A warning where the exported file does not say what the network says."""
    if export_check["max_difference"] <= TOLERANCE and export_check["label_agreement"] in (1.0, None):
        return []
    return [
        f"model.onnx differs from the network by up to {export_check['max_difference']:.1e} in a probability, "
        f"labels agree on {export_check['label_agreement']:.1%} of {export_check['photos']} photos"
    ]


def diagnose_labels_and_curve(
    out: Path, prepared: PreparedData, recipe: Recipe, reporter: Reporter
) -> tuple[list[str], dict[str, Any] | None]:
    """Labels that look wrong, as warnings, and the learning curve: by the features of phase 1.

    Nothing where there are no such features, or where the budget has no time for it.
    """
    features = [out / "resume" / f"{side}_features.npy" for side in ("train", "val")]
    probe_seconds = reporter.stage_seconds.get(
        "phase1", math.inf
    )  # a run that was resumed behind phase 1 does not know
    needed = reporter.elapsed() + 4 * probe_seconds if recipe.budget else 0.0
    if not all(file.exists() for file in features) or (recipe.budget and needed > parse_duration(recipe.budget)):
        return [], None
    from fieldmark.audit import label_errors
    from fieldmark.evaluation import learning_curve

    rows, pooled = label_errors.load_pooled_features(features, prepared.data)
    groups, names = list(prepared.groups.values()), [prepared.classes[k] for k in prepared.data.labels.tolist()]
    ranking = label_errors.rank_labels(rows, pooled, names, list(prepared.groups), groups)
    errors = tuple(quality for quality in ranking if quality.is_issue)
    report = dataclasses.replace(prepared.audit.report, label_errors=errors)
    dataclasses.replace(prepared.audit, report=report).save(out)
    label_warnings = label_errors.label_error_warnings(errors)
    for warning in label_warnings:
        reporter.warning(warning)
    is_right_by_path, paths = {one.path: one.suggested == one.label for one in ranking}, list(prepared.groups)
    is_right = np.array(
        [is_right_by_path.get(paths[k], False) for k in rows]
    )  # what was looked for above is the curve's end
    row_groups = [groups[k] for k in rows]
    curve = learning_curve.learning_curve(pooled, prepared.data.labels[rows], row_groups, prepared.classes, is_right)
    return list(label_warnings), curve and curve.to_dict()
