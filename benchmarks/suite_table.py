"""Rows of benchmarks/suite.py -> the table of docs/benchmarks.md."""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from suite_data import SETS

START, END = "<!-- The table: python benchmarks/suite.py --table -->", "<!-- The table ends. -->"
FIELDMARK = {"probe": "--epochs 0", "1m": "--budget 1m", "3m": "--budget 3m", "10m": "--budget 10m"}
OTHERS = {"plain": "--seconds 600", "fastai": "", "timm": ""}
"""Contenders and their options."""
BINARY_METRICS = {
    "sensitivity": "sensitivity",
    "sensitivity_at_threshold": "sensitivity at the validation set's threshold",
    "specificity_at_threshold": "specificity there",
}
Row = dict[str, Any]


def row_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("set", "set_options", "contender", "options", "seed", "code", "split"))


def binomial_error(share: float, n: int) -> float:
    """By which Fieldmark chooses the best epoch."""
    return math.sqrt(share * (1 - share) / n)


def select_rows(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(rows of the newest code of each contender on the newest split of each seed, the others).

    A later row wins over an earlier one; the file is in the order in which they were written.
    """
    code = {(row["contender"], row["options"]): row["code"] for row in rows}
    settings = {row["set"]: row["set_options"] for row in rows}
    split = {(row["set"], row["seed"]): row["split"] for row in rows}
    newest: dict[tuple[Any, ...], Row] = {}
    others = []
    for row in rows:
        is_newest = (
            row["code"] == code[row["contender"], row["options"]]
            and row["set_options"] == settings[row["set"]]
            and row["split"] == split[row["set"], row["seed"]]
        )
        if is_newest:
            newest[row_key(row)] = row
        else:
            others.append(row)
    return list(newest.values()), others


def mean_sd(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    values = [scale * value for value in values]
    sd = statistics.stdev(values) if len(values) > 1 else None
    return f"{statistics.fmean(values):.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


Lines = dict[str, dict[str, list[Row]]]
"""Contender -> data set -> a row a seed."""


def group_rows(rows: Iterable[Row]) -> Lines:
    lines: Lines = {}
    for row in rows:
        name = f"{row['contender']} `{row['options']}`" if row["options"] else row["contender"]
        lines.setdefault(name, {}).setdefault(row["set"], []).append(row)
    known = [f"fieldmark `{options}`" for options in FIELDMARK.values()]
    return dict(sorted(lines.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known)))


def write_table(lines: Lines, sets: list[str], part: str, metric: str, title: str) -> Iterator[str]:
    """One metric in per cent: mean ± sd over seeds (n), then the mean over the data sets."""
    yield f"| {title} | {' | '.join(sets)} | mean over sets |"
    yield "|---" * (len(sets) + 2) + "|"
    for name, by_set in lines.items():
        values = {one: [row[part][metric] for row in by_set.get(one, []) if metric in row[part]] for one in sets}
        if not any(values.values()):
            continue
        cells = [f"{mean_sd(values[one], 1, 100)} ({len(values[one])})" if values[one] else "-" for one in sets]
        means = [statistics.fmean(values[one]) for one in sets if values[one]]
        partly = "" if len(means) == len(sets) else f" ({len(means)} of {len(sets)} sets)"
        yield f"| {name} | {' | '.join(cells)} | {100 * statistics.fmean(means):.1f}{partly} |"


def write_costs(lines: Lines, sets: list[str]) -> Iterator[str]:
    yield f"| seconds | {' | '.join(sets)} | peak memory, GiB |"
    yield "|---" * (len(sets) + 2) + "|"
    for name, by_set in lines.items():
        cells = [mean_sd([row["seconds"] for row in by_set[one]], 0) if one in by_set else "-" for one in sets]
        memory = max(row["GiB"] for rows in by_set.values() for row in rows)
        yield f"| {name} | {' | '.join(cells)} | {memory:.1f} |"


def find_failures(rows: Iterable[Row]) -> Iterator[str]:
    """Runs that end with a training loss at chance, or whose validation accuracy fell below the linear probe's."""
    for row in rows:
        name = f"{row['set']}, seed {row['seed']}, {row['contender']} {row['options']}".strip()
        tuned = [epoch for epoch in row.get("epochs", []) if epoch["phase"] in (2, 3)]  # 1 and 4 fit the head
        if tuned and tuned[-1]["train_loss"] > 0.95 * row["chance_loss"]:
            last, chance = tuned[-1]["train_loss"], row["chance_loss"]
            yield f"{name}: a training loss of {last:.2f} at the end, where class shares have {chance:.2f}"
        probe, validation = row.get("probe_validation_accuracy"), row["validation"]
        if probe is not None and validation["accuracy"] < probe - binomial_error(probe, validation["n"]):
            yield (
                f"{name}: {100 * validation['accuracy']:.1f} % of the validation images, "
                f"where the linear probe had {100 * probe:.1f} %"
            )


def write_ratios(rows: Iterable[Row]) -> Iterator[str]:
    """The time of each checkout over our own on the same data sets and seeds, as the median of the pairs."""
    by_name = defaultdict[tuple[str, str], dict[tuple[str, int], float]](dict)
    for row in rows:
        by_name[row["contender"], row["options"]][row["set"], row["seed"]] = row["seconds"]
    for (name, options), seconds in by_name.items():
        own = by_name.get(("fieldmark", options), {})
        pairs = [seconds[key] / own[key] for key in seconds.keys() & own.keys()]
        if name not in ("fieldmark", *OTHERS) and pairs:
            yield (
                f"`{options}`: {name} takes {statistics.median(pairs):.2f} x the time of fieldmark "
                f"(median of {len(pairs)} pairs, {min(pairs):.2f} to {max(pairs):.2f})"
            )


def make_page_block(all_rows: list[Row]) -> str:
    """What stands between the markers of the page."""
    rows, others = select_rows(all_rows)
    if not rows:
        return "Not run yet.\n"
    names = dict.fromkeys([*SETS, *(row["set"] for row in rows)])
    sets = [name for name in names if any(row["set"] == name for row in rows)]
    lines = group_rows(rows)
    blocks = [
        write_table(lines, sets, "test", "accuracy", "test accuracy, %"),
        write_table(lines, sets, "test", "balanced_accuracy", "balanced accuracy, %"),
        write_table(lines, sets, "validation", "accuracy", "validation accuracy, %"),
    ]
    for metric, title in BINARY_METRICS.items():
        of_two = [one for one in sets if any(metric in row["test"] for row in rows if row["set"] == one)]
        if of_two:
            blocks.append(write_table(lines, of_two, "test", metric, f"{title}, %"))
    blocks.append(write_costs(lines, sets))
    text = ["\n".join(block) for block in blocks]
    commits, dates, machines = ({row[name] for row in rows} for name in ("commit", "date", "machine"))
    days = " to ".join(dict.fromkeys((min(dates), max(dates))))
    text.append(f"Commits {', '.join(sorted(commits))}; {days}; {' and '.join(sorted(machines))}.")
    if others:
        text.append(f"{len(others)} rows of earlier code, other settings or another split are left out.")
    failures, n_compared = list(find_failures(rows)), sum("epochs" in row for row in rows)
    text.append(
        f"{n_compared} runs of Fieldmark were compared with chance and with their linear probe: "
        + (
            f"{len(failures)} fell short.\n\n" + "\n".join(f"- {line}" for line in failures)
            if failures
            else "none fell short."
        )
    )
    if ratios := list(write_ratios(rows)):
        text.append("\n".join(f"- {line}" for line in ratios))
    return "\n\n".join(text) + "\n"


def write_page(page: Path, rows: list[Row]) -> None:
    """Put the table between the page's markers; the rest of the page is left as it is."""
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(START)
    _, found_end, after = rest.partition(END)
    if not found or not found_end:
        sys.exit(f"{page} lacks the lines {START} and {END}, between which the table goes")
    page.write_text(f"{before}{START}\n\n{make_page_block(rows)}\n{END}{after}", encoding="utf-8")
