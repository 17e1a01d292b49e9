"""Photos + networks + seeds -> the same routine for each, side by side; is the difference real, and what does it cost?

Runs with the same seed have the same split, so two networks are compared on the same test photos, one by one.
"""

import dataclasses
import json
import re
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.splits import read_split
from fieldmark.evaluation.intervals import Resampled, column
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.models import build, profile, rebuild
from fieldmark.models.spec import parse_network, spell_network
from fieldmark.pipeline.train import train
from fieldmark.recipes.recipe import Recipe

Row = dict[str, Any]
DRAWS = 4000
SAME = 0.9
"""Share of their photos that two runs have in common, if they are of one set: what cannot be read may be left out."""
REAL = 0.05
"""A difference is called real below this p, counted for all the comparisons that are made (Holm 1979)."""


@dataclass(frozen=True)
class One:
    """A finished run, as far as it is compared."""

    folder: Path
    network: str
    seed: int
    metrics: dict[str, Any]
    photos: frozenset[str]  # all that it was trained and tested on
    right: dict[str, tuple[bool, str]]  # test photo -> whether it was told right, and its group


def name_of(spec: str, seed: int) -> str:
    """`efficientnet_lite0+after=-1:mask`, 2 -> `efficientnet_lite0_after_-1_mask-2`, a folder's name everywhere."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', spec).strip('_')[:120]}-{seed}"


def compare(
    photos: str, networks: Sequence[str], seeds: int, recipe: Recipe, out: Path, reporter: Reporter
) -> list[Path]:
    """Train every network with every seed into a folder of its own in `out`. -> the runs.

    Seeds follow one another, so that what is interrupted has compared all networks on the first ones; what is finished
    is not repeated. What the frozen layers make of the photos is computed once for all networks that share them.

    Raises:
        FieldmarkError: words that name no network, or settings that cannot be compared.
    """
    with torch.device("meta"):  # wrong words are refused before an hour of training, and two spellings of one network
        words = {spell_network(build(spec).spec): parse_network(spec) for spec in networks}
    if len({name_of(spec, 0) for spec in words}) < len(networks):
        raise FieldmarkError("a network is named twice: give each once, and more --seeds")
    if recipe.folds or recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("compare trains one run after the other, on one device: leave --folds and --devices out")
    folders, shared = [], None if recipe.budget else out / ".shared"  # or those behind the first would have more time
    for seed in range(recipe.seed, recipe.seed + seeds):
        for spec, fields in words.items():
            folder = out / name_of(spec, seed)
            reporter.say(f"{spec}, seed {seed}", style="bold")
            own = dataclasses.replace(recipe, seed=seed, **fields)
            if len(folders) % len(words) and not recipe.split_file:  # audits at another size may see other look-alikes
                own = dataclasses.replace(own, split_file=str((folders[-1] / "split.csv").resolve()))
            train(photos, own, out=folder, resume=True, shared=shared)
            folders.append(folder)
        shutil.rmtree(out / ".shared", ignore_errors=True)  # of another seed, others are the training photos
    return folders


def read(folder: Path) -> One:
    """A finished run.

    Raises:
        FieldmarkError: it is none, or it has no test photos.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        answers = io.rows(folder / "predictions.csv")
        right = {row["path"]: (row["label"] == row["predicted"], row.get("group") or row["path"]) for row in answers}
        photos = frozenset(photo.path for photo in read_split(folder / "split.csv"))
        found = One(folder, spell_network(metrics["network"]), metrics["seed"], metrics, photos, right)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldmarkError(f"{folder} is no finished run ({error})") from None
    if not right:
        raise FieldmarkError(f"{folder} has no test photos: nothing to compare by")
    return found


def rows(runs: Sequence[One]) -> list[Row]:
    """A row per network, the first one being what the others are compared with.

    Raises:
        FieldmarkError: the runs are of other photos, or one network has run twice with a seed.
    """
    if any(len(run.photos & runs[0].photos) < SAME * len(run.photos | runs[0].photos) for run in runs):
        raise FieldmarkError("these runs are of different photos: compare runs on one set")
    by: dict[str, dict[int, One]] = {}
    for run in runs:
        if run.seed in by.setdefault(run.network, {}):
            raise FieldmarkError(f"{run.network} has two runs with seed {run.seed}: give one of them")
        by[run.network][run.seed] = run
    found = [_row(network, list(each.values())) for network, each in by.items()]
    first, *others = by.values()
    for row, each in zip(found[1:], others, strict=True):
        both = sorted(first.keys() & each.keys())
        pairs = [(first[seed], each[seed]) for seed in both if first[seed].right.keys() == each[seed].right.keys()]
        row["difference"] = difference(pairs) if pairs else None
    _correct([row["difference"] for row in found[1:] if row["difference"]])
    return found


def _row(network: str, runs: list[One]) -> Row:
    """What one network reached and cost, over its seeds."""
    accuracies = [run.metrics["test"]["accuracy"] for run in runs]
    spent = [run.metrics["seconds"] | {"decode": run.metrics.get("borrowed_s", 0.0)} for run in runs]
    seconds = [sum(parts.values()) for parts in spent]  # the photos are decoded once, for all
    model = runs[0].folder / "bundle" / "model.onnx"
    together = {(seed, path): told for seed, run in enumerate(runs) for path, told in run.right.items()}
    right, groups = zip(*together.values(), strict=True)
    return {
        "network": network,
        "accuracy": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "ci95": _interval(np.array(right), np.array(groups)),
        "n": len(runs[0].right),
        "seeds": [run.seed for run in runs],
        "accuracies": accuracies,
        "macro_f1": statistics.fmean(run.metrics["test"]["macro_f1"] for run in runs),
        "ece": statistics.fmean(run.metrics["test"]["ece"] for run in runs),
        "seconds": statistics.fmean(seconds),
        "megabytes": model.stat().st_size / 1e6,
        "images_per_s": images_per_s(runs[0].folder),
        "parameters": runs[0].metrics["parameters"],
        **_costs(runs[0].metrics["network"], runs[0].folder),
        "runs": [str(run.folder) for run in runs],
        "difference": None,
    }


def images_per_s(folder: Path, photos: int = 30) -> float:
    """Photos a second that a run's exported file judges, one by one: the median of so many."""
    classifier = Classifier(folder)
    size, times = classifier.info["preprocessing"]["size"], []
    for k in range(photos + 3):
        photo = np.random.default_rng(k).integers(0, 256, (size, size, 3), np.uint8)
        began = time.perf_counter()
        classifier.judge(photo)
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times[3:])


def _interval(right: np.ndarray, groups: np.ndarray) -> list[float]:
    """Of the share that is right, a photo that several seeds tested being one witness."""
    return Resampled(groups).shares(column(right), column(np.ones(len(right))))[0].tolist()


def _costs(spec: Row, folder: Path) -> Row:
    """Multiply-adds of a photo, and what each kind of attention adds in parameters and multiply-adds."""
    with torch.device("meta"):
        network = rebuild(spec)
    layers = profile.layers(network, bundle.read(folder)["preprocessing"]["size"])
    kinds: dict[str, Row] = {}
    for gate in (gate for layer in layers for gate in layer["attention"] if not gate["own"]):
        kind = kinds.setdefault(gate["kind"], {"kind": gate["kind"], "places": 0, "params": 0, "macs": 0})
        kind["places"] += 1
        kind["params"] += gate["params"]
        kind["macs"] += gate["macs"]
    return {"macs": sum(layer["macs"] for layer in layers), "added": list(kinds.values())}


# ---- is it real?


def difference(pairs: Sequence[tuple[One, One]]) -> Row:
    """Second minus first in accuracy, over runs with the same test photos, a pair a seed.

    One seed and independent photos: McNemar's exact test (1947). Otherwise a bootstrap that draws groups of photos,
    and seeds: a photo that is tested under three seeds is one witness, not three.

    Returns:
        difference: of the mean accuracies; ci95; p, two-sided; test: its name; won and lost: photos that only the
        second, or only the first, told right.
    """
    names = sorted({group for first, _ in pairs for _, group in first.right.values()})
    place = {name: k for k, name in enumerate(names)}
    gain, photos = (np.zeros((len(names), len(pairs))) for _ in range(2))
    won = lost = 0
    for s, (first, second) in enumerate(pairs):
        for path, (right, group) in first.right.items():
            step = int(second.right[path][0]) - int(right)
            gain[place[group], s] += step
            photos[place[group], s] += 1
            won, lost = won + (step > 0), lost + (step < 0)
    found = float((gain.sum(0) / photos.sum(0)).mean())
    drawn = _drawn(gain, photos)
    if len(pairs) == 1 and (photos == 1).all():
        test, p = "McNemar, exact", float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    else:
        test, p = "bootstrap over photos and seeds", _two_sided(drawn)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return {"difference": found, "ci95": [low, high], "p": p, "test": test, "won": won, "lost": lost}


def _drawn(gain: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Differences (draws,) of resampled seeds and groups, from the gains and photos (groups, seeds) of each.

    What a draw of few seeds is off their mean is stretched by sqrt(s / (s - 1)), or it would vary too little.
    """
    rng, seeds = np.random.default_rng(1), gain.shape[1]
    values = []
    for weights in Resampled(np.arange(len(gain)), DRAWS).weights():
        each = (weights @ gain) / np.maximum(weights @ photos, 1)  # (block, seeds)
        chosen = rng.integers(seeds, size=each.shape)
        mean = each.mean(1)
        off = np.take_along_axis(each, chosen, 1).mean(1) - mean
        values.append(mean + off * (seeds / max(1, seeds - 1)) ** 0.5)
    return np.concatenate(values)


def _two_sided(drawn: np.ndarray) -> float:
    """Twice the smaller tail beyond zero, draws of zero on both sides, never nothing: (r + 1) / (draws + 1)."""
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def _correct(differences: list[Row]) -> None:
    """Adds to each `p_holm`, its p counted for all of them, and whether the difference is `real`."""
    worst = 0.0
    for rank, one in enumerate(sorted(differences, key=lambda row: row["p"])):
        worst = max(worst, min(1.0, (len(differences) - rank) * one["p"]))
        one |= {"p_holm": worst, "real": worst < REAL}
