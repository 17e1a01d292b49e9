"""The result of `fieldmark.check`: the issues of a dataset as a list, a table, a page and in a notebook."""

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fieldmark.audit.check import CheckResult, decision_rows
from fieldmark.audit.report import AuditReport
from fieldmark.core import io

if TYPE_CHECKING:
    import pandas

MAX_NOTEBOOK_ROWS = 20


@dataclass(frozen=True)
class Issue:
    """Something about one image that a person should look at.

    Attributes:
        kind: unreadable, conflicts, leaks, near_leaks, duplicates, near_duplicates, odd or label_errors.
        path: the image, below the root of the dataset.
        label: the class that it is in.
        detail: what was found, as text.
        suggested: the class that it probably belongs to, for label errors; else empty.
    """

    kind: str
    path: str
    label: str
    detail: str
    suggested: str = ""


class CheckReport:
    """Issues of a dataset.

    Attributes:
        result: what the audit found, with the rank of every label.
        lang: language of the page.
    """

    def __init__(self, result: CheckResult, lang: str = "en", source: object | None = None) -> None:
        self.result, self.lang = result, lang
        self._source = source  # a temporary folder, which is deleted with the last report on it

    @property
    def audit(self) -> AuditReport:
        """The same by kind, with the numbers of images."""
        return self.result.report

    @property
    def classes(self) -> dict[str, int]:
        """Number of images of each class."""
        return self.audit.classes

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of issue."""
        return self.audit.warnings

    @property
    def has_issues(self) -> bool:
        """Whether there are issues to resolve; near-duplicates and outliers are none by themselves."""
        return self.audit.has_issues

    @property
    def issues(self) -> list[Issue]:
        """All issues, an image of a set of duplicates being one; label errors with the most certain first."""
        labels = {photo.path: photo.label for photo in self.result.catalog.photos}
        return [
            Issue(row["finding"], row["path"], row["label"], row["detail"], row["to"])
            for row in decision_rows(self.audit, labels)
        ]

    def to_frame(self) -> "pandas.DataFrame":
        """The issues as a table with the fields of `Issue` as columns. Needs pandas."""
        import pandas

        return pandas.DataFrame([vars(issue) for issue in self.issues], columns=list(Issue.__dataclass_fields__))

    def save(self, out: str | os.PathLike[str]) -> list[Path]:
        """Write check.html, decisions.csv and, if labels were checked, labels.csv into the new folder `out`."""
        from fieldmark.report.check_page import write_check

        folder = Path(out)
        io.require_new(folder, "out=")
        return write_check(self.result, folder, self.lang)

    def __repr__(self) -> str:
        return (
            f"CheckReport({self.audit.n_images:,} images of {len(self.classes)} classes, {len(self.issues):,} issues)"
        )

    def _repr_html_(self) -> str:
        issues = self.issues
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(str(value))}</td>" for value in vars(issue).values())
            for issue in issues[:MAX_NOTEBOOK_ROWS]
        )
        counts = ", ".join(f"{escape(name)} {n:,}" for name, n in self.classes.items())
        warnings = "".join(f"<li>{escape(line)}</li>" for line in self.warnings)
        more = len(issues) - MAX_NOTEBOOK_ROWS
        header = "".join(f"<th>{name}</th>" for name in Issue.__dataclass_fields__)
        table = f"<table><tr>{header}</tr>{rows}</table>" if issues else "<p>No issues found.</p>"
        note = f"<p>and {more:,} more: to_frame() has all, save(dir) the images</p>" if more > 0 else ""
        return f"<p><b>{self.audit.n_images:,} images</b>: {counts}</p><ul>{warnings}</ul>{table}{note}"
