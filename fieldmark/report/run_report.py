"""RUN folder -> report.html, card.md and curves.svg: what a training found out, told to a person.

The page is one file without scripts or requests; every number on it is read from the files of RUN or counted from
them, and what is missing there is left out here.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language, later, number
from fieldmark.core.io import rows
from fieldmark.data.readers.files import Files
from fieldmark.inference.run_folder import catalog_of, language_of
from fieldmark.recipes import recipe as recipes
from fieldmark.report import examples, html
from fieldmark.report import text as wording
from fieldmark.report.charts import svg
from fieldmark.report.charts import trust as trust_charts

Facts = dict[str, Any]

SPLITS = ("train", "val", "test")
FINDINGS = {
    "unreadable": later("Unreadable photos"),
    "duplicates": later("Groups of identical files"),
    "near_duplicates": later("Groups of near-identical photos"),
    "conflicts": later("Same photo under several classes"),
    "leaks": later("Same photo in several splits"),
    "group_leaks": later("Groups in several splits"),
    "odd": later("Photos that stand out (dark, bright, blank, blurred, small, long)"),
    "label_errors": later("Labels worth a second look"),
}
SECONDS = {
    "decode": later("reading the photos"),
    "features": later("features of the frozen backbone"),
    "phase1": later("training, backbone frozen"),
    "phase2": later("training, backbone unfrozen"),
    "evaluate": later("evaluation"),
    "report": later("this report"),
    "other": later("everything else"),
}
MISTAKES = 12
"""Mistakes whose photos are shown."""


def write_report(run: Path, photos: Files | None, _: Language = ENGLISH) -> list[Path]:
    """Write report.html, card.md and (where there is a history) curves.svg into the folder `run`; return their paths.

    `photos` is where the paths in predictions.csv lead; without it, or where a photo is gone,
    the page shows names in place of pictures. All three are in that language. Raises FieldmarkError when
    metrics.json is missing or damaged; every other file may be absent.
    """
    metrics = _metrics(run)
    history = [row for row in rows(run / "history.csv") if number(row["epoch"]) is not None]
    facts = _facts(run, photos, metrics, history, _)
    texts = {"report.html": html.render("report.html.j2", facts, _), "card.md": html.render("card.md.j2", facts, _)}
    if history:
        texts["curves.svg"] = svg.curves(history, metrics.get("best_epoch"), _)
    for name, text in texts.items():
        # A file name that is no valid Unicode must not cost the report.
        (run / name).write_text(text, encoding="utf-8", errors="replace")
    return [run / name for name in texts]


def rewrite(run: Path, lang: str | None = None) -> tuple[list[Path], list[str]]:
    """Write the report of a finished run anew, in the language of its recipe or another.

    -> the files, and a line on the photos where they are gone, and the page goes without them. Raises FieldmarkError.
    """
    try:
        photos, gone = catalog_of(examples.runs(run)[0]).files, list[str]()
    except (OSError, FieldmarkError) as error:
        photos, gone = None, [f"the photos cannot be had, so the page goes without them: {error}"]
    return write_report(run, photos, language_of(run, lang)), gone


def _metrics(run: Path) -> Facts:
    """metrics.json; what folds have in common stands in the first one's."""
    try:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        if metrics.get("folds") and (first := examples.runs(run)[0]) != run:
            metrics = {"command": _metrics(first).get("command")} | metrics
            # The folds' thresholds differ: pooled scores are counted from them, and their zero says nothing.
            metrics["test"] = metrics["test"] and metrics["test"] | {"threshold": None}
        return metrics
    except (OSError, ValueError) as error:
        raise FieldmarkError(
            f"{run} has no readable metrics.json ({error}); train again or finish with --resume"
        ) from error


def _facts(run: Path, photos: Files | None, metrics: Facts, history: list[dict[str, str]], _: Language) -> Facts:
    """Everything that the templates show, under the names they use."""
    classes, figures, first = metrics.get("classes") or [], wording.judged(metrics), examples.runs(run)[0]
    counts = Counter((row["label"], row["split"]) for row in rows(run / "split.csv"))
    recipe = run / "recipe.yaml"
    per_class, seconds = wording.per_class(figures), metrics.get("seconds") or {}
    return {
        "run": run.resolve().name,
        "photos": photos.root.resolve().name if photos else "photos",
        "metrics": metrics,
        "classes": classes,
        "title": wording.title(classes, _),
        "tested": bool(metrics.get("test")),
        "figures": figures,
        "folds": [fold["test"] for fold in metrics.get("folds") or [] if fold.get("test")],
        "summary": wording.summary(metrics, _),
        "baseline": wording.baseline(figures),
        "split": [(name, [counts[name, split] for split in SPLITS]) for name in classes] if counts else [],
        "totals": [sum(n for (_name, at), n in counts.items() if at == split) for split in SPLITS],
        "findings": _findings(first / "audit.json", _),
        "quarantine": rows(first / "quarantine.csv"),
        "history": history,
        "course": wording.course(history, metrics.get("best_epoch"), _),
        "per_class": [row | {"bar": _bar(row)} for row in per_class],
        "points": wording.operating_points(figures, _),
        "limits": wording.limits(metrics, counts, _),
        "seconds": {_(text): seconds.get(name) for name, text in SECONDS.items()},
        "settings": _settings(recipe),
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        **_pictures(run, photos, figures, [row["name"] for row in per_class]),
        **_charts(metrics, figures, history, _),
    }


def _charts(metrics: Facts, figures: Facts, history: list[dict[str, str]], _: Language) -> Facts:
    """The drawings, and what is said beside that of the learning curve."""
    classes, best, matrix = metrics.get("classes") or [], metrics.get("best_epoch"), figures.get("confusion")
    curve, known = metrics.get("learning_curve"), figures.get("reliability") and figures.get("coverage_curve")
    trust = [trust_charts.reliability(figures, _), trust_charts.coverage(figures, _)] if known else []
    return {
        "curves": [Markup(svg.curve(history, kind, best, _)) for kind in svg.TITLES if history],
        "confusion": Markup(trust_charts.confusion(matrix, classes, _)) if matrix else "",
        "roc": Markup(trust_charts.roc(figures, _)) if figures.get("roc") else "",
        "trust": [Markup(chart) for chart in trust],
        "growth": Markup(trust_charts.growth(curve, _)) if curve else "",
        "more": wording.more_photos(curve, _) if curve else "",
        "gained": wording.gains(curve, _) if curve else "",
    }


def _pictures(run: Path, photos: Files | None, figures: Facts, hardest: list[str]) -> Facts:
    """The photos that are shown: the surest mistakes, confusions, and the sheet, whose hardest classes come first."""
    answers, looks = examples.predictions(run), examples.Looks(photos)
    wrong = sorted((one for one in answers if not one["correct"]), key=lambda one: -one["confidence"])
    sheet = examples.sheet(hardest, answers, looks) if photos else []
    return {
        "pictured": photos is not None,
        "answers": len(answers),
        "mistaken": len(wrong),
        "flagged": sum(not one["known"] for one in wrong),
        "mistakes": looks.plain(wrong[:MISTAKES]),
        "confusions": examples.confusions(figures.get("confused") or [], answers, looks) if photos else [],
        "sheet": sheet,
        "seen": any(one and one["evidence"] for row in sheet for one in row.values() if isinstance(one, dict)),
    }


def _bar(row: Facts) -> Markup | str:
    bounds = row.get("recall_ci95")
    return Markup(trust_charts.bar(row["recall"], *bounds)) if bounds and row["recall"] is not None else ""


def _settings(file: Path) -> list[tuple[str, Any]]:
    """What a run was told beyond the defaults; nothing where its recipe is gone, or of another version."""
    try:
        chosen = dataclasses.asdict(recipes.read(file))
    except FieldmarkError:
        return []
    usual = dataclasses.asdict(recipes.Recipe())
    return [(recipes.option(name), value) for name, value in chosen.items() if value != usual[name]]


def _findings(path: Path, _: Language) -> list[Facts]:
    """What `check` found, one entry a kind: how many, in words, and the first few as text."""
    audit = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        {"count": len(audit[kind]), "text": _(text), "examples": [_example(found, _) for found in audit[kind][:3]]}
        for kind, text in FINDINGS.items()
        if audit.get(kind) is not None  # what was not looked for is not mentioned
    ]


def _example(found: dict[str, Any] | list[str] | str, _: Language) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        shown = " = ".join(found[:4])
        return _("{names} and {n} more", names=shown, n=len(found) - 4) if len(found) > 4 else shown
    if "kind" in found:
        return f"{found['path']}: {found['kind']}, {found['detail']}"
    if "suggested" in found:
        told = {"path": found["path"], "label": found.get("label"), "suggested": found["suggested"]}
        return _("{path}: {label}, or rather {suggested}?", **told)
    return f"{found['path']}: {found.get('reason')}"
