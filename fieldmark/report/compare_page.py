"""Rows of a comparison -> sentences, a page, a table: what people read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark.core import io
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report import html
from fieldmark.report.charts.scatter import accuracy_cost_chart

ComparisonRow = dict[str, Any]


def describe_differences(rows: Sequence[ComparisonRow], language: Language = ENGLISH) -> Iterator[str]:
    """The answer to what was asked, a sentence a network: does it help here?"""
    first = rows[0]
    for row in rows[1:]:
        difference, names = row["difference"], {"network": row["network"], "first": first["network"]}
        if not difference:
            yield language("{network} and {first} have no test set in common: the difference is unknown.", **names)
            continue
        low, high = (100 * bound for bound in difference["ci95"])
        better = language("significantly better") if difference["difference"] > 0 else language("significantly worse")
        yield language(
            "{network} vs. {first}: {points:+.1f} percentage points ({low:+.1f} to {high:+.1f}), {more:+.1%} "
            "parameters, {times:.2f} x training time: {conclusion} (p = {p:.2g}).",
            **names,
            points=100 * difference["difference"],
            low=low,
            high=high,
            more=row["parameters"] / first["parameters"] - 1,
            times=row["seconds"] / first["seconds"],
            conclusion=better if difference["real"] else language("not significant"),
            p=difference["p_holm"],
        )


def write_compare_page(rows: Sequence[ComparisonRow], out: Path, language: Language = ENGLISH) -> list[Path]:
    """compare.html (in that language), compare.json, compare.csv in the folder `out`. -> the files."""
    out.mkdir(parents=True, exist_ok=True)
    sentences_en = list(describe_differences(rows))
    io.write_json(out / "compare.json", {"rows": list(rows), "answers": sentences_en})
    columns = ["network", "accuracy", "sd", "n", "macro_f1", "ece", "seconds", "megabytes", "images_per_s"]
    columns += ["parameters", "macs"]
    difference_columns = ["difference", "p", "p_holm", "real", "won", "lost"]
    table = [
        {name: row[name] for name in columns}
        | {name: (row["difference"] or {}).get(name) for name in difference_columns}
        for row in rows
    ]
    io.write_csv(out / "compare.csv", table, [*columns, *difference_columns])
    costs = {"seconds": (language("Accuracy by training time"), language("seconds"))}
    costs |= {
        "megabytes": (language("Accuracy by model size"), "MB"),
        "images_per_s": (language("Accuracy by throughput"), language("images/s")),
    }
    charts = [Markup(accuracy_cost_chart(rows, cost, *named, language)) for cost, named in costs.items()]
    context = {
        "name": out.resolve().name,
        "rows": rows,
        "answers": list(describe_differences(rows, language)),
        "charts": charts,
    }
    (out / "compare.html").write_text(
        html.render("compare.html.j2", context, language), encoding="utf-8", errors="replace"
    )
    return [out / name for name in ("compare.html", "compare.json", "compare.csv")]
