"""Every network beside torchvision's or timm's own, forward and training step: ratios theirs / ours, above 1 is faster.

    python benchmarks/networks.py --budget 40m --out networks.json     # in one process, glibc's allocator on both sides
    python benchmarks/networks.py --allocator                          # ours with the allocator setting, theirs without
    python benchmarks/networks.py --memory densenet121 densenet169     # peak memory of a training step

Both sides have the same random weights (those of tests/models/test_parity.py), photos, threads and memory format, and
no dropout. They run in turn, A B B A; a ratio is the median over the pairs, with its quartiles. With `--allocator` and
`--memory` each side is a process of its own.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.core import runtime
from fieldmark.models import build
from fieldmark.models.layers import StochasticDepth
from fieldmark.recipes import recipe

ENOUGH = 0.97  # below this ratio a network counts as slower
LEAST = 3  # pairs of runs, whatever the budget
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
KINDS = ("forward", "training")
Times = Callable[[str], float]
"""One of KINDS -> seconds of one run."""


def parity() -> Any:
    """tests/models/test_parity.py: what each network is held against, and how its weights are named there."""
    file = Path(__file__).parents[1] / "tests" / "network" / "test_parity.py"
    spec = importlib.util.spec_from_file_location("parity", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def pair(name: str) -> dict[str, nn.Module]:
    """The network and the published implementation, with the same random weights and without dropout."""
    known = parity()
    ours, theirs = known.without_weights(lambda: build(name)), known.without_weights(known.REFERENCES[name].make)
    torch.manual_seed(0)
    known.fill(ours)
    tensors = known.published(ours)
    theirs.load_state_dict({key: tensors[known.ours_of(name, key)] for key in theirs.state_dict()}, assign=True)
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, StochasticDepth):
            module.drop_probability = 0.0
    return {"ours": ours, "theirs": theirs}


class Side:
    """One of the two networks with its photos, ready to run."""

    def __init__(self, module: nn.Module, options: argparse.Namespace) -> None:
        form = FORMATS[options.format]
        self.module = module.to(memory_format=form)  # type: ignore[call-overload]
        self.photos = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=form)
        self.labels = torch.arange(options.batch)
        self.optimizer = torch.optim.SGD(module.parameters(), lr=1e-6)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.module(self.photos), self.labels)

    def seconds(self, kind: str) -> float:
        """One run: `forward` in eval mode, or a whole `training` step."""
        self.module.train(kind == "training")
        began = time.perf_counter()
        if kind == "training":
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        else:
            with torch.inference_mode():
                self.module(self.photos)
        return time.perf_counter() - began

    def memory(self) -> dict[str, float]:
        """MiB that one training step keeps for its backward pass beside the weights, and the process's peak."""
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.module.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        for tensor in self.module.state_dict().values():
            held.pop(tensor.untyped_storage().data_ptr(), None)
        loss.backward()
        self.optimizer.step()
        return {"saved": sum(held.values()) / 2**20, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


# ---- each side in a process of its own


def answer(options: argparse.Namespace) -> None:
    """Be one side: a word on each line of stdin, an answer in JSON on stdout."""
    if options.side == "ours" and options.allocator:
        runtime.tune_malloc()
    side = Side(pair(options.networks[0])[options.side], options)
    for line in sys.stdin:
        word = line.strip()
        print(json.dumps(side.memory() if word == "memory" else side.seconds(word)), flush=True)


class Process:
    """A side that runs in another process, and answers."""

    def __init__(self, side: str, name: str, options: argparse.Namespace) -> None:
        words = {"threads": options.threads, "batch": options.batch, "size": options.size, "format": options.format}
        command = [
            sys.executable,
            __file__,
            name,
            "--side",
            side,
            *(f"--{key}={value}" for key, value in words.items()),
        ]
        command += ["--allocator"] if options.allocator else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, word: str) -> Any:
        assert self.process.stdin and self.process.stdout
        print(word, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


# ---- comparing


def compare(ours: Times, theirs: Times, kind: str, repeat: int, seconds: float) -> dict[str, Any]:
    """Runs in turn -> median milliseconds, and the ratio theirs / ours with its quartiles."""
    for side in (ours, theirs):
        side(kind)  # to warm up
    began, times = time.monotonic(), []
    while len(times) < LEAST or (len(times) < repeat and time.monotonic() - began < seconds):
        if len(times) % 2 == 0:
            first = ours(kind)
            times.append((first, theirs(kind)))
        else:
            second = theirs(kind)
            times.append((ours(kind), second))
    low, ratio, high = statistics.quantiles([b / a for a, b in times], n=4, method="inclusive")
    middle = [1e3 * statistics.median(some) for some in zip(*times, strict=True)]
    return {"ours_ms": middle[0], "theirs_ms": middle[1], "ratio": ratio, "low": low, "high": high, "pairs": len(times)}


def speed(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    if options.allocator:
        ours, theirs = (Process(side, name, options) for side in ("ours", "theirs"))
        found = {kind: compare(ours.ask, theirs.ask, kind, options.repeat, seconds) for kind in KINDS}
        ours.close()
        theirs.close()
        return found
    sides = {side: Side(module, options).seconds for side, module in pair(name).items()}
    return {kind: compare(sides["ours"], sides["theirs"], kind, options.repeat, seconds) for kind in KINDS}


def memory(name: str, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in ("ours", "theirs"):
        process = Process(side, name, options)
        found |= {f"{kind}_{side}_MiB": value for kind, value in process.ask("memory").items()}
        process.close()
    return found


def line(name: str, row: dict[str, Any]) -> str:
    """A row as people read it."""
    cells = [f"{name:22}"]
    for kind, found in row.items():
        if isinstance(found, dict):
            spread = f"{found['low']:.2f} to {found['high']:.2f}"
            slow = " slower" if found["ratio"] < ENOUGH else ""
            cells.append(
                f"{kind} {found['ours_ms']:7.0f} ms  {found['ratio']:.3f} ({spread}, {found['pairs']}){slow:7}"
            )
        else:
            cells.append(f"{kind} {found:7.0f}")
    return "  ".join(cells).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="without names, every network that torchvision or timm has")
    parser.add_argument("--threads", type=int, default=runtime.available_cpus())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--format", choices=FORMATS, default="channels_last")
    parser.add_argument("--repeat", type=int, default=15, help="pairs of runs at most")
    parser.add_argument("--budget", default="30m", help="time for all of it, as 90s, 5m or 1h")
    parser.add_argument("--allocator", action="store_true", help="ours with the allocator setting, theirs without")
    parser.add_argument("--memory", action="store_true", help="memory of a training step in place of its time")
    parser.add_argument("--out", type=Path, help="JSON of the rows")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        return answer(options)
    names = options.networks or [name for name, reference in parity().REFERENCES.items() if reference.make]
    seconds = recipe.parse_duration(options.budget) / len(names) / 2
    rows: dict[str, Any] = {}
    print(
        f"batch {options.batch} at {options.size} px, {options.threads} threads, {options.format}; theirs / ours",
        flush=True,
    )
    for name in names:
        rows[name] = memory(name, options) if options.memory else speed(name, options, seconds)
        print(line(name, rows[name]), flush=True)
        if options.out:
            settings = {key: value for key, value in vars(options).items() if key not in ("networks", "out", "side")}
            options.out.write_text(
                json.dumps({"settings": settings, "machine": runtime.describe_environment(), "rows": rows}, indent=1)
            )
    for kind in () if options.memory else KINDS:
        ratios = [row[kind]["ratio"] for row in rows.values()]
        good = sum(ratio >= ENOUGH for ratio in ratios)
        print(f"{kind}: {good} of {len(ratios)} not slower (>= {ENOUGH}), median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
