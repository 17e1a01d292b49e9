"""The result of classifying one image."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class RankedClass:
    """A class and the probability that the model gives it, between 0 and 1."""

    label: str
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """What a classifier predicts for one image; if the image cannot be read, `error` says why and the rest is empty.

    Attributes:
        path: the image as it was given; empty for bytes.
        label: the most probable class.
        confidence: its temperature-scaled probability, between 0 and 1.
        known: False if the image is out of distribution: its `known_score` is below the model's threshold.
        top: the most probable classes in descending order, `label` first.
        error: why the image cannot be read, in one line.
        heatmap: the file with the class evidence drawn over the image, if one was written.
        evidence: the class evidence as a transparent PNG in a data URI, if it was asked for.
        model: identifier of the model that predicts, 12 hex digits, as in its bundle.json.
    """

    path: str
    label: str | None = None
    confidence: float | None = None
    known: bool | None = None
    top: tuple[RankedClass, ...] = ()
    error: str | None = None
    heatmap: str | None = None
    evidence: str | None = None
    model: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in JSON: `path, label, confidence, known, top, model[, heatmap][, evidence]`, or `path, error`."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        top = [{"label": ranked.label, "confidence": ranked.confidence} for ranked in self.top]
        row = {"path": self.path, "label": self.label, "confidence": self.confidence, "known": self.known, "top": top}
        extras = {"model": self.model, "heatmap": self.heatmap, "evidence": self.evidence}
        return row | {name: value for name, value in extras.items() if value is not None}

    def _repr_html_(self) -> str:
        """The most probable classes as bars, in a notebook."""
        if self.error is not None:
            return f"<p><b>{escape(self.path)}</b>: {escape(self.error)}</p>"
        note = "" if self.known else " <em>(out of distribution?)</em>"
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(ranked.label)}</td><td>{ranked.confidence:.1%}</td>"
            f"<td style='width:12em'><div style='background:#4878a8;height:.8em;width:{100 * ranked.confidence:.1f}%'>"
            "</div></td></tr>"
            for ranked in self.top
        )
        return f"<table><caption>{escape(self.path)}{note}</caption>{rows}</table>"

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Prediction":
        """The reverse of `to_dict`."""
        return cls(**{**row, "top": tuple(RankedClass(**ranked) for ranked in row.get("top", ()))})
