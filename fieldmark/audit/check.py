"""PHOTOS -> what would spoil a result: findings as JSON, lines, a page with the photos and a CSV to decide in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark.audit.audit import audit
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import Language, language, later
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import COLUMNS, blank, chosen
from fieldmark.data.thumbnails import tile
from fieldmark.recipes.recipe import Recipe

Findings = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """What `check` found: `findings` are what its --json prints, `ranking` is `labels.ranked` of all photos."""

    catalog: Catalog
    findings: Findings
    ranking: list[dict[str, Any]]
    problems: bool


SHOWN, SIDE_BY_SIDE = 40, 8  # findings of a kind on the page, photos of one; the CSV holds all
WITHOUT_TORCH = "wrong labels were not looked for, as that needs: pip install 'fieldmark[train]'"
KINDS = {
    "unreadable": later("Unreadable photos"),
    "conflicts": later("The same photo under several classes"),
    "leaks": later("The same photo in several splits"),
    "label_errors": later("Labels that look wrong"),
    "near_leaks": later("Photos that look the same, in several splits"),
    "duplicates": later("Identical files"),
    "near_duplicates": later("Photos that look the same"),
    "odd": later("Photos that stand out"),
}


def check(photos: str | Path, reporter: Reporter, recipe: Recipe | None = None, *, quick: bool = False) -> Checked:
    """Audit photos and change nothing; `quick` leaves out wrong labels, for which a network looks at every photo.

    The recipe says which photos are meant: its `group_by`, `split_file`, `apply` and `crop_boxes`.
    """
    catalog, warnings, ranking = chosen(photos, recipe or Recipe()), list[str](), list[dict[str, Any]]()
    embedder, look = None, dict[str, Any]()
    if not quick:
        try:
            from fieldmark.audit.label_errors import Embedder, flagged, ranked, warnings_of

            embedder = Embedder()
            look = {"shorter": embedder.size, "interpolation": embedder.interpolation, "keep": embedder.add}
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fieldmark"):
                raise
            warnings.append(WITHOUT_TORCH)
    with reporter.bar("reading", "photos") as advance:
        found = audit(catalog, **look, progress=advance)
    findings = found.to_json(catalog)
    if embedder:
        table = catalog.photos
        ranking = ranked(*embedder.features(), [p.label for p in table], [p.path for p in table], found.groups)
        findings["label_errors"] = flagged(ranking)
        warnings += warnings_of(findings["label_errors"])
    findings["warnings"] += warnings
    return Checked(catalog, findings, ranking, found.problems or bool(findings["label_errors"]))


def lines(findings: Findings) -> Iterator[str]:
    """What a person reads of it beside the warnings."""
    for name, n in findings["classes"].items():
        yield f"{n:8,}  {name}"
    yield f"{findings['photos']:8,}  photos"
    if findings["given_groups"]:
        yield f"{findings['given_groups']:8,}  given groups"
    if not findings["warnings"]:
        yield "Nothing to see to."


def write(checked: Checked, out: Path, lang: str = "en") -> list[Path]:
    """check.html, decisions.csv and, where labels were looked at, labels.csv in the new folder `out`. -> them.

    `lang` is the language of the page.
    """
    out.mkdir(parents=True)
    label = {photo.path: photo.label for photo in checked.catalog.photos}
    files = [out / "check.html", out / "decisions.csv"]
    io.table(files[1], blank(checked.findings, label), list(COLUMNS), encoding="utf-8-sig")  # for Excel
    if checked.ranking:
        files.append(out / "labels.csv")
        io.table(files[2], checked.ranking, list(checked.ranking[0]))
    page = _page(checked.catalog, checked.findings, label, language(lang))
    files[0].write_text(page, encoding="utf-8", errors="replace")
    return files


def require_new(out: Path | None) -> None:
    """Said before an hour of reading, not after."""
    if out is not None and out.exists():
        raise FieldmarkError(f"{out} exists: give another --out")


def _page(catalog: Catalog, findings: Findings, label: dict[str, str], _: Language) -> str:
    from fieldmark.report import html

    sections = [
        {
            "title": _(title),
            "count": len(findings[kind]),
            "sets": list(_sets(catalog, kind, findings[kind][:SHOWN], label, _)),
        }
        for kind, title in KINDS.items()
        if findings[kind]
    ]
    facts = {"name": catalog.source.resolve().name, "sections": sections, "shown": SHOWN}
    facts |= {key: findings[key] for key in ("classes", "photos", "warnings")}
    return html.render("check.html.j2", facts, _)


def _sets(
    catalog: Catalog, kind: str, found: list[Any], label: dict[str, str], _: Language
) -> Iterator[list[dict[str, Any]]]:
    """Photos side by side: a set of look-alikes each, or all that were found by themselves."""
    told = {
        "unreadable": lambda finding: finding["reason"],
        "odd": lambda finding: f"{finding['kind']}: {finding['detail']}",
        "label_errors": lambda finding: _("or rather {suggested}?", suggested=finding["suggested"]),
    }
    if kind in told:
        yield [_tile(finding["path"], label, told[kind](finding), catalog) for finding in found]
        return
    for paths in found:
        more = _("and {n} more", n=len(paths) - SIDE_BY_SIDE) if len(paths) > SIDE_BY_SIDE else ""
        yield [
            _tile(path, label, more if k == SIDE_BY_SIDE - 1 else "", catalog)
            for k, path in enumerate(paths[:SIDE_BY_SIDE])
        ]


def _tile(path: str, label: dict[str, str], said: str, catalog: Catalog) -> dict[str, Any]:
    return {"path": path, "label": label[path], "said": said, "picture": tile(catalog.files, path)}
