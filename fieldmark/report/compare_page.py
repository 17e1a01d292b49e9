"""Rows of a comparison -> sentences, a page, a table: what people read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark.core import io
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report import html
from fieldmark.report.charts.scatter import scatter

Row = dict[str, Any]


def sentences(found: Sequence[Row], _: Language = ENGLISH) -> Iterator[str]:
    """The answer to what was asked, a sentence a network: does it help here?"""
    first = found[0]
    for row in found[1:]:
        told, names = row["difference"], {"network": row["network"], "first": first["network"]}
        if not told:
            yield _("{network} was not tested on the photos of {first}: no difference can be told.", **names)
            continue
        low, high = (100 * bound for bound in told["ci95"])
        better = _("better") if told["difference"] > 0 else _("worse")
        yield _(
            "{network} against {first}: {points:+.1f} points ({low:+.1f} to {high:+.1f}), for {more:+.1%} parameters "
            "and {times:.2f} x the training time: {verdict} (p = {p:.2g}).",
            **names,
            points=100 * told["difference"],
            low=low,
            high=high,
            more=row["parameters"] / first["parameters"] - 1,
            times=row["seconds"] / first["seconds"],
            verdict=better if told["real"] else _("no difference shown"),
            p=told["p_holm"],
        )


def write(found: Sequence[Row], out: Path, _: Language = ENGLISH) -> list[Path]:
    """compare.html (in that language), compare.json, compare.csv in the folder `out`. -> the files."""
    out.mkdir(parents=True, exist_ok=True)
    answers = list(sentences(found))
    io.write(out / "compare.json", {"rows": list(found), "answers": answers})
    plain = ["network", "accuracy", "sd", "n", "macro_f1", "ece", "seconds", "megabytes", "images_per_s"]
    plain += ["parameters", "macs"]
    told = ["difference", "p", "p_holm", "real", "won", "lost"]
    table = [
        {name: row[name] for name in plain} | {name: (row["difference"] or {}).get(name) for name in told}
        for row in found
    ]
    io.table(out / "compare.csv", table, [*plain, *told])
    costs = {"seconds": (_("Accuracy over training time"), _("seconds"))}
    costs |= {"megabytes": (_("Accuracy over size"), "MB"), "images_per_s": (_("Accuracy over speed"), _("photos/s"))}
    drawn = [Markup(scatter(found, cost, *named, _)) for cost, named in costs.items()]
    facts = {"name": out.resolve().name, "rows": found, "answers": list(sentences(found, _)), "charts": drawn}
    (out / "compare.html").write_text(html.render("compare.html.j2", facts, _), encoding="utf-8", errors="replace")
    return [out / name for name in ("compare.html", "compare.json", "compare.csv")]
