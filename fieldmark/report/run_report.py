"""Report of a run: report.html, card.md and curves.svg.

The page is one file without scripts or requests; every number on it is read from the files of the run, and what is
missing there is left out.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language, finite_float, gettext_noop
from fieldmark.core.io import read_csv
from fieldmark.core.text import summarize_names
from fieldmark.data.readers.files import FileTree
from fieldmark.inference.run_folder import load_catalog, resolve_language
from fieldmark.recipes import recipe as recipes
from fieldmark.report import chart_notes, examples, html
from fieldmark.report import text as wording
from fieldmark.report.charts import trust as trust_charts
from fieldmark.report.charts.training import TITLES, training_curve, training_curves
from fieldmark.report.recommendations.findings import Findings, load_findings
from fieldmark.report.recommendations.recommend import recommend

TemplateContext = dict[str, Any]

SPLITS = ("train", "val", "test")
FINDING_LABELS = {
    "unreadable": gettext_noop("Unreadable images"),
    "duplicates": gettext_noop("Groups of exact duplicates"),
    "near_duplicates": gettext_noop("Groups of near-duplicates"),
    "conflicts": gettext_noop("Same image in several classes"),
    "leaks": gettext_noop("Same image in several splits"),
    "group_leaks": gettext_noop("Groups in several splits"),
    "odd": gettext_noop("Outliers (dark, bright, blank, blurred, small, long)"),
    "label_errors": gettext_noop("Likely label errors"),
}
TIMING_LABELS = {
    "decode": gettext_noop("audit and decoding"),
    "features": gettext_noop("frozen features"),
    "phase1": gettext_noop("linear probe"),
    "phase2": gettext_noop("fine-tuning"),
    "evaluate": gettext_noop("evaluation"),
    "report": gettext_noop("report"),
    "other": gettext_noop("other"),
}
MAX_MISTAKES = 12
"""Misclassified images on the page."""


def write_report(run: Path, files: FileTree | None, language: Language = ENGLISH) -> list[Path]:
    """Write report.html, card.md and (where there is a history) curves.svg into the folder `run`; return their paths.

    `photos` is where the paths in predictions.csv lead; without it, or where a photo is gone,
    the page shows names in place of pictures. All three are in that language. Raises FieldmarkError when
    metrics.json is missing or damaged; every other file may be absent.
    """
    metrics = _read_metrics(run)
    history = [row for row in read_csv(run / "history.csv") if finite_float(row["epoch"]) is not None]
    context = _template_context(run, files, metrics, history, language)
    texts = {
        "report.html": html.render("report.html.j2", context, language),
        "card.md": html.render("card.md.j2", context, language),
    }
    if history:
        texts["curves.svg"] = training_curves(history, metrics.get("best_epoch"), language)
    for name, text in texts.items():
        html.write_text(run / name, text)
    return [run / name for name in texts]


def rewrite_report(
    run: Path, lang: str | None = None, photos: str | Path | None = None
) -> tuple[list[Path], list[str]]:
    """Write the report of a finished run anew, in the language of its recipe or another.

    Args:
        photos: where the images of the run are now, if they were moved.

    Returns:
        The files, and a line if the images are gone and there was no page that would lose its pictures.

    Raises:
        FieldmarkError: there is no such run, or the page that is there has pictures and the images are gone.
    """
    language, warnings = resolve_language(run, lang), list[str]()
    try:
        files = load_catalog(examples.fold_folders(run)[0], photos).files
    except (OSError, FieldmarkError) as error:
        if photos is not None or (run / "report.html").exists():
            raise FieldmarkError(f"the report is left as it is, since it would lose its pictures: {error}") from None
        files, warnings = None, [f"the images cannot be read, so the page goes without them: {error}"]
    return write_report(run, files, language), warnings


def _read_metrics(run: Path) -> TemplateContext:
    """metrics.json; what folds have in common stands in the first one's."""
    try:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        if metrics.get("folds") and (first := examples.fold_folders(run)[0]) != run:
            metrics = {"command": _read_metrics(first).get("command")} | metrics
            # The folds' thresholds differ: pooled scores are counted from them, and their zero says nothing.
            metrics["test"] = metrics["test"] and metrics["test"] | {"threshold": None}
        return metrics
    except (OSError, ValueError) as error:
        raise FieldmarkError(
            f"{run} has no readable metrics.json ({error}); train again or finish with --resume"
        ) from error


def _template_context(
    run: Path, files: FileTree | None, run_metrics: TemplateContext, history: list[dict[str, str]], language: Language
) -> TemplateContext:
    """Everything that the templates show, under the names they use."""
    classes, split_metrics, first = (
        run_metrics.get("classes") or [],
        wording.headline_metrics(run_metrics),
        examples.fold_folders(run)[0],
    )
    counts = Counter((row["label"], row["split"]) for row in read_csv(run / "split.csv"))
    recipe, findings = run / "recipe.yaml", load_findings(run)
    per_class, seconds = wording.per_class_rows(split_metrics), run_metrics.get("seconds") or {}
    return {
        "run": run.resolve().name,
        "photos": files.root.resolve().name if files else "photos",
        "metrics": run_metrics,
        "classes": classes,
        "title": wording.page_title(classes, language),
        "tested": bool(run_metrics.get("test")),
        "split_metrics": split_metrics,
        "absent": summarize_names(wording.absent_classes(split_metrics)),
        "folds": [fold["test"] for fold in run_metrics.get("folds") or [] if fold.get("test")],
        "summary": wording.summarize(run_metrics, language),
        "baseline": wording.majority_baseline(split_metrics),
        "split": [(name, [counts[name, split] for split in SPLITS]) for name in classes] if counts else [],
        "totals": [sum(n for (_name, at), n in counts.items() if at == split) for split in SPLITS],
        "findings": _audit_findings(first / "audit.json", language),
        "quarantine": read_csv(first / "quarantine.csv"),
        "history": history,
        "course": wording.describe_training(history, run_metrics.get("best_epoch"), language),
        "per_class": [row | {"bar": _bar(row)} for row in per_class],
        "points": wording.operating_points(split_metrics, language),
        "limits": wording.describe_limitations(run_metrics, counts, language, rejects=findings.rejects),
        "seconds": {language(text): seconds.get(name) for name, text in TIMING_LABELS.items()},
        "settings": _changed_settings(recipe),
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        **_example_images(run, files, split_metrics, [row["name"] for row in per_class]),
        **_charts(run_metrics, split_metrics, history, language),
        **_conclusions(findings, language),
    }


def _conclusions(findings: Findings, language: Language) -> TemplateContext:
    """What the run shows in plain words, and what to do about it."""
    recommendations = recommend(findings, language)
    return {
        "lead": chart_notes.lead_sentence(findings, language),
        "actions": [one for one in recommendations if one.helps],
        "useless": [one for one in recommendations if not one.helps],
        "notes": chart_notes.describe_all(findings, language),
        "folder": findings.run,
        "rejects": findings.rejects,
    }


def _charts(
    run_metrics: TemplateContext, split_metrics: TemplateContext, history: list[dict[str, str]], language: Language
) -> TemplateContext:
    """The drawings, and what is said beside that of the learning curve."""
    classes, best, matrix = (
        run_metrics.get("classes") or [],
        run_metrics.get("best_epoch"),
        split_metrics.get("confusion"),
    )
    curve, has_trust_data = (
        run_metrics.get("learning_curve"),
        split_metrics.get("reliability") and split_metrics.get("coverage_curve"),
    )
    trust = (
        [
            trust_charts.reliability_diagram(split_metrics, language),
            trust_charts.coverage_chart(split_metrics, language),
        ]
        if has_trust_data
        else []
    )
    return {
        "curves": [Markup(training_curve(history, kind, best, language)) for kind in TITLES if history],
        "confusion": Markup(trust_charts.confusion_matrix(matrix, classes, language)) if matrix else "",
        "roc": Markup(trust_charts.roc_chart(split_metrics, language)) if split_metrics.get("roc") else "",
        "scaled": bool(has_trust_data) and trust_charts.is_temperature_scaled(split_metrics),
        "trust": [Markup(chart) for chart in trust],
        "growth": Markup(trust_charts.data_scaling_chart(curve, language)) if curve else "",
        "more": wording.describe_learning_curve(curve, language) if curve else "",
        "gained": wording.describe_class_gains(curve, language) if curve else "",
    }


def _example_images(
    run: Path, files: FileTree | None, split_metrics: TemplateContext, hardest: list[str]
) -> TemplateContext:
    """Images on the page: most confident errors, confusions, and the class sheet, lowest recall first."""
    predictions, tiles = examples.read_predictions(run), examples.ImageTiles(files)
    wrong = sorted((one for one in predictions if not one.is_correct), key=lambda one: -one.confidence)
    sheet = examples.class_sheet_rows(hardest, predictions, tiles) if files else []
    return {
        "pictured": files is not None,
        "n_predictions": len(predictions),
        "mistaken": len(wrong),
        "flagged": sum(not one.known for one in wrong),
        "mistakes": tiles.with_pictures(wrong[:MAX_MISTAKES]),
        "confusions": examples.confusion_examples(split_metrics.get("confused") or [], predictions, tiles)
        if files
        else [],
        "sheet": sheet,
        "seen": any(one and one["evidence"] for row in sheet for one in row.values() if isinstance(one, dict)),
    }


def _bar(row: TemplateContext) -> Markup | str:
    bounds = row.get("recall_ci95")
    return Markup(trust_charts.interval_bar(row["recall"], *bounds)) if bounds and row["recall"] is not None else ""


def _changed_settings(file: Path) -> list[tuple[str, Any]]:
    """Non-default settings of a run; empty if its recipe is missing or of another version."""
    try:
        chosen = recipes.read_recipe(file).to_dict()
    except FieldmarkError:
        return []
    defaults = recipes.Recipe().to_dict()
    return [(recipes.option_name(name), value) for name, value in chosen.items() if value != defaults[name]]


def _audit_findings(path: Path, language: Language) -> list[TemplateContext]:
    """What `check` found, one entry a kind: how many, in words, and the first few as text."""
    audit = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        {
            "count": len(audit[kind]),
            "text": language(text),
            "examples": [_format_finding(found, language) for found in audit[kind][:3]],
        }
        for kind, text in FINDING_LABELS.items()
        if audit.get(kind) is not None  # what was not looked for is not mentioned
    ]


def _format_finding(finding: dict[str, Any] | list[str] | str, language: Language) -> str:
    if isinstance(finding, str):
        return finding
    if isinstance(finding, list):
        shown = " = ".join(finding[:4])
        return language("{names} and {n} more", names=shown, n=len(finding) - 4) if len(finding) > 4 else shown
    if "kind" in finding:
        return f"{finding['path']}: {finding['kind']}, {finding['detail']}"
    if "suggested" in finding:
        values = {"path": finding["path"], "label": finding.get("label"), "suggested": finding["suggested"]}
        return language("{path}: labelled {label}, predicted {suggested}", **values)
    return f"{finding['path']}: {finding.get('reason')}"
