"""Page, table and sentences of a comparison of networks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from fieldmark.core import io
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.evaluation.paired import PairedDifference
from fieldmark.report import html
from fieldmark.report.charts.cost import accuracy_cost_chart
from fieldmark.report.results import Comparison, ComparisonRow

COLUMNS = ["network", "accuracy", "sd", "n", "macro_f1", "ece", "seconds", "megabytes", "images_per_s"]
COLUMNS += ["parameters", "macs"]
DIFFERENCE_COLUMNS = ["difference", "p", "p_holm", "real", "won", "lost"]
"""Columns of compare.csv: fields of `ComparisonRow` and of `PairedDifference`."""


def describe_differences(comparison: Comparison, language: Language = ENGLISH) -> Iterator[str]:
    """A sentence on the difference of each network from the baseline."""
    baseline, *others = comparison.rows
    for row in others:
        if row.difference is None:
            yield language(
                "{network} and {first} have no test set in common: the difference is unknown.",
                network=row.network,
                first=baseline.network,
            )
        else:
            yield _describe_difference(row, row.difference, baseline, language)


def _describe_difference(
    row: ComparisonRow, difference: PairedDifference, baseline: ComparisonRow, language: Language
) -> str:
    low, high = (100 * bound for bound in difference.ci95)
    if not difference.real:
        conclusion = language("not significant")
    elif difference.difference > 0:
        conclusion = language("significantly better")
    else:
        conclusion = language("significantly worse")
    return language(
        "{network} vs. {first}: {points:+.1f} percentage points ({low:+.1f} to {high:+.1f}), {more:+.1%} "
        "parameters, {times:.2f} x training time: {conclusion} (p = {p:.2g}).",
        network=row.network,
        first=baseline.network,
        points=100 * difference.difference,
        low=low,
        high=high,
        more=row.parameters / baseline.parameters - 1,
        times=row.seconds / baseline.seconds,
        conclusion=conclusion,
        p=difference.p_holm,
    )


def describe_choice(comparison: Comparison, language: Language = ENGLISH) -> str:
    """Which network to take."""
    better = [
        row for row in comparison.rows if row.difference and row.difference.real and row.difference.difference > 0
    ]
    if not better:
        text = language("No network is significantly better than the baseline.")
        return language.join_sentences([text, language("Choose by cost, or compare again with more seeds.")])
    best = max(better, key=lambda row: row.accuracy)
    return language("Take {network}, which is significantly better, if you can afford its cost.", network=best.network)


def describe_cost(rows: Sequence[ComparisonRow], cost: str, language: Language = ENGLISH) -> str:
    """The network of the lowest cost among those whose interval reaches the highest accuracy."""
    highest = max(row.accuracy for row in rows)
    as_good = [row for row in rows if row.ci95[1] >= highest]
    cheapest = (max if cost == "images_per_s" else min)(as_good, key=lambda row: getattr(row, cost))
    value = getattr(cheapest, cost)
    amounts = {
        "seconds": language.duration(value),
        "megabytes": f"{value:.1f} MB",
        "images_per_s": language("{n:,.0f} images/s", n=value),
    }
    values = {"share": language.percent(highest), "network": cheapest.network, "amount": amounts[cost]}
    if cost == "images_per_s":
        return language(
            "Of the networks whose interval reaches the highest accuracy ({share}), {network} is the fastest:"
            " {amount}.",
            **values,
        )
    return language(
        "Of the networks whose interval reaches the highest accuracy ({share}), {network} costs least: {amount}.",
        **values,
    )


def write_compare_page(comparison: Comparison, out: Path, language: Language = ENGLISH) -> list[Path]:
    """Write compare.html (in that language), compare.json and compare.csv into the folder `out`; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / name for name in ("compare.html", "compare.json", "compare.csv")]
    io.write_json(files[1], comparison.to_dict() | {"answers": list(describe_differences(comparison))})
    table = [
        {name: getattr(row, name) for name in COLUMNS}
        | {name: getattr(row.difference, name, None) for name in DIFFERENCE_COLUMNS}
        for row in comparison.rows
    ]
    io.write_csv(files[2], table, [*COLUMNS, *DIFFERENCE_COLUMNS])
    costs = {
        "seconds": (language("Accuracy by training time"), language("seconds")),
        "megabytes": (language("Accuracy by model size"), "MB"),
        "images_per_s": (language("Accuracy by throughput"), language("images/s")),
    }
    rows = comparison.rows
    charts = [
        (Markup(accuracy_cost_chart(rows, cost, *texts, language)), describe_cost(rows, cost, language))
        for cost, texts in costs.items()
    ]
    context = {
        "name": out.resolve().name,
        "rows": rows,
        "sentences": list(describe_differences(comparison, language)),
        "choice": describe_choice(comparison, language),
        "charts": charts,
    }
    html.write_page(files[0], "compare.html.j2", context, language)
    return files
