"""RUN folder -> report.html, card.md and curves.svg: what a training found out, told to a person.

The page is one file without scripts or requests; every number on it is read from the files of RUN or counted from
them, and what is missing there is left out here.
"""

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark import charts, pages, wording
from fieldmark import recipe as recipes
from fieldmark.charts import number
from fieldmark.errors import FieldmarkError
from fieldmark.photos.files import Files
from fieldmark.photos.tile import tile

SPLITS = ("train", "val", "test")
FINDINGS = {
    "unreadable": "Unreadable photos",
    "duplicates": "Groups of identical files",
    "near_duplicates": "Groups of near-identical photos",
    "conflicts": "Same photo under several classes",
    "leaks": "Same photo in several splits",
    "group_leaks": "Groups in several splits",
    "odd": "Photos that stand out (dark, bright, blank, blurred, small, long)",
    "label_errors": "Labels worth a second look",
}
SECONDS = {
    "decode": "reading the photos",
    "features": "features of the frozen backbone",
    "phase1": "training, backbone frozen",
    "phase2": "training, backbone unfrozen",
    "evaluate": "evaluation",
    "report": "this report",
    "other": "everything else",
}


def write_report(run: Path, photos: Files | None) -> list[Path]:
    """Write report.html, card.md and (where there is a history) curves.svg into the folder `run`; return their paths.

    `photos` is where the paths in predictions.csv lead; without it, or where a photo is gone,
    the page shows names in place of pictures. Raises FieldmarkError when metrics.json is missing or damaged; every
    other file may be absent.
    """
    try:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FieldmarkError(
            f"{run} has no readable metrics.json ({error}); train again or finish with --resume"
        ) from error
    history = [row for row in _rows(run / "history.csv") if number(row["epoch"]) is not None]
    facts = _facts(run, photos, metrics, history)
    texts = {"report.html": pages.render("report.html.j2", facts), "card.md": pages.render("card.md.j2", facts)}
    if history:
        texts["curves.svg"] = charts.curves(history, metrics.get("best_epoch"))
    for name, text in texts.items():
        # A file name that is no valid Unicode must not cost the report.
        (run / name).write_text(text, encoding="utf-8", errors="replace")
    return [run / name for name in texts]


def _facts(run: Path, photos: Files | None, metrics: dict[str, Any], history: list[dict[str, str]]) -> dict[str, Any]:
    """Everything that the templates show, under the names they use."""
    classes = metrics.get("classes") or []
    figures = metrics.get("test") or metrics.get("validation") or {}
    matrix = figures.get("confusion") or []
    predictions = _predictions(run / "predictions.csv")
    mistakes = sorted((p for p in predictions if not p["correct"]), key=lambda p: -p["confidence"])
    barely = sorted((p for p in predictions if p["correct"]), key=lambda p: p["confidence"])
    counts = Counter((row["label"], row["split"]) for row in _rows(run / "split.csv"))
    recipe = run / "recipe.yaml"
    return {
        "run": run.resolve().name,
        "photos": photos.root.resolve().name if photos else "photos",
        "metrics": metrics,
        "classes": classes,
        "tested": bool(metrics.get("test")),
        "figures": figures,
        "summary": wording.summary(metrics),
        "baseline": wording.baseline(figures),
        "split": [(name, [counts[name, split] for split in SPLITS]) for name in classes] if counts else [],
        "totals": [sum(n for (_, at), n in counts.items() if at == split) for split in SPLITS],
        "findings": _findings(run / "audit.json"),
        "quarantine": _rows(run / "quarantine.csv"),
        "history": history,
        "curves": [Markup(charts.curve(history, kind, metrics.get("best_epoch"))) for kind in charts.TITLES if history],
        "per_class": wording.per_class(figures),
        "confusion": Markup(charts.confusion(matrix, classes)) if matrix else "",
        "pairs": charts.confused_pairs(matrix, classes) if matrix else [],
        "mistakes": [_tile(photos, prediction) for prediction in mistakes[:12]],
        "mistaken": len(mistakes),
        "flagged": sum(not mistake["known"] for mistake in mistakes),
        "barely": [_tile(photos, prediction) for prediction in barely[:4]],
        "bands": wording.bands(predictions),
        "limits": wording.limits(metrics, figures, counts),
        "seconds": {text: (metrics.get("seconds") or {}).get(name) for name, text in SECONDS.items()},
        "settings": _settings(recipe),
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
    }


def _settings(file: Path) -> list[tuple[str, Any]]:
    """What a run was told beyond the defaults; nothing where its recipe is gone, or of another version."""
    try:
        chosen = dataclasses.asdict(recipes.read(file))
    except FieldmarkError:
        return []
    usual = dataclasses.asdict(recipes.Recipe())
    return [(recipes.option(name), value) for name, value in chosen.items() if value != usual[name]]


def _findings(path: Path) -> list[dict[str, Any]]:
    """What `check` found, one entry a kind: how many, in words, and the first few as text."""
    audit = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        {"count": len(audit[kind]), "text": text, "examples": [_example(found) for found in audit[kind][:3]]}
        for kind, text in FINDINGS.items()
        if audit.get(kind) is not None  # what was not looked for is not mentioned
    ]


def _example(found: dict[str, Any] | list[str] | str) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return " = ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    if "kind" in found:
        return f"{found['path']}: {found['kind']}, {found['detail']}"
    if "suggested" in found:
        return f"{found['path']}: {found.get('label')}, or rather {found['suggested']}?"
    return f"{found['path']}: {found.get('reason')}"


def _predictions(path: Path) -> list[dict[str, Any]]:
    """The answers in predictions.csv, with a number for `confidence` and truth values for `correct` and `known`."""
    return [
        {
            **row,
            "confidence": confidence,
            "correct": row["label"] == row["predicted"],
            "known": str(row.get("known")).lower() in ("true", "1"),
        }
        for row in _rows(path)
        if (confidence := number(row["confidence"])) is not None
    ]


def _tile(photos: Files | None, prediction: dict[str, Any]) -> dict[str, Any]:
    """A prediction with its photo, or with None where the photo cannot be had."""
    return {**prediction, "picture": tile(photos, prediction["path"])}


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
