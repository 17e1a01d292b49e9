"""The zoo -> what people read: the table of networks, the layers of one, what its attention adds, photos a second."""

import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Console

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter

Row = dict[str, Any]


def networks(like: str, timed: bool) -> tuple[list[Row], str]:
    """A row per network of the zoo whose name holds `like`, and their table; `timed` adds `images_per_s`, measured."""
    from fieldmark.models import VARIANTS, profile

    names = [name for name in VARIANTS if like in name]
    if not names:
        raise FieldmarkError(f"no network's name holds {like!r}: `fieldmark zoo` lists them all")
    rows = profile.rows(names)
    if timed:
        with Reporter().bar("timing", "networks") as advance:
            for done, row in enumerate(rows):
                advance(done, len(rows))
                row["images_per_s"] = images_per_s(row["name"])
    return rows, _networks_text(rows)


def network(words: str, *, image_size: int | None = None, **settings: Any) -> tuple[list[Row], str]:
    """A row per layer of a network (`fieldmark.models.profile.layers`), and their table; `settings` go to `build`."""
    import torch

    from fieldmark.models import build, profile, spec

    with torch.device("meta"):
        built = build(words, **settings)
    size = image_size or built.preprocessing.size
    rows = profile.layers(built, size)
    photo = f"photos of {built.spec['channels']} x {size} x {size}"
    return rows, _network_text(rows, f"{spec.spell_network(built.spec)}: {photo}, {built.spec['classes']} classes")


def images_per_s(name: str, seconds: float = 2.0) -> float:
    """Photos a second of the network's own size, one at a time: by the median of so many seconds, of 3 at least."""
    runtime.prepare()
    import torch

    from fieldmark.models import build

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = build(name).eval().to(device).to(memory_format=torch.channels_last)
    size = net.preprocessing.size
    photo = torch.randn(1, 3, size, size, device=device).to(memory_format=torch.channels_last)
    times: list[float] = []
    with torch.inference_mode():
        net(photo).cpu()
        while sum(times) < seconds or len(times) < 3:
            began = time.perf_counter()
            net(photo).cpu()  # waits for the device
            times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)


# ---- text


def _networks_text(rows: Sequence[Row]) -> str:
    """The networks under their papers; with speeds in place of the weights' sources, for the sake of 80 columns."""
    timed = "images_per_s" in rows[0]
    names = ["network", "params", "MACs", "input", "top-1", "images/s" if timed else "weights"]
    cells = [
        [
            f"  {row['name']}",
            f"{row['params'] / 1e6:.1f} M",
            f"{row['macs'] / 1e9:.2f} G",
            str(row["input_size"]),
            f"{row['top1']:.1f} %" if row["top1"] else "-",
            f"{row['images_per_s']:8.1f}" if timed else (row["weights"] or "-").partition(":")[0],
        ]
        for row in rows
    ]
    header, *lines = _aligned([names, *cells], left=(0, 5))
    by_paper: dict[str, list[str]] = {}
    for row, line in zip(rows, lines, strict=True):
        by_paper.setdefault(row["paper"], []).append(line)
    text = [(header, "dim")]
    for paper, some in by_paper.items():
        text += [("", ""), (paper, "bold"), *((line, "") for line in some)]
    text += [("", ""), ("Of 1000 classes each. `fieldmark zoo NETWORK` shows the layers of one;", "dim")]
    text += [("NETWORK may also be timm:NAME, any of timm's. Weights of pip are there; others", "dim")]
    return _styled([*text, ("are fetched once, or given by --weights FILE.", "dim")])


def _network_text(rows: Sequence[Row], title: str) -> str:
    """The layers, their sum, and what each kind of attention adds to the rest."""
    cells = [
        [
            row["name"],
            " x ".join(map(str, row["shape"])),
            _number(row["params"]),
            _number(row["macs"]),
            _trained(row),
            ", ".join(gate["kind"] for gate in row["attention"]),
        ]
        for row in rows
    ]
    names = ["layer", "output", "params", "MACs", "trained in", "attention"]
    params, macs = (sum(row[key] for row in rows) for key in ("params", "macs"))
    header, *lines, last = _aligned(
        [names, *cells, ["together", "", _number(params), _number(macs), "", ""]], left=(0, 4, 5)
    )
    added = _additions([gate for row in rows for gate in row["attention"]], params, macs)
    plain = [(line, "") for line in lines]
    return _styled([(title, "bold"), ("", ""), (header, "dim"), *plain, (last, "bold"), *((a, "") for a in added)])


def _additions(gates: Iterable[Row], params: int, macs: int) -> list[str]:
    """What each kind of attention adds to the network without it, which has so many params and macs with it."""
    cells = []
    kinds = sorted(gates, key=lambda gate: (not gate["own"], gate["in_place_of_own"], gate["kind"]))
    for (own, instead, kind), alike in groupby(kinds, key=itemgetter("own", "in_place_of_own", "kind")):
        some = list(alike)
        more, work = (sum(gate[key] for gate in some) for key in ("params", "macs"))
        places = f"{len(some)} place" + ("s" if len(some) > 1 else "")
        share, dearer = (f"(+{100 * part / (whole - part):.2f} %)" for part, whole in ((more, params), (work, macs)))
        origin = "the paper's" if own else "in place of the paper's" if instead else "added"
        cells.append([f"{kind}, {origin}", places, f"+{more:,} params", share, f"+{work:,} MACs", dearer])
    return ["", *_aligned(cells, left=(0,))] if cells else []


def _trained(row: Row) -> str:
    if not row["params"]:
        return ""
    return "never" if row["frozen_in_phase_2"] else "phase 2" if row["frozen"] else "phases 1, 2"


def _number(count: int) -> str:
    return f"{count:,}" if count else ""


def _aligned(rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> list[str]:
    """Lines of columns as wide as their widest cell; columns of those numbers begin at the left, others end right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _styled(lines: Sequence[tuple[str, str]]) -> str:
    """Lines in their styles, which show on a terminal alone; captured, so that a closed pipe is the caller's matter."""
    console = Console(highlight=False, emoji=False)
    with console.capture() as captured:
        for line, style in lines:
            console.print(line.rstrip(), style=style, markup=False, soft_wrap=True)
    return captured.get().rstrip("\n")
