"""Tables of the zoo: all networks, or the layers of one and what its attention adds."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Console

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.timing import measure

TableRow = dict[str, Any]


def list_networks(name_filter: str, measure_speed: bool) -> tuple[list[TableRow], str]:
    """Rows and table of the networks whose name contains `name_filter`; `measure_speed` adds `images_per_s`."""
    from fieldmark.models import VARIANTS, profile

    names = [name for name in VARIANTS if name_filter in name]
    if not names:
        raise FieldmarkError(f"no network's name contains {name_filter!r}: `fieldmark zoo` lists them all")
    rows = [row.to_dict() for row in profile.network_table(names)]
    if measure_speed:
        with Reporter().progress_bar("timing", "networks") as advance:
            for done, row in enumerate(rows):
                advance(done, len(rows))
                row["images_per_s"] = measure_throughput(row["name"])
    return rows, _format_networks(rows)


def describe_network(
    spec_text: str, *, image_size: int | None = None, **build_options: Any
) -> tuple[list[TableRow], str]:
    """Rows and table of the layers of a network; `build_options` go to `build`."""
    import torch

    from fieldmark.models import build, profile, spec

    with torch.device("meta"):
        model = build(spec_text, **build_options)
    size = image_size or model.preprocessing.size
    rows = [row.to_dict() for row in profile.layer_table(model, size)]
    input_shape = f"images of {model.spec.channels} x {size} x {size}"
    return rows, _format_layers(rows, f"{spec.format_network(model.spec)}: {input_shape}, {model.spec.classes} classes")


@runtime.torch_settings()
def measure_throughput(name: str, seconds: float = 2.0) -> float:
    """Images per second of a network at its own size, one at a time: the median over `seconds`, of 3 runs or more."""
    import torch

    from fieldmark.models import build

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(name).eval().to(device).to(memory_format=torch.channels_last)
    size = model.preprocessing.size
    image = torch.randn(1, 3, size, size, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        timed = measure(lambda: model(image).cpu(), min_seconds=seconds)  # .cpu() waits for the device
    return 1 / timed.median


# ---- text


def _format_networks(rows: Sequence[TableRow]) -> str:
    """The networks under their papers; speeds take the place of the weights' sources, to fit 80 columns."""
    timed = "images_per_s" in rows[0]
    header_cells = ["network", "params", "MACs", "input", "top-1", "images/s" if timed else "weights"]
    cells = [
        [
            f"  {row['name']}",
            f"{row['params'] / 1e6:.1f} M",
            f"{row['macs'] / 1e9:.2f} G",
            str(row["input_size"]),
            f"{row['top1']:.1f} %" if row["top1"] else "-",
            f"{row['images_per_s']:8.1f}" if timed else (row["weights"] or "none published").partition(":")[0],
        ]
        for row in rows
    ]
    header, *lines = _align_columns([header_cells, *cells], left=(0, 5))
    by_paper: dict[str, list[str]] = {}
    for row, line in zip(rows, lines, strict=True):
        by_paper.setdefault(row["paper"], []).append(line)
    text = [(header, "dim")]
    for paper, paper_lines in by_paper.items():
        text += [("", ""), (paper, "bold"), *((line, "") for line in paper_lines)]
    text += [("", ""), ("With 1000 classes each. `fieldmark zoo NETWORK` shows the layers of one;", "dim")]
    text += [("NETWORK may also be timm:NAME, any of timm's. Weights from pip are installed;", "dim")]
    text += [("others are downloaded once, or given by --weights FILE. Where none are published,", "dim")]
    return _render_styled([*text, ("train from scratch by --weights none.", "dim")])


def _format_layers(rows: Sequence[TableRow], title: str) -> str:
    """The layers, their sum, and what each kind of attention adds."""
    cells = [
        [
            row["name"],
            " x ".join(map(str, row["shape"])),
            _format_count(row["params"]),
            _format_count(row["macs"]),
            _trained_phases(row),
            ", ".join(gate["kind"] for gate in row["attention"]),
        ]
        for row in rows
    ]
    names = ["layer", "output", "params", "MACs", "trained in", "attention"]
    params, macs = (sum(row[key] for row in rows) for key in ("params", "macs"))
    header, *lines, last = _align_columns(
        [names, *cells, ["total", "", _format_count(params), _format_count(macs), "", ""]], left=(0, 4, 5)
    )
    attention_lines = _format_attention_cost([gate for row in rows for gate in row["attention"]], params, macs)
    layer_lines = [(line, "") for line in lines]
    return _render_styled(
        [(title, "bold"), ("", ""), (header, "dim"), *layer_lines, (last, "bold"), *((a, "") for a in attention_lines)]
    )


def _format_attention_cost(gates: Iterable[TableRow], params: int, macs: int) -> list[str]:
    """What each kind of attention adds to the network; `params` and `macs` are those of the network with it."""
    cells = []
    kinds = sorted(gates, key=lambda gate: (not gate["own"], gate["in_place_of_own"], gate["kind"]))
    for (own, replaces_own, kind), group in groupby(kinds, key=itemgetter("own", "in_place_of_own", "kind")):
        gates_of_kind = list(group)
        extra_params, extra_macs = (sum(gate[key] for gate in gates_of_kind) for key in ("params", "macs"))
        places = f"{len(gates_of_kind)} place" + ("s" if len(gates_of_kind) > 1 else "")
        params_share, macs_share = (
            f"(+{100 * part / (whole - part):.2f} %)" for part, whole in ((extra_params, params), (extra_macs, macs))
        )
        origin = "the paper's" if own else "in place of the paper's" if replaces_own else "added"
        cells.append(
            [
                f"{kind}, {origin}",
                places,
                f"+{extra_params:,} params",
                params_share,
                f"+{extra_macs:,} MACs",
                macs_share,
            ]
        )
    return ["", *_align_columns(cells, left=(0,))] if cells else []


def _trained_phases(row: TableRow) -> str:
    if not row["params"]:
        return ""
    return "never" if row["frozen_in_phase_2"] else "fine-tuning" if row["frozen"] else "both phases"


def _format_count(count: int) -> str:
    return f"{count:,}" if count else ""


def _align_columns(rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> list[str]:
    """Lines of columns as wide as their widest cell; the columns with the indices in `left` are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _render_styled(lines: Sequence[tuple[str, str]]) -> str:
    """The lines as text, with their styles on a terminal. Captured, so that the caller meets a closed pipe."""
    console = Console(highlight=False, emoji=False)
    with console.capture() as captured:
        for line, style in lines:
            console.print(line.rstrip(), style=style, markup=False, soft_wrap=True)
    return captured.get().rstrip("\n")
