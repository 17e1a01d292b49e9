"""figures -> words: the sentences, rows and numbers of the report, as people read them."""

import math
from collections import Counter
from typing import Any

from markupsafe import Markup

from fieldmark import charts
from fieldmark.charts import number

FEW_TRAINED, FEW_TESTED = 50, 20  # photos of a class below which we say that there were few
BANDS = ((0.95, 1.01, "95 % and more"), (0.8, 0.95, "80 to 95 %"), (0.5, 0.8, "50 to 80 %"), (0, 0.5, "below 50 %"))


def summary(metrics: dict[str, Any]) -> str:
    """What the run is worth in one plain sentence or two, hedged where few photos or none were kept for the test.

    >>> summary({"test": {"accuracy": 0.921, "n": 379, "ci95": [0.89, 0.944]}, "classes": list("abcdef")})[:46]
    'On 379 photos it had never seen, the classifie'
    """
    figures, tested = metrics.get("test") or metrics.get("validation") or {}, bool(metrics.get("test"))
    accuracy, n = number(figures.get("accuracy")), figures.get("n") or 0
    if accuracy is None or not n:
        return (
            "The classifier was trained, but no labelled photo was left to test it on: nobody knows yet how good it is."
        )
    unseen = f"On {n:,} photos it had never seen,"
    chosen = f"No photo was kept for a test. On {n:,} validation photos, which also chose the weights and so flatter,"
    right = f"the classifier names the right one of {len(metrics.get('classes') or [])} classes"
    between = figures.get("ci95") or (None, None)
    if n < 100:
        text = f"{unseen if tested else chosen} {right} {round(accuracy * n)} times ({percent(accuracy)})."
        text += " So few photos prove little: with 95\N{NO-BREAK SPACE}% confidence the true rate lies within"
        text += f" {interval(between, 0)}."
    else:
        text = f"{unseen if tested else chosen} {right} {percent(accuracy)} of the time"
        text += f" (95\N{NO-BREAK SPACE}% interval {interval(between)})."
    guess = baseline(figures)
    low = number(between[0])
    if guess and (accuracy if low is None else low) <= guess["share"]:
        text += f" That is not shown to be better than always answering “{guess['name']}” ({percent(guess['share'])})."
    return text


def baseline(figures: dict[str, Any]) -> dict[str, Any] | None:
    """The share that always answering the commonest class would get right."""
    counts = {name: row.get("n") or 0 for name, row in (figures.get("per_class") or {}).items()}
    if not sum(counts.values()):
        return None
    name = max(counts, key=lambda name: counts[name])
    return {"name": name, "share": counts[name] / sum(counts.values())}


def per_class(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of classes, the lowest recall first, the untested last, each with its bar and 95 % interval."""
    rows = []
    for name, row in (figures.get("per_class") or {}).items():
        recall, n = number(row.get("recall")), row.get("n") or 0
        shown: dict[str, Any] = {"low": None, "high": None, "bar": ""}
        if recall is not None and n:
            low, high = _wilson(recall, n)
            shown = {"low": low, "high": high, "bar": Markup(charts.bar(recall, low, high))}
        rows.append({**row, **shown, "name": name, "n": n, "recall": recall})
    return sorted(rows, key=lambda row: (not row["n"], row["recall"] if row["recall"] is not None else 1.0))


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (E. B. Wilson, 1927): sensible for small n and near 0 and 1."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def limits(metrics: dict[str, Any], figures: dict[str, Any], counts: Counter[tuple[str, str]]) -> list[str]:
    """What the classifier cannot do or has not shown, as sentences."""
    classes = metrics.get("classes") or []
    rows = figures.get("per_class") or {}
    sentences = [
        f"It knows {len(classes)} classes and nothing else; a photo of something else gets one of these names"
        " unless its score falls below the threshold.",
        "The figures hold for photos like these; another camera, place or season may bring others.",
    ]
    trained = {name: counts[name, "train"] for name in classes if counts and counts[name, "train"] < FEW_TRAINED}
    tested = {name: row.get("n") or 0 for name, row in rows.items() if (row.get("n") or 0) < FEW_TESTED}
    recalls = {name: number(row.get("recall")) for name, row in rows.items() if row.get("n")}
    weak = {name: round(100 * recall) for name, recall in recalls.items() if recall is not None and recall < 0.8}
    if trained:
        sentences.append(f"It learnt from fewer than {FEW_TRAINED} photos of {_listed(trained)}.")
    if tested:
        sentences.append(
            f"Tested on fewer than {FEW_TESTED} photos, so that their own figures may be far off: {_listed(tested)}."
        )
    if weak:
        sentences.append(f"It finds less than 80 % of {_listed(weak, unit=' %')}.")
    for true, answer, count, share in charts.confused_pairs(figures.get("confusion") or [], classes, most=3):
        if share >= 0.05 and count > 2:
            sentences.append(f"It takes {count} of {round(count / share)} photos of “{true}” for “{answer}”.")
    return sentences


def _listed(values: dict[str, int], unit: str = "", most: int = 8) -> str:
    """Classes with a number each, the lowest first, cut off where a reader would stop."""
    names = sorted(values, key=lambda name: values[name])
    rest = f" and {len(names) - most} more classes" if len(names) > most else ""
    return ", ".join(f"{name} ({values[name]}{unit})" for name in names[:most]) + rest


def bands(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often the classifier is right where it is sure, half sure and unsure: calibration that can be read."""
    rows = []
    for low, high, text in BANDS:
        inside = [p for p in predictions if low <= p["confidence"] < high]
        if inside:
            said, correct = sum(p["confidence"] for p in inside), sum(p["correct"] for p in inside)
            rows.append({"text": text, "n": len(inside), "said": said / len(inside), "right": correct / len(inside)})
    return rows


def percent(share: Any, digits: int = 1) -> str:
    """A share as people write it: 0.9213 -> "92.1 %", its space unbreakable; a dash where there is no figure."""
    value = number(share)
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(bounds: Any, digits: int = 1) -> str:
    """Two shares as people write a range: (0.89, 0.944) -> "89.0–94.4 %"; a dash where one is missing."""
    low, high = (number(bound) for bound in bounds)
    return "–" if low is None or high is None else f"{100 * low:.{digits}f}–{percent(high, digits)}"


def figure(value: Any, digits: int = 3) -> str:
    """A number with so many decimals, or a dash where there is none."""
    known = number(value)
    return "–" if known is None else f"{known:,.{digits}f}"


def duration(seconds: Any) -> str:
    """Seconds as "4 min 52 s", "12.3 s" or a dash."""
    value = number(seconds)
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{round(value) // 60} min {round(value) % 60} s"


def markdown(text: Any) -> Markup:
    """Text that stands in Markdown, tables included, for exactly itself."""
    escaped = "".join(f"\\{mark}" if mark in "\\`*_[]|" else mark for mark in " ".join(str(text).split()))
    return Markup(escaped.replace("&", "&amp;").replace("<", "&lt;"))
