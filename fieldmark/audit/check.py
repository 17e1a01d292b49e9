"""PHOTOS -> what would spoil a result: findings as JSON, lines, a page with the photos and a CSV to decide in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fieldmark.audit.audit import audit_catalog
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import Language, get_language, gettext_noop
from fieldmark.core.progress import Reporter
from fieldmark.core.runtime import torch_settings
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import DECISION_COLUMNS, build_decision_rows, load_recipe_catalog
from fieldmark.data.thumbnails import thumbnail_uri
from fieldmark.recipes.recipe import Recipe

Findings = dict[str, Any]


@dataclass(frozen=True)
class CheckResult:
    """What `check` found: `findings` are what its --json prints, `ranking` is `labels.ranked` of all photos."""

    catalog: Catalog
    findings: Findings
    ranking: list[dict[str, Any]]
    has_issues: bool


MAX_FINDINGS, MAX_IMAGES_PER_SET = 40, 8  # findings of a kind on the page, photos of one; the CSV holds all
LABEL_CHECK_SKIPPED = "wrong labels were not looked for, as that needs: pip install 'fieldmark[train]'"
FINDING_TITLES = {
    "unreadable": gettext_noop("Unreadable photos"),
    "conflicts": gettext_noop("The same photo under several classes"),
    "leaks": gettext_noop("The same photo in several splits"),
    "label_errors": gettext_noop("Labels that look wrong"),
    "near_leaks": gettext_noop("Photos that look the same, in several splits"),
    "duplicates": gettext_noop("Identical files"),
    "near_duplicates": gettext_noop("Photos that look the same"),
    "odd": gettext_noop("Photos that stand out"),
}


def check(photos: str | Path, reporter: Reporter, recipe: Recipe | None = None, *, quick: bool = False) -> CheckResult:
    """Audit photos and change nothing; `quick` leaves out wrong labels, for which a network looks at every photo.

    The recipe says which photos are meant: its `group_by`, `split_file`, `apply` and `crop_boxes`.
    """
    with nullcontext() if quick else _torch_settings_if_installed():
        return _check(load_recipe_catalog(photos, recipe or Recipe()), reporter, quick=quick)


def _torch_settings_if_installed() -> AbstractContextManager[None]:
    return torch_settings() if find_spec("torch") else nullcontext()


def _check(catalog: Catalog, reporter: Reporter, *, quick: bool) -> CheckResult:
    warnings, ranking = list[str](), list[dict[str, Any]]()
    embedder, audit_options = None, dict[str, Any]()
    if not quick:
        try:
            from fieldmark.audit.label_errors import Embedder, label_issue_warnings, rank_labels, select_label_issues

            embedder = Embedder()
            audit_options = {
                "shorter": embedder.size,
                "interpolation": embedder.interpolation,
                "on_decoded": embedder.add,
            }
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fieldmark"):
                raise
            warnings.append(LABEL_CHECK_SKIPPED)
    with reporter.progress_bar("reading", "photos") as advance:
        result = audit_catalog(catalog, **audit_options, progress=advance)
    findings = result.to_dict(catalog)
    if embedder:
        images = catalog.photos
        ranking = rank_labels(*embedder.features(), [p.label for p in images], [p.path for p in images], result.groups)
        findings["label_errors"] = select_label_issues(ranking)
        warnings += label_issue_warnings(findings["label_errors"])
    findings["warnings"] += warnings
    return CheckResult(catalog, findings, ranking, result.has_issues or bool(findings["label_errors"]))


def summary_lines(findings: Findings) -> Iterator[str]:
    """What a person reads of it beside the warnings."""
    for name, n in findings["classes"].items():
        yield f"{n:8,}  {name}"
    yield f"{findings['photos']:8,}  photos"
    if findings["given_groups"]:
        yield f"{findings['given_groups']:8,}  given groups"
    if not findings["warnings"]:
        yield "Nothing to see to."


def write_check(checked: CheckResult, out: Path, lang: str = "en") -> list[Path]:
    """check.html, decisions.csv and, where labels were looked at, labels.csv in the new folder `out`. -> them.

    `lang` is the language of the page.
    """
    out.mkdir(parents=True)
    label = {photo.path: photo.label for photo in checked.catalog.photos}
    files = [out / "check.html", out / "decisions.csv"]
    io.write_csv(
        files[1], build_decision_rows(checked.findings, label), list(DECISION_COLUMNS), encoding="utf-8-sig"
    )  # for Excel
    if checked.ranking:
        files.append(out / "labels.csv")
        io.write_csv(files[2], checked.ranking, list(checked.ranking[0]))
    page = _render_page(checked.catalog, checked.findings, label, get_language(lang))
    files[0].write_text(page, encoding="utf-8", errors="replace")
    return files


def require_new(out: Path | None) -> None:
    """Said before an hour of reading, not after."""
    if out is not None and out.exists():
        raise FieldmarkError(f"{out} exists: give another --out")


def _render_page(catalog: Catalog, findings: Findings, label: dict[str, str], _: Language) -> str:
    from fieldmark.report import html

    sections = [
        {
            "title": _(title),
            "count": len(findings[kind]),
            "sets": list(_image_sets(catalog, kind, findings[kind][:MAX_FINDINGS], label, _)),
        }
        for kind, title in FINDING_TITLES.items()
        if findings[kind]
    ]
    facts = {"name": catalog.source.resolve().name, "sections": sections, "shown": MAX_FINDINGS}
    facts |= {key: findings[key] for key in ("classes", "photos", "warnings")}
    return html.render("check.html.j2", facts, _)


def _image_sets(
    catalog: Catalog, kind: str, items: list[Any], label: dict[str, str], _: Language
) -> Iterator[list[dict[str, Any]]]:
    """Photos side by side: a set of look-alikes each, or all that were found by themselves."""
    captions = {
        "unreadable": lambda finding: finding["reason"],
        "odd": lambda finding: f"{finding['kind']}: {finding['detail']}",
        "label_errors": lambda finding: _("or rather {suggested}?", suggested=finding["suggested"]),
    }
    if kind in captions:
        yield [_thumbnail_entry(finding["path"], label, captions[kind](finding), catalog) for finding in items]
        return
    for paths in items:
        more = _("and {n} more", n=len(paths) - MAX_IMAGES_PER_SET) if len(paths) > MAX_IMAGES_PER_SET else ""
        yield [
            _thumbnail_entry(path, label, more if k == MAX_IMAGES_PER_SET - 1 else "", catalog)
            for k, path in enumerate(paths[:MAX_IMAGES_PER_SET])
        ]


def _thumbnail_entry(path: str, label: dict[str, str], caption: str, catalog: Catalog) -> dict[str, Any]:
    return {"path": path, "label": label[path], "said": caption, "picture": thumbnail_uri(catalog.files, path)}
