"""The results of `fieldmark check` as text, as a page with the images, and as tables to decide in."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fieldmark.audit.check import CheckResult, decision_rows
from fieldmark.audit.report import AuditReport
from fieldmark.core import io
from fieldmark.core.i18n import Language, get_language, gettext_noop
from fieldmark.data.decisions import DECISION_COLUMNS
from fieldmark.data.thumbnails import thumbnail_uri

MAX_ITEMS = 40
"""Number of issues of a kind on the page; decisions.csv lists all."""
MAX_IMAGES_PER_SET = 8
"""Number of images of a set of duplicates on the page."""
RANKING_COLUMNS = ("path", "label", "suggested", "confidence", "error_probability", "flagged")
SECTION_TITLES = {
    "unreadable": gettext_noop("Unreadable images"),
    "conflicts": gettext_noop("Same image in several classes"),
    "leaks": gettext_noop("Same image in several splits"),
    "label_errors": gettext_noop("Likely label errors"),
    "near_leaks": gettext_noop("Near-duplicates in several splits"),
    "duplicates": gettext_noop("Exact duplicates"),
    "near_duplicates": gettext_noop("Near-duplicates"),
    "outliers": gettext_noop("Outliers"),
}
"""Attribute of `AuditReport` -> title of its section, in the order of the page."""
SECTION_NOTES = {
    "unreadable": gettext_noop("These files cannot be opened and are left out. Replace or delete them."),
    "conflicts": gettext_noop("One image has several labels, of which one is right. Exclude the others."),
    "leaks": gettext_noop("Images of the test that are also trained on make the result too good. Exclude one of each."),
    "label_errors": gettext_noop(
        "These labels are probably wrong. Compare each with the image, and relabel those that are; {table} ranks all."
    ),
    "near_leaks": gettext_noop(
        "Images in different splits are nearly the same, which makes the result too good. Exclude one of each."
    ),
    "duplicates": gettext_noop("Copies count several times. Exclude all but one of each set."),
    "near_duplicates": gettext_noop(
        "These images show nearly the same. Nothing to do: those of one class stay in one split."
    ),
    "outliers": gettext_noop("These images differ from the others. Exclude those that a person could not label."),
}
"""What the section means, and what to do."""


def summary_lines(report: AuditReport) -> Iterator[str]:
    """Number of images of each class and of all, for a terminal."""
    for name, n in report.classes.items():
        yield f"{n:8,}  {name}"
    yield f"{report.n_images:8,}  images"
    if report.n_given_groups:
        yield f"{report.n_given_groups:8,}  given groups"
    if not report.warnings:
        yield "No issues found."


def write_check(result: CheckResult, out: Path, lang: str = "en") -> list[Path]:
    """Write check.html, decisions.csv and, if labels were checked, labels.csv into the new folder `out`.

    Args:
        lang: language of the page, as `en` or `zh`.

    Returns:
        The files.
    """
    out.mkdir(parents=True)
    page, decisions, ranking = out / "check.html", out / "decisions.csv", out / "labels.csv"
    labels = {photo.path: photo.label for photo in result.catalog.photos}
    rows = decision_rows(result.report, labels)
    io.write_csv(decisions, rows, list(DECISION_COLUMNS), encoding="utf-8-sig")  # with the mark that Excel needs
    if result.label_ranking:
        ranked = (quality.to_dict() | {"flagged": quality.is_issue} for quality in result.label_ranking)
        io.write_csv(ranking, ranked, list(RANKING_COLUMNS))
    _write_page(page, result, labels, get_language(lang))
    return [page, decisions, ranking] if result.label_ranking else [page, decisions]


def _write_page(file: Path, result: CheckResult, labels: dict[str, str], language: Language) -> None:
    from fieldmark.report import chart_notes, html  # need the extra `train`, the rest does not

    report = result.report

    def tile(path: str, caption: str) -> dict[str, Any]:
        picture = thumbnail_uri(result.catalog.files, path)
        return {"path": path, "label": labels[path], "caption": caption, "picture": picture}

    sections = [
        {
            "title": language(title),
            "count": len(issues),
            "note": language(SECTION_NOTES[kind], table="labels.csv"),
            "sets": [[tile(*image) for image in images] for images in _image_sets(issues[:MAX_ITEMS], kind, language)],
        }
        for kind, title in SECTION_TITLES.items()
        if (issues := getattr(report, kind))
    ]
    context = {"name": result.catalog.source.resolve().name, "sections": sections, "max_items": MAX_ITEMS}
    context |= {"classes": report.classes, "photos": report.n_images, "warnings": report.warnings}
    context["balance"] = chart_notes.describe_balance(report.classes, language)
    html.write_page(file, "check.html.j2", context, language)


def _image_sets(issues: Sequence[Any], kind: str, language: Language) -> Iterator[list[tuple[str, str]]]:
    """Images that stand side by side, as (path, caption): each set of duplicates, or all issues of another kind."""
    captions: dict[str, Callable[[Any], str]] = {
        "unreadable": lambda file: file.reason,
        "outliers": lambda outlier: f"{outlier.kind}: {outlier.detail}",
        "label_errors": lambda error: language("suggested: {suggested}", suggested=error.suggested),
    }
    if kind in captions:
        yield [(issue.path, captions[kind](issue)) for issue in issues]
        return
    for paths in issues:
        more = len(paths) - MAX_IMAGES_PER_SET
        images = [(path, "") for path in paths[:MAX_IMAGES_PER_SET]]
        if more > 0:
            images[-1] = (images[-1][0], language("and {n} more", n=more))
        yield images
