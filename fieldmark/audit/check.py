"""`fieldmark check`: the audit of a dataset together with its likely label errors."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fieldmark.audit.audit import audit_catalog
from fieldmark.audit.report import AuditReport, LabelQuality
from fieldmark.core.progress import Reporter
from fieldmark.core.runtime import torch_settings
from fieldmark.core.text import summarize_names
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.recipes.recipe import Recipe

LABEL_CHECK_PACKAGES = ("torch", "sklearn")
LABEL_CHECK_SKIPPED = "label errors were not checked: install with pip install 'fieldmark[train]'"


@dataclass(frozen=True)
class CheckResult:
    """The result of `check`.

    Attributes:
        report: all issues, likely label errors included.
        label_ranking: the label quality of every image, worst first; empty if labels were not checked.
    """

    catalog: Catalog
    report: AuditReport
    label_ranking: tuple[LabelQuality, ...] = ()


def check(photos: str | Path, reporter: Reporter, recipe: Recipe | None = None, *, quick: bool = False) -> CheckResult:
    """Audit a dataset and rank its labels. Changes no file.

    Args:
        recipe: its `group_by`, `split_file`, `apply` and `crop_boxes` select the images.
        quick: leave out the label check, for which a network embeds every image.
    """
    catalog = load_recipe_catalog(photos, recipe or Recipe())
    if not quick and all(map(find_spec, LABEL_CHECK_PACKAGES)):
        with torch_settings():
            return _check_with_labels(catalog, reporter)
    with reporter.progress_bar("reading", "photos") as advance:
        report = audit_catalog(catalog, progress=advance)
    warnings = () if quick else (LABEL_CHECK_SKIPPED,)
    return CheckResult(catalog, replace(report, audit_warnings=report.audit_warnings + warnings))


def _check_with_labels(catalog: Catalog, reporter: Reporter) -> CheckResult:
    from fieldmark.audit.label_errors import Embedder, label_error_warnings, rank_labels

    embedder, photos = Embedder(), catalog.photos
    with reporter.progress_bar("reading", "photos") as advance:
        report = audit_catalog(
            catalog,
            shorter=embedder.size,
            interpolation=embedder.interpolation,
            on_decoded=embedder.add,
            progress=advance,
        )
    labels, paths = [photo.label for photo in photos], [photo.path for photo in photos]
    ranking = rank_labels(*embedder.features(), labels, paths, report.groups)
    errors = tuple(quality for quality in ranking if quality.is_issue)
    warnings = report.audit_warnings + label_error_warnings(errors)
    return CheckResult(catalog, replace(report, label_errors=errors, audit_warnings=warnings), ranking)


def decision_rows(report: AuditReport, labels: dict[str, str]) -> list[dict[str, Any]]:
    """The issues as rows of decisions.csv with open decisions; `labels` maps paths to classes."""
    rows = [("unreadable", file.path, file.reason, "") for file in report.unreadable]
    for kind in ("conflicts", "leaks", "near_leaks", "duplicates", "near_duplicates"):
        rows += [(kind, path, summarize_names(paths, 4), "") for paths in getattr(report, kind) for path in paths]
    rows += [("odd", outlier.path, f"{outlier.kind}: {outlier.detail}", "") for outlier in report.outliers]
    rows += [
        ("label_errors", error.path, f"{error.confidence:.3f}", error.suggested) for error in report.label_errors or ()
    ]
    return [
        {"path": path, "label": labels[path], "decision": "", "to": to, "finding": kind, "detail": detail}
        for kind, path, detail, to in rows
    ]
