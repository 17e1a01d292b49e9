"""Exported network + training and validation photos -> the same in 8 bits, and what that costs; refused if too much."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto
from scipy.special import expit, softmax

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Photo, count, printable
from fieldmark.evaluation import calibration
from fieldmark.exporters.onnx import FITTED, put, write
from fieldmark.exporters.quantize import quantise, session, watcher
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.sides import Sides, spread
from fieldmark.models.ood import FLAT, SHARE

Found = dict[str, Any]
T = TypeVar("T")

SHOWN = 128
"""Training photos that give the maps their ranges: with 300 labels agree no more often."""
MOST = 5000
"""Validation photos that say what it costs, where there are more."""
TIMED = 10
"""Photos by which speed is measured, each several times."""
LEAST = -0.02
"""The change in accuracy must not be below this at the lower end of its 95 % interval."""
GAIN = 0.95
"""What may be left of the size, or of the time, if it is to be worth it."""
Z = 1.959964


def eight_bits(file: Path, small_file: Path, info: Found, sides: Sides, reporter: Reporter) -> Found:
    """Write an exported file in 8 bits, calibrated on training photos, held against itself on validation photos.

    Temperature, known_score and thresholds are fitted to what it says of the latter.

    Args:
        file: what `export.export` wrote.
        small_file: where it goes.
        info: what bundle.json holds.
        sides: photos of the run, some on either side.
        reporter: hears of the progress.

    Returns:
        label_agreement, accuracy, accuracy_32_bits; difference, ci95, won, lost, n (see `change`); bytes and
        bytes_32_bits; seconds and seconds_32_bits that a photo takes, by the number of threads.

    Raises:
        FieldmarkError: the accuracy may fall by more than 2 points, or neither size nor time falls.
    """
    shown, val = spread(sides.train, SHOWN), spread(sides.val, MOST)
    with reporter.bar("calibrating", "photos") as advance:

        def each(work: Callable[[np.ndarray], T]) -> Iterator[T]:
            for k, (_, made) in enumerate(sides.each(shown, work)):
                advance(k + 1, len(shown))
                yield made

        small = quantise(file, each)
    judge, ask = Classifier(file).judge, asked(small)
    answers = list[tuple[Photo, Found]]()
    with reporter.bar("comparing", "photos") as advance:
        for answer in sides.each(val, lambda photo: ask(photo) | {"before": judge(photo)["logits"]}):
            answers.append(answer)
            advance(len(answers), len(val))
    number = {printable(name): k for k, name in enumerate(info["classes"])}
    labels = np.array([number[printable(photo.label)] for photo, _ in answers])
    before, logits, parts = (np.stack([one[name] for _, one in answers]) for name in ("before", "logits", "parts"))
    was, now = before.argmax(1), logits.argmax(1)
    found: Found = {"label_agreement": float((was == now).mean())}
    found |= {"accuracy": float((now == labels).mean()), "accuracy_32_bits": float((was == labels).mean())}
    found |= change(was == labels, now == labels)
    if found["ci95"][0] < LEAST:
        raise FieldmarkError(_refusal(found))
    info = refit(small, info, logits, parts, labels) | {"precision": "int8", "verified": found}
    write(small, info, small_file)
    found = found | {"bytes": small_file.stat().st_size, "bytes_32_bits": file.stat().st_size}
    timed = [photo for _, photo in sides.each(spread(val, TIMED), np.asarray)]
    times = {str(n): speed([file, small_file], timed, n) for n in (1, runtime.cores())}
    found["seconds_32_bits"], found["seconds"] = ({n: pair[k] for n, pair in times.items()} for k in (0, 1))
    if found["bytes"] > GAIN * found["bytes_32_bits"] and _slower(found, GAIN):
        raise FieldmarkError("8 bits make this network neither smaller nor faster here: export without --int8")
    return found


def asked(small: ModelProto) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A photo -> its `logits` (classes,) and `parts` (3,), of which known_score is made (`Known.parts`)."""
    parts = next(node.input[0] for node in small.graph.node if "known.mean" in node.input)
    watch = watcher(small, ["logits", parts])

    def ask(photo: np.ndarray) -> dict[str, np.ndarray]:
        found = watch(photo)
        return {"logits": found["logits"][0], "parts": found[parts][0]}

    return ask


def refit(small: ModelProto, info: Found, logits: np.ndarray, parts: np.ndarray, labels: np.ndarray) -> Found:
    """Fit temperature, known_score and thresholds to what a network says of its validation photos.

    What belongs in the graph is put there; the rest is in the info that comes back.

    Args:
        small: the network in 8 bits.
        info: what bundle.json holds.
        logits: (n, classes), and parts: (n, 3), both from `asked`.
        labels: the numbers of the true classes, (n,).
    """
    t = calibration.temperature(logits, labels)
    mean, sd = parts.mean(0), np.maximum(parts.std(0, ddof=1), FLAT)
    height, share, cosine = ((parts - mean) / sd).T
    put(small, dict(zip(FITTED, (t, mean, sd), strict=True)))
    info = info | {"temperature": t, "threshold": calibration.threshold(expit(height + share + SHARE * cosine))}
    if "positive" in info:
        one = info["classes"].index(info["positive"])
        info["decision"] = calibration.decision(softmax(logits / t, axis=1)[:, one], labels == one)
    return info


def change(before: np.ndarray, after: np.ndarray) -> Found:
    """Whether each of n photos is told right before and after, (n,) truth values -> how much the accuracy changes.

    The interval is that of Agresti & Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": Wald's for paired shares, after half a photo was added to each of the four cells. So it has a width
    where all photos are told alike: with fewer than 96 its lower end is below -2 points whatever they say.

    Returns:
        difference: after minus before; ci95; won and lost: photos that only one of the two tells right; n.
    """
    won, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), len(before)
    centre = (won - lost) / (n + 2)
    half = Z * math.sqrt(won + lost + 1 - (n + 2) * centre**2) / (n + 2)
    ci95 = [max(-1.0, centre - half), min(1.0, centre + half)]
    return {"difference": (won - lost) / max(1, n), "ci95": ci95, "won": won, "lost": lost, "n": n}


def speed(files: Sequence[Path], photos: Sequence[np.ndarray], threads: int, rounds: int = 3) -> list[float]:
    """Seconds that each file takes for a photo, one by one: the median. They take turns: the machine may be busy."""
    sessions = [session(str(file), threads) for file in files]
    times: list[list[float]] = [[] for _ in files]
    for turn in range(rounds + 1):
        for one, spent in zip(sessions, times, strict=True):
            for photo in photos:
                began = time.perf_counter()
                one.run(None, {"photos": photo[None]})
                if turn:  # the first one warms up
                    spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in times]


# ---- what people read


def lines(name: str, found: Found) -> Iterator[str]:
    """What a person reads of a file in 8 bits."""
    yield (
        f"{name} says what 32 bits say on {found['label_agreement']:.1%} of {count(found['n'], 'validation photo')}; "
        f"right are {found['accuracy']:.1%}, in 32 bits {found['accuracy_32_bits']:.1%}: {_points(found)}"
    )
    yield f"  {found['bytes'] / 1e6:.1f} MB, in 32 bits {found['bytes_32_bits'] / 1e6:.1f} MB"
    for n, was in found["seconds_32_bits"].items():
        now, threads = found["seconds"][n], count(int(n), "thread")
        yield f"  {1e3 * now:.1f} ms a photo, in 32 bits {1e3 * was:.1f} ms ({threads} on this machine)"
    if _slower(found):
        yield "  it is slower on this machine: what is gained is size"


def _slower(found: Found, than: float = 1.0) -> bool:
    """Whether 8 bits take longer than this part of the time, with every number of threads."""
    return all(found["seconds"][n] > than * was for n, was in found["seconds_32_bits"].items())


def _points(found: Found) -> str:
    low, high = (100 * bound for bound in found["ci95"])
    return f"{100 * found['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"


def _refusal(found: Found) -> str:
    enough = math.ceil(Z / -LEAST) - 2
    few = f"; fewer than {enough} can never show that it does not" if found["n"] < enough else ""
    return (
        "8 bits may cost more than 2 points of accuracy, so nothing is written: "
        f"of {count(found['n'], 'validation photo')} {found['accuracy']:.1%} are right, in 32 bits "
        f"{found['accuracy_32_bits']:.1%}: {_points(found)}, labels agree on {found['label_agreement']:.1%}{few}; "
        "export without --int8"
    )
