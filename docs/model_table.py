"""Writes docs/guides/networks.md, the table of all networks that the guide to models includes.

    python docs/model_table.py            # names, sizes, accuracy, weights, licences: half a minute
    python docs/model_table.py --speed    # also images/s by `fieldmark bench`, on a quiet machine: 110 passes of each

Speeds are kept in docs/guides/networks_speed.json, so that the table can be written anew without measuring.
"""

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from fieldmark.cli.bench import benchmark_network
from fieldmark.core import io, runtime
from fieldmark.models.profile import NetworkProfile, network_table

PAGE = Path(__file__).parent / "guides" / "networks.md"
SPEEDS = PAGE.with_name("networks_speed.json")
ACCURACY_SOURCES = {
    "torchvision": "torchvision",
    "hub": "timm",
    "timm": "timm",
    "pip": "authors",
    "Cadene": "converter",
}
"""Kind of weights -> who published their accuracy (fieldmark/models/published.py)."""
INTRODUCTION = """\
<!-- Written by `python docs/model_table.py`. -->

These are the networks of `fieldmark zoo`, with 1000 classes. Fieldmark counts their parameters, and the multiply-adds
(MACs) of one image at the input size in pixels. Top-1 is the accuracy on the validation set of ImageNet-1k. It was
published with the weights and is not measured here. Its source is torchvision, timm (`results-imagenet.csv`), the
authors, or the repository that converted the weights. The licence is that of the weights. Where none are published,
train from scratch (`--weights none`) or from a file.
"""


def format_page(profiles: list[NetworkProfile], speeds: dict[str, Any] | None) -> str:
    """The page; `speeds` is the content of networks_speed.json."""
    header = ["network", "parameters", "MACs", "input", "top-1", "source of top-1", "weights", "licence", "paper"]
    rows = [header, ["---", *["---:"] * 4, *["---"] * 4]]
    rows += [_format_row(profile) for profile in profiles]
    text = INTRODUCTION
    if speeds:
        measured = [speeds["images_per_s"].get(profile.name) for profile in profiles]
        column = ["images/s", "---:", *("" if speed is None else f"{speed:.1f}" for speed in measured)]
        rows = [[*row[:4], cell, *row[4:]] for row, cell in zip(rows, column, strict=True)]
        text += f"\nImages per second are those of `fieldmark bench NETWORK`: {speeds['machine']}, {speeds['date']}.\n"
    return text + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _format_row(profile: NetworkProfile) -> list[str]:
    kind = (profile.weights or "").partition(":")[0]
    return [
        f"`{profile.name}`",
        f"{profile.params:,}",
        f"{profile.macs / 1e9:.2f} G",
        str(profile.input_size),
        "" if profile.top1 is None else f"{profile.top1:.1f} %",
        "" if profile.top1 is None else ACCURACY_SOURCES[kind],
        profile.weights or "none published",
        profile.licence or "",
        profile.paper.partition(",")[0],
    ]


def measure_speeds(names: list[str]) -> dict[str, Any]:
    """Images per second of each network, one at a time, with the date and the machine."""
    speeds = {}
    for name in names:
        speeds[name] = round(benchmark_network(name, 1, None, False, lambda text: None).images_per_second, 2)
        print(f"{name}: {speeds[name]} images/s", file=sys.stderr)
    environment = runtime.describe_environment()
    machine = f"{environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}"
    return {"date": f"{date.today():%Y-%m-%d}", "machine": machine, "images_per_s": speeds}


def main(*options: str) -> None:
    profiles = network_table()
    if options == ("--speed",):
        SPEEDS.write_text(io.to_json(measure_speeds([profile.name for profile in profiles])), encoding="utf-8")
    elif options:
        raise SystemExit(__doc__)
    speeds = json.loads(SPEEDS.read_text(encoding="utf-8")) if SPEEDS.exists() else None
    PAGE.write_text(format_page(profiles, speeds), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
