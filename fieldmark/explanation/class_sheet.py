"""Class sheet: the most confident correct, most confident wrong and least confident test image of each class.

The class evidence is that of model.onnx for the predicted class; no torch.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.explanation import overlay
from fieldmark.inference.bundle import resolve_run
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction
from fieldmark.inference.run_folder import LabelledPrediction, load_catalog, read_test_predictions

Kind = Literal["typical", "confused", "uncertain"]
"""Most confident correct prediction, most confident error, least confident prediction of the rest."""
P = TypeVar("P", bound=LabelledPrediction)


@dataclass(frozen=True)
class ClassExamples:
    """The examples of one class."""

    label: str
    n_correct: int
    """Test images of the class that are predicted correctly, of `n`."""
    n: int
    examples: tuple[tuple[Kind, LabelledPrediction], ...]


@dataclass(frozen=True)
class ExplainedExample:
    """An example on the sheet, with the prediction of model.onnx."""

    label: str
    """The true class."""
    kind: Kind
    prediction: Prediction

    def to_dict(self) -> dict[str, Any]:
        """`path, class, kind` and the predicted `label, confidence, known`, or `error`."""
        prediction = self.prediction
        result = {"path": prediction.path, "class": self.label, "kind": self.kind}
        if prediction.error is not None:
            return result | {"error": prediction.error}
        return result | {"label": prediction.label, "confidence": prediction.confidence, "known": prediction.known}


class ClassSheet:
    """The examples of a run's test split, by class; the class with the most errors first.

    Raises:
        FieldmarkError: there is no finished run, it has no test images, or its data set is gone.
    """

    def __init__(self, run: str | Path, photos: str | Path | None = None) -> None:
        run = resolve_run(run)
        self.classifier = Classifier(run)
        self.catalog, predictions = load_catalog(run, photos), read_test_predictions(run)
        if not predictions:
            raise FieldmarkError(f"{run / 'predictions.csv'} holds no test images: name images to explain")
        self.preprocessing = self.classifier.info.preprocessing
        self.boxes = {photo.path: photo.box for photo in self.catalog.photos} if self.preprocessing.get("boxes") else {}
        self.n_tested, self.classes = len(predictions), _examples_by_class(predictions)

    def explain(self, kind: Kind, example: LabelledPrediction) -> tuple[ExplainedExample, np.ndarray | None]:
        """The prediction, and the image beside its class evidence, uint8 (H, 2 W, 3); None for an unreadable one."""
        path = example.path
        try:
            image = preprocess(self.catalog.files.read_bytes(path), self.preprocessing, self.boxes.get(path))
        except (UnreadableImageError, OSError) as error:  # the file may be gone by now
            return ExplainedExample(example.label, kind, Prediction(path, error=str(error))), None
        outputs = self.classifier.infer(image)
        pair = np.concatenate((image, overlay.overlay_heatmap(image, outputs["evidence"])), 1)
        return ExplainedExample(example.label, kind, self.classifier.to_prediction(path, outputs, 1)), pair


def _examples_by_class(predictions: Iterable[LabelledPrediction]) -> list[ClassExamples]:
    """The examples of each class, the class with the lowest recall first."""
    by_class: dict[str, list[LabelledPrediction]] = defaultdict(list)
    for prediction in predictions:
        by_class[prediction.label].append(prediction)
    sections = [
        ClassExamples(label, sum(one.is_correct for one in of_class), len(of_class), tuple(select_examples(of_class)))
        for label, of_class in by_class.items()
    ]
    return sorted(sections, key=lambda section: (section.n_correct / section.n, section.label))


def select_examples(predictions: list[P]) -> Iterator[tuple[Kind, P]]:
    """The typical, confused and uncertain image of one class, as far as there are such."""
    by_confidence = sorted(predictions, key=lambda one: (-one.confidence, one.path))
    typical = next((one for one in by_confidence if one.is_correct), None)
    confused = next((one for one in by_confidence if not one.is_correct), None)
    uncertain = next((one for one in reversed(by_confidence) if one is not typical and one is not confused), None)
    kinds: tuple[tuple[Kind, P | None], ...] = (("typical", typical), ("confused", confused), ("uncertain", uncertain))
    for kind, example in kinds:
        if example is not None:
            yield kind, example
