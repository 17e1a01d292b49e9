"""Trained network -> bundle, verified ONNX file, reference set, and metrics of that file on the test set."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from fieldmark.core import io, runtime
from fieldmark.core.parallel import ordered_map
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import DatasetSplits, EvalDataset, iter_eval_batches
from fieldmark.data.image_hashes import ImageHashes
from fieldmark.evaluation import calibration
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.evaluation.results import LearningCurve, Metrics
from fieldmark.explanation.neighbours import save_reference_set
from fieldmark.exporters.onnx import NUM_VERIFICATION_IMAGES, ExportCheck, export_onnx, verify
from fieldmark.inference import bundle
from fieldmark.inference.bundle import BundleInfo
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import load_image_hashes
from fieldmark.models import Head, Network
from fieldmark.models.ood import OODScorer, make_scorer
from fieldmark.models.stages import LayerInput
from fieldmark.pipeline.prepare import PreparedData, read_hashes_of_weights
from fieldmark.recipes.recipe import Recipe, parse_duration
from fieldmark.training.frozen_features import TRAIN_FEATURES, TUNED, VAL_FEATURES
from fieldmark.training.history import HEAD_REFIT, LINEAR_PROBE
from fieldmark.training.trainer import Trainer

MAX_SCORER_IMAGES = 8192
"""Training images to which the OOD score is fitted, at most."""


@dataclass(frozen=True)
class RunEvaluation:
    """What `finish_run` measures; a split without images has None.

    Attributes:
        test: metrics of the exported file on the test set.
        validation: metrics of the network on the validation set.
        temperature: by which logits are divided.
        export: comparison of the exported file with the network.
    """

    test: Metrics | None
    validation: Metrics | None
    temperature: float
    export: ExportCheck


@dataclass(frozen=True)
class Calibration:
    """What is fitted on the validation set.

    Attributes:
        temperature: by which logits are divided (Guo et al. 2017).
        ood_threshold: the least OOD score of an image that is accepted.
        predictions: of the validation set, temperature-scaled.
        reference_features: (n, c) pooled features of the reference set.
        positive: the positive class of two; else None.
        decision_threshold: the probability from which an image is predicted as positive.
    """

    temperature: float
    ood_threshold: float
    ood_scorer: OODScorer
    predictions: Predictions
    reference_features: np.ndarray
    positive: str | None
    decision_threshold: float


@dataclass(frozen=True)
class Diagnosis:
    """What features of the frozen backbone show about the data.

    Attributes:
        warnings: one line for each kind of likely label error.
        learning_curve: accuracy by the size of the training set; None if it was not measured.
    """

    warnings: tuple[str, ...] = ()
    learning_curve: LearningCurve | None = None


def finish_run(
    trainer: Trainer, prepared: PreparedData, preprocessing: dict[str, Any], out: Path, reporter: Reporter
) -> RunEvaluation:
    """Calibrate the network on the validation set, export it, and evaluate the exported file on the test set.

    Writes bundle/, gallery.npz, answers.npz and predictions.csv into `out`.
    """
    data, size = prepared.data, preprocessing["size"]
    fitted = calibrate(trainer, prepared, size)
    network = trainer.network.cpu()
    trained_on = _hashes_of_trained(out, prepared, trainer.recipe)
    info = _write_bundle(out / "bundle", network, prepared, preprocessing, fitted, trained_on)
    paths, reference = list(prepared.groups), prepared.reference_indices.tolist()
    labels = [prepared.classes[data.labels[k]] for k in reference]
    save_reference_set(out, [paths[k] for k in reference], labels, fitted.reference_features)
    classifier = Classifier(out)
    verification_set = EvalDataset(data.images, data.val if len(data.val) else data.train, size)
    images = [verification_set.read_image(k) for k in range(min(NUM_VERIFICATION_IMAGES, len(verification_set)))]
    export_check = verify(network, fitted.ood_scorer, info, classifier, images)
    predictions = _predict_test_set(classifier, prepared, size, reporter)
    predictions.save(out / "answers.npz")
    _write_predictions(out / "predictions.csv", prepared, predictions, fitted.ood_threshold)
    test, validation = (
        compute_metrics(split, prepared.classes, fitted.ood_threshold, fitted.positive, fitted.decision_threshold)
        if len(split)
        else None
        for split in (predictions, fitted.predictions)
    )
    return RunEvaluation(test, validation, fitted.temperature, export_check)


def calibrate(trainer: Trainer, prepared: PreparedData, size: int) -> Calibration:
    """Temperature, OOD score and thresholds, from the validation set and the reference set at `size` pixels."""
    data, labels = prepared.data, prepared.data.labels[prepared.data.val]
    computed = _kept_features(trainer, prepared) or _compute_features(trainer, prepared, size)
    features, logits = computed.validation
    reference_features = trainer.network.head.embed(torch.from_numpy(computed.reference)).numpy()
    temperature = calibration.fit_temperature(logits, labels)
    ood_scorer = make_scorer(trainer.network).fit(*computed.train, computed.train_labels, features, logits)
    scores = ood_scorer.score_arrays(features, logits)
    probabilities = softmax(logits / temperature, axis=1)
    positive, decision_threshold = None, 0.5
    if len(prepared.classes) == 2:
        positive = trainer.recipe.positive or _rarer_class(prepared.classes, data)
        index = prepared.classes.index(positive)
        decision_threshold = calibration.fit_decision_threshold(probabilities[:, index], labels == index)
    return Calibration(
        temperature,
        calibration.fit_ood_threshold(scores),
        ood_scorer,
        Predictions(logits, probabilities, scores, labels, prepared.group_indices[data.val]),
        reference_features,
        positive,
        decision_threshold,
    )


def extract_features_and_logits(trainer: Trainer, maps: Iterable[LayerInput]) -> tuple[np.ndarray, np.ndarray]:
    """Maps at the cut -> features of the OOD score (n, d) and logits (n, classes), in float32."""
    rest, head = trainer.phase_builder.frozen_features.trainable_backbone, trainer.network.head
    trainer.trainable.eval()
    width = len(make_scorer(trainer.network).feature_mean)
    features, logits = [torch.empty(0, width)], [torch.empty(0, trainer.phase_builder.num_classes)]
    with torch.inference_mode():
        for x in maps:
            last = rest(trainer.fabric.to_device(x))
            features.append(head.score_features(last).float().cpu())
            logits.append(head(last).float().cpu())
    return torch.cat(features).numpy(), torch.cat(logits).numpy()


@dataclass(frozen=True)
class ScoreFeatures:
    """Features of the OOD score (n, d), each with logits (n, classes), of the network that was kept.

    Attributes:
        train: of training images, and their labels.
        validation: of the validation images.
        reference: of the reference set, without logits.
    """

    train: tuple[np.ndarray, np.ndarray]
    train_labels: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]
    reference: np.ndarray


def _kept_features(trainer: Trainer, prepared: PreparedData) -> ScoreFeatures | None:
    """Those that a linear probe or a refit have left in files when they were solved exactly; None without them."""
    phases = {record.epoch: record.phase for record in trainer.state.history}
    prefix = {LINEAR_PROBE: "", HEAD_REFIT: TUNED}.get(phases.get(trainer.best_epoch(), 0))
    if prefix is None or not trainer.phase_builder.has_exact_probe:
        return None
    files = [trainer.folder / (prefix + name) for name in (TRAIN_FEATURES, VAL_FEATURES)]
    if not all(file.exists() for file in files):
        return None
    data, head = trainer.data, trainer.network.head
    train, val = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)

    def read(features: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        some = np.array(features[rows])
        return some.reshape(len(some), math.prod(train.shape[1:]))  # perhaps there are no validation images

    def classify(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            return features, head(trainer.fabric.to_device(torch.from_numpy(features))).float().cpu().numpy()

    rows = slice(0, len(train), -(-len(train) // MAX_SCORER_IMAGES))
    row_of = {index: row for row, index in enumerate(data.train.tolist())}
    reference = np.array([row_of[index] for index in prepared.reference_indices.tolist()])
    return ScoreFeatures(
        classify(read(train, rows)),
        data.labels[data.train][rows],
        classify(read(val, slice(None))),
        read(train, reference),
    )


def _compute_features(trainer: Trainer, prepared: PreparedData, size: int) -> ScoreFeatures:
    """Those of the validation set, and of the reference set in place of all training images."""
    data, frozen, reference = prepared.data, trainer.phase_builder.frozen_features, prepared.reference_indices
    maps = map(frozen.compute_maps, iter_eval_batches(data.images, reference, size))
    train = extract_features_and_logits(trainer, maps)
    validation = extract_features_and_logits(trainer, frozen.val_maps())
    return ScoreFeatures(train, data.labels[reference], validation, train[0])


def _rarer_class(classes: list[str], data: DatasetSplits) -> str:
    """The class of two with fewer images, which is usually the positive one."""
    all_indices = np.concatenate([data.train, data.val, data.test])
    return classes[int(np.bincount(data.labels[all_indices], minlength=2).argmin())]


def _hashes_of_trained(out: Path, prepared: PreparedData, recipe: Recipe) -> ImageHashes | None:
    """Hashes of the training and validation images, and of those that the initial weights were trained on.

    None if an earlier version has started the run.
    """
    images = load_image_hashes(out)
    if images is None:
        return None
    own = images.hashes.select(np.concatenate([prepared.data.train, prepared.data.val]))
    earlier = read_hashes_of_weights(recipe)
    return own if earlier is None else own.union(earlier)


def _write_bundle(
    folder: Path,
    network: Network,
    prepared: PreparedData,
    preprocessing: dict[str, Any],
    fitted: Calibration,
    trained_on: ImageHashes | None,
) -> BundleInfo:
    """Write weights, bundle.json and model.onnx; return the content of bundle.json."""
    info = bundle.make_info(
        network,
        prepared.classes,
        preprocessing,
        fitted.temperature,
        fitted.ood_threshold,
        prepared.audit.fingerprint,
    )
    if fitted.positive is not None:
        info = dataclasses.replace(info, positive=fitted.positive, decision=fitted.decision_threshold)
    info = bundle.save(folder, info, network, fitted.ood_scorer, trained_on)
    export_onnx(network, fitted.ood_scorer, info, folder / "model.onnx")
    return info


def _predict_test_set(classifier: Classifier, prepared: PreparedData, size: int, reporter: Reporter) -> Predictions:
    """Predictions of the exported file."""
    data, n_classes = prepared.data, len(prepared.classes)
    images, n = EvalDataset(data.images, data.test, size), len(data.test)
    predictions = Predictions(
        logits=np.zeros((n, n_classes), np.float32),
        probabilities=np.zeros((n, n_classes), np.float32),
        scores=np.zeros(n, np.float32),
        labels=data.labels[data.test],
        groups=prepared.group_indices[data.test],
    )
    with reporter.progress_bar("testing", "images") as advance:
        outputs = ordered_map(lambda k: classifier.infer(images.read_image(k)), range(n), runtime.available_cpus())
        for k, output in enumerate(outputs):
            predictions.logits[k], predictions.probabilities[k] = output["logits"], output["probabilities"]
            predictions.scores[k] = output["known_score"]
            advance(k + 1, n)
    return predictions


def _write_predictions(file: Path, prepared: PreparedData, predictions: Predictions, threshold: float) -> None:
    columns = {
        "path": prepared.test_paths,
        "label": [prepared.classes[k] for k in predictions.labels],
        "predicted": [prepared.classes[k] for k in predictions.probabilities.argmax(1)],
        "confidence": predictions.probabilities.max(1).tolist(),
        "known": (predictions.scores >= threshold).tolist(),
        "group": predictions.groups.tolist(),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    io.write_csv(file, rows, list(columns))


def check_export_agreement(export_check: ExportCheck) -> list[str]:
    """A warning if the predictions of the exported file differ from those of the network."""
    if export_check.is_equivalent:
        return []
    return [
        f"model.onnx differs from the network by up to {export_check.max_difference:.1e} in a probability, "
        f"labels agree on {export_check.label_agreement:.1%} of {export_check.images} photos"
    ]


def diagnose_labels_and_curve(
    out: Path, prepared: PreparedData, head: Head, recipe: Recipe, reporter: Reporter
) -> Diagnosis:
    """Likely label errors, added to audit.json, and the learning curve, from the features of the linear probe.

    Empty without such features, or if the budget leaves no time.
    """
    features = [out / "resume" / f"{split}_features.npy" for split in ("train", "val")]
    if not all(file.exists() for file in features) or not _has_time_for_diagnosis(recipe, reporter):
        return Diagnosis()
    from fieldmark.audit import label_errors
    from fieldmark.evaluation import learning_curve

    data, paths, groups = prepared.data, list(prepared.groups), list(prepared.groups.values())
    rows, pooled = label_errors.load_pooled_features(features, data, head)
    labels = [prepared.classes[k] for k in data.labels.tolist()]
    ranking = label_errors.rank_labels(rows, pooled, labels, paths, groups)
    errors = tuple(quality for quality in ranking if quality.is_issue)
    report = dataclasses.replace(prepared.audit.report, label_errors=errors)
    dataclasses.replace(prepared.audit, report=report).save(out)
    warnings = label_errors.label_error_warnings(errors)
    for warning in warnings:
        reporter.warning(warning)
    # The out-of-fold predictions of the search for label errors are the last point of the curve.
    is_correct = {quality.path: quality.suggested == quality.label for quality in ranking}
    outcomes = np.array([is_correct.get(paths[k], False) for k in rows])
    row_groups = [groups[k] for k in rows]
    curve = learning_curve.learning_curve(pooled, data.labels[rows], row_groups, prepared.classes, outcomes)
    return Diagnosis(tuple(warnings), curve)


def _has_time_for_diagnosis(recipe: Recipe, reporter: Reporter) -> bool:
    """Whether the budget leaves time for four linear probes; unknown, hence no, if the run was resumed after its."""
    if not recipe.budget:
        return True
    probe_seconds = reporter.stage_seconds.get("phase1", math.inf)
    return reporter.elapsed() + 4 * probe_seconds <= parse_duration(recipe.budget)
