"""Explanations of single predictions: attribution maps and their faithfulness, class evidence, nearest training images.

`explain_images` computes them, `save_overlays` draws the maps into files; fieldmark/report/explain_page.py writes the
page.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.core.progress import Reporter
from fieldmark.core.text import ascii_file_name, summarize_names
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.thumbnails import to_data_uri
from fieldmark.explanation import attribution, faithfulness, overlay
from fieldmark.explanation.neighbours import Neighbour, load_reference_set
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.inputs import ImageInput, InputSource, find_inputs

N_RANDOM_MAPS = 4
"""Random maps that a map is compared with; a negative swaps deletion and insertion, so that each counts twice."""
NEGLIGIBLE_PROBABILITY = 0.05
"""Mean probability of the target class, with random parts of the image blurred, below which maps cannot be compared."""
TIE_TOLERANCE = 0.02
"""Maps whose insertion - deletion differs by no more are equally faithful: the one requested first is named."""


@dataclass(frozen=True)
class MapScore:
    """Faithfulness of one attribution map (fieldmark/explanation/faithfulness.py)."""

    method: str
    deletion: float
    """Mean probability of the target while the image is blurred in the order of the map, 0 to 1; lower is better."""
    insertion: float
    """The same while the image is restored in that order; higher is better."""
    beats_random: bool
    """Whether insertion - deletion is above that of every random map, in absolute value."""
    file: str | None = None
    """The overlay, once it is saved."""

    @property
    def faithfulness(self) -> float:
        """Insertion less deletion, -1 to 1."""
        return self.insertion - self.deletion


@dataclass(frozen=True)
class AttentionMap:
    """A map of an attention gate that differs between positions."""

    module: str
    """Name of the gate in the network."""
    file: str | None = None
    """The overlay, once it is saved."""


@dataclass(frozen=True)
class Explanation:
    """Why an image is predicted as it is. evidence + bias = logit."""

    path: str
    label: str
    """The predicted class."""
    confidence: float
    """Its temperature-scaled probability, 0 to 1."""
    known: bool
    """False if the image is rejected as out of distribution."""
    target: str
    """The class that is explained: the predicted one unless another was requested."""
    logit: float
    """Of the target, as the next two."""
    evidence: float
    """Sum of the class evidence over all positions, in logits."""
    bias: float
    """In logits."""
    chance: float
    """Mean deletion and insertion of random maps, 0 to 1."""
    maps: tuple[MapScore, ...]
    """In the order of the methods requested."""
    attention: tuple[AttentionMap, ...]
    nearest: tuple[Neighbour, ...]
    """Nearest training images; empty without a reference set."""

    def to_dict(self) -> dict[str, Any]:
        return io.to_jsonable(self)

    def most_faithful(self) -> MapScore | None:
        """The map with the highest insertion - deletion of those that beat random maps; None if none does."""
        candidates = [score for score in self.maps if score.beats_random]
        best = max((score.faithfulness for score in candidates), default=0.0)
        return next((score for score in candidates if score.faithfulness >= best - TIE_TOLERANCE), None)

    @property
    def is_target_negligible(self) -> bool:
        """Whether the requested class is improbable whatever is blurred: deletion and insertion are meaningless."""
        return self.label != self.target and self.chance < NEGLIGIBLE_PROBABILITY


@dataclass(frozen=True)
class Unexplained:
    """An image that cannot be read."""

    path: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        return io.to_jsonable(self)


@dataclass(frozen=True)
class ClassEvidence:
    """Logit of one class, and the part that each position contributes to it."""

    label: str
    logit: float
    evidence: float
    """Sum of `values`."""
    bias: float
    values: np.ndarray
    """float64 (h, w), in logits"""


@dataclass(frozen=True)
class ExplainedImage:
    """An explanation with its arrays."""

    explanation: Explanation
    image: np.ndarray
    """uint8 (H, W, 3), as the network sees it"""
    maps: dict[str, np.ndarray]
    """float32 (h, w) by method; the resolution depends on the method"""
    attention: dict[str, np.ndarray]
    """float32 (h, w) by name of the gate"""
    target: ClassEvidence
    runner_up: ClassEvidence | None
    """The most probable class besides the target."""

    @property
    def label(self) -> str:
        """The predicted class."""
        return self.explanation.label

    @property
    def confidence(self) -> float:
        """Its temperature-scaled probability, 0 to 1."""
        return self.explanation.confidence

    def overlay(self, method: str | None = None) -> PIL.Image.Image:
        """The map of a method (by default the first that was computed) over the image, with a legend."""
        name = next(iter(self.maps)) if method is None else method
        if name not in self.maps:
            raise ValueError(f"method={name!r}, but can be {' or '.join(self.maps)}")
        return overlay.overlay_with_legend(self.image, self.maps[name], attribution.METHODS[name].unit)

    def _repr_html_(self) -> str:
        """The overlays and the prediction, in a notebook."""
        pictures = "".join(
            f"<figure style='display:inline-block;margin:4px'><img src='{to_data_uri(self.overlay(name), 480)}'>"
            f"<figcaption>{escape(name)}: {escape(self.explanation.target)}</figcaption></figure>"
            for name in self.maps
        )
        note = "" if self.explanation.known else " (out of distribution?)"
        return f"<div><b>{escape(self.label)} {self.confidence:.1%}</b>{note}<br>{pictures}</div>"


class Explainer:
    """Explains the predictions of a run, one image at a time.

    Args:
        run: a finished run, or its bundle.
        methods: names in `attribution.METHODS`, or "all".
        target: the class to explain; by default the predicted one.
        n_neighbours: nearest training images to name.
        allow_private_hosts: as for `Classifier`.

    Raises:
        FieldmarkError: there is no run, or a method or class is unknown.
    """

    def __init__(
        self,
        run: str | Path,
        methods: Iterable[str] = ("evidence",),
        target: str | None = None,
        n_neighbours: int = 4,
        *,
        allow_private_hosts: bool | None = None,
    ) -> None:
        self.methods, self.n_neighbours = _parse_methods(methods), n_neighbours
        self.classifier = Classifier(run, allow_private_hosts=allow_private_hosts)
        self.classes, self.preprocessing = self.classifier.classes, self.classifier.info.preprocessing
        self.target = None if target is None else _class_index(target, self.classes)
        self.network = attribution.hookable_copy(bundle.load_network(run))
        # In float64 evidence and bias sum to the logit in all digits that are shown.
        self.head = copy.deepcopy(self.network.head).double()
        self.reference_set = load_reference_set(Path(run), [*self.network.backbone.stages.values()][-1])

    def explain(self, path: str, image: np.ndarray) -> ExplainedImage:
        """Explain the prediction for a preprocessed image, uint8 (H, W, 3)."""
        outputs = self.classifier.infer(image)
        prediction = self.classifier.to_prediction(path, outputs, 1)
        target = int(outputs["probabilities"].argmax()) if self.target is None else self.target
        x = attribution.to_network_input(image, self.preprocessing)
        with torch.inference_mode():
            features = self.network.features(x)
        evidence, *runners_up = self._class_evidence(features, target)
        maps = {name: attribution.METHODS[name].function(self.network, x, target) for name in self.methods}
        attention_maps = attribution.attention_maps(self.network, x)
        scores, chance = self._score_maps(image, x, maps, target, features.shape[2:])
        neighbours = ()
        if self.reference_set:
            neighbours = self.reference_set.nearest(self.network.head.embed(features)[0].numpy(), self.n_neighbours)
        explanation = Explanation(
            path,
            prediction.top[0].label,
            prediction.top[0].confidence,
            bool(prediction.known),
            target=evidence.label,
            logit=evidence.logit,
            evidence=evidence.evidence,
            bias=evidence.bias,
            chance=chance,
            maps=scores,
            attention=tuple(AttentionMap(name) for name in attention_maps),
            nearest=neighbours,
        )
        return ExplainedImage(explanation, image, maps, attention_maps, evidence, next(iter(runners_up), None))

    def _score_maps(
        self, image: np.ndarray, x: Tensor, maps: dict[str, np.ndarray], target: int, shape: Sequence[int]
    ) -> tuple[tuple[MapScore, ...], float]:
        """Faithfulness of each map, and the mean deletion and insertion of random maps of `shape`."""
        baseline = attribution.to_network_input(faithfulness.blur_image(image), self.preprocessing)
        random_maps = [faithfulness.random_map(shape, k) for k in range(N_RANDOM_MAPS)]
        temperature = self.classifier.info.temperature
        auc = faithfulness.deletion_insertion(
            self.network, x, baseline, [*maps.values(), *random_maps], target, temperature
        )
        auc, random_auc = auc[: len(maps)], auc[len(maps) :]
        margin = np.ptp(random_auc, axis=1).max()
        scores = (
            MapScore(name, float(d), float(i), bool(i - d > margin)) for name, (d, i) in zip(maps, auc, strict=True)
        )
        return tuple(scores), float(random_auc.mean())

    @torch.inference_mode()
    def _class_evidence(self, features: Tensor, target: int) -> list[ClassEvidence]:
        """Class evidence for the target and, with several classes, the most probable other one."""
        features = features.double()
        logits = self.head(features)[0]
        others = [k for k in logits.argsort(descending=True).tolist() if k != target]
        classes = torch.tensor([target, *others[:1]])
        features = features.expand(len(classes), -1, -1, -1)
        maps, biases = self.head.evidence(features, classes), self.head.bias(features, classes)
        rows = zip(classes.tolist(), maps.numpy(), biases.tolist(), strict=True)
        return [ClassEvidence(self.classes[k], float(logits[k]), float(m.sum()), b, m) for k, m, b in rows]


def explain_images(
    explainer: Explainer, images: ImageInput, reporter: Reporter
) -> Iterator[ExplainedImage | Unexplained]:
    """Explain the predictions for images of all kinds that `Classifier.predict` takes, in order.

    Raises:
        FieldmarkError: a file does not exist.
    """

    def read(item: tuple[str, InputSource]) -> tuple[str, np.ndarray | UnreadableImageError]:
        path, source = item
        try:
            return path, preprocess(source, explainer.preprocessing)
        except UnreadableImageError as error:
            return path, error

    sources = list(find_inputs(images, explainer.classifier.allow_private_hosts))
    with reporter.progress_bar("explaining", "photos") as advance:
        for k, (path, image) in enumerate(ordered_map(read, sources, num_workers=1)):
            is_unreadable = isinstance(image, UnreadableImageError)
            yield Unexplained(path, str(image)) if is_unreadable else explainer.explain(path, image)
            advance(k + 1, len(sources))


def save_overlays(explained: ExplainedImage, out: Path, stem: str) -> Explanation:
    """Draw each map over the image into `out`/STEM.METHOD.png; return the explanation with these files."""
    out.mkdir(parents=True, exist_ok=True)
    explanation, scores, attention = explained.explanation, list[MapScore](), list[AttentionMap]()
    for score in explanation.maps:
        file, unit = str(out / f"{stem}.{score.method}.png"), attribution.METHODS[score.method].unit
        overlay.overlay_with_legend(explained.image, explained.maps[score.method], unit).save(file)
        scores.append(replace(score, file=file))
    for gate in explanation.attention:
        file, values = (
            str(out / f"{stem}.attention.{ascii_file_name(gate.module, 100)}.png"),
            explained.attention[gate.module],
        )
        overlay.overlay_with_legend(explained.image, values - values.mean(), "").save(file)
        attention.append(replace(gate, file=file))
    return replace(explanation, maps=tuple(scores), attention=tuple(attention))


def _parse_methods(words: Iterable[str]) -> list[str]:
    """The names of the methods, each once; "all" is all of them."""
    names = [name for word in words for name in (attribution.METHODS if word == "all" else [word])]
    if unknown := [name for name in names if name not in attribution.METHODS]:
        close = get_close_matches(unknown[0], attribution.METHODS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise FieldmarkError(f"no method {unknown[0]!r}: {hint}there are {', '.join(attribution.METHODS)}, or all")
    return list(dict.fromkeys(names))


def _class_index(name: str, classes: list[str]) -> int:
    if name not in classes:
        close = get_close_matches(name, classes, 3) or classes
        raise FieldmarkError(f"no class {name!r}: the classifier knows {summarize_names(close)}")
    return classes.index(name)
