"""Photos + networks + seeds -> the same routine for each, side by side; is the difference real, and what does it cost?

Runs with the same seed have the same split, so two networks are compared on the same test photos, one by one.
"""

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

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.splits import read_split_file
from fieldmark.evaluation.intervals import GroupBootstrap
from fieldmark.evaluation.paired import Outcomes, correct_holm, paired_difference
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.models import NetworkSpec, build, profile, rebuild
from fieldmark.models.spec import format_network, parse_network
from fieldmark.pipeline.train import train
from fieldmark.recipes.recipe import Recipe

ComparisonRow = dict[str, Any]
MIN_PHOTO_OVERLAP = 0.9
"""Share of their photos that two runs have in common, if they are of one set: what cannot be read may be left out."""


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, as far as it is compared."""

    folder: Path
    network: str
    seed: int
    metrics: dict[str, Any]
    image_paths: frozenset[str]  # all that it was trained and tested on
    test_outcomes: Outcomes


def run_name(spec: str, seed: int) -> str:
    """`efficientnet_lite0+after=-1:mask`, 2 -> `efficientnet_lite0_after_-1_mask-2`, a folder's name everywhere."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', spec).strip('_')[:120]}-{seed}"


def train_networks(
    photos: str, networks: Sequence[str], seeds: int, recipe: Recipe, out: Path, reporter: Reporter
) -> list[Path]:
    """Train every network with every seed into a folder of its own in `out`. -> the runs.

    Seeds follow one another, so that what is interrupted has compared all networks on the first ones; what is finished
    is not repeated. What the frozen layers make of the photos is computed once for all networks that share them.

    Raises:
        FieldmarkError: words that name no network, or settings that cannot be compared.
    """
    with torch.device("meta"):  # wrong words are refused before an hour of training, and two spellings of one network
        fields_by_spec = {format_network(build(spec).spec): parse_network(spec) for spec in networks}
    if len({run_name(spec, 0) for spec in fields_by_spec}) < len(networks):
        raise FieldmarkError("a network is named twice: give each once, and more --seeds")
    if recipe.folds or recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("compare trains one run after the other, on one device: leave --folds and --devices out")
    folders, feature_cache_dir = (
        [],
        None if recipe.budget else out / ".shared",
    )  # or those behind the first would have more time
    for seed in range(recipe.seed, recipe.seed + seeds):
        for spec, fields in fields_by_spec.items():
            folder = out / run_name(spec, seed)
            reporter.info(f"{spec}, seed {seed}")
            run_recipe = recipe.replace(seed=seed, **fields)
            if (
                len(folders) % len(fields_by_spec) and not recipe.split_file
            ):  # audits at another size may see other look-alikes
                run_recipe = run_recipe.replace(split_file=str((folders[-1] / "split.csv").resolve()))
            train(photos, run_recipe, out=folder, resume=True, feature_cache_dir=feature_cache_dir)
            folders.append(folder)
        shutil.rmtree(out / ".shared", ignore_errors=True)  # of another seed, others are the training photos
    return folders


def load_run(folder: Path) -> ComparedRun:
    """A finished run.

    Raises:
        FieldmarkError: it is none, or it has no test photos.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        prediction_rows = io.read_csv(folder / "predictions.csv")
        outcomes = {
            row["path"]: (row["label"] == row["predicted"], row.get("group") or row["path"]) for row in prediction_rows
        }
        photos = frozenset(photo.path for photo in read_split_file(folder / "split.csv"))
        name = format_network(NetworkSpec.from_dict(metrics["network"]))
        run = ComparedRun(folder, name, metrics["seed"], metrics, photos, outcomes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldmarkError(f"{folder} is no finished run ({error})") from None
    if not outcomes:
        raise FieldmarkError(f"{folder} has no test photos: nothing to compare by")
    return run


def compare_runs(runs: Sequence[ComparedRun]) -> list[ComparisonRow]:
    """A row per network, the first one being what the others are compared with.

    Raises:
        FieldmarkError: the runs are of other photos, or one network has run twice with a seed.
    """
    if any(
        len(run.image_paths & runs[0].image_paths) < MIN_PHOTO_OVERLAP * len(run.image_paths | runs[0].image_paths)
        for run in runs
    ):
        raise FieldmarkError("these runs are of different photos: compare runs on one set")
    by: dict[str, dict[int, ComparedRun]] = {}
    for run in runs:
        if run.seed in by.setdefault(run.network, {}):
            raise FieldmarkError(f"{run.network} has two runs with seed {run.seed}: give one of them")
        by[run.network][run.seed] = run
    result = [_summarize_network(network, list(by_seed.values())) for network, by_seed in by.items()]
    first, *others = by.values()
    pairs = [_outcome_pairs(first, other) for other in others]
    tested = [(row, paired_difference(pairs_of)) for row, pairs_of in zip(result[1:], pairs, strict=True) if pairs_of]
    for (row, _), difference in zip(tested, correct_holm([difference for _, difference in tested]), strict=True):
        row["difference"] = difference.to_dict()
    return result


def _outcome_pairs(first: dict[int, ComparedRun], second: dict[int, ComparedRun]) -> list[tuple[Outcomes, Outcomes]]:
    """The outcomes of two networks, seed by seed, where both were tested on the same images."""
    pairs = [(first[seed].test_outcomes, second[seed].test_outcomes) for seed in sorted(first.keys() & second.keys())]
    return [(one, other) for one, other in pairs if one.keys() == other.keys()]


def _summarize_network(network: str, runs: list[ComparedRun]) -> ComparisonRow:
    """What one network reached and cost, over its seeds."""
    accuracies = [run.metrics["test"]["accuracy"] for run in runs]
    spent = [run.metrics["seconds"] | {"decode": run.metrics.get("borrowed_s", 0.0)} for run in runs]
    seconds = [sum(parts.values()) for parts in spent]  # the photos are decoded once, for all
    model = runs[0].folder / "bundle" / "model.onnx"
    together = {(seed, path): outcome for seed, run in enumerate(runs) for path, outcome in run.test_outcomes.items()}
    right, groups = zip(*together.values(), strict=True)
    return {
        "network": network,
        "accuracy": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "ci95": list(GroupBootstrap(np.array(groups)).share_interval(np.array(right))),
        "n": len(runs[0].test_outcomes),
        "seeds": [run.seed for run in runs],
        "accuracies": accuracies,
        "macro_f1": statistics.fmean(run.metrics["test"]["macro_f1"] for run in runs),
        "ece": statistics.fmean(run.metrics["test"]["ece"] for run in runs),
        "seconds": statistics.fmean(seconds),
        "megabytes": model.stat().st_size / 1e6,
        "images_per_s": measure_throughput(runs[0].folder),
        "parameters": runs[0].metrics["parameters"],
        **_count_costs(runs[0].metrics["network"], runs[0].folder),
        "runs": [str(run.folder) for run in runs],
        "difference": None,
    }


def measure_throughput(folder: Path, repeats: int = 30) -> float:
    """Photos a second that a run's exported file judges, one by one: the median of so many."""
    classifier = Classifier(folder)
    size, times = classifier.info["preprocessing"]["size"], []
    for k in range(repeats + 3):
        photo = np.random.default_rng(k).integers(0, 256, (size, size, 3), np.uint8)
        began = time.perf_counter()
        classifier.infer(photo)
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times[3:])


def _count_costs(spec: ComparisonRow, folder: Path) -> ComparisonRow:
    """Multiply-adds of a photo, and what each kind of attention adds in parameters and multiply-adds."""
    with torch.device("meta"):
        network = rebuild(spec)
    layers = profile.layer_table(network, bundle.read_info(folder)["preprocessing"]["size"])
    kinds: dict[str, ComparisonRow] = {}
    for gate in (gate for layer in layers for gate in layer.attention if not gate.own):
        kind = kinds.setdefault(gate.kind, {"kind": gate.kind, "places": 0, "params": 0, "macs": 0})
        kind["places"] += 1
        kind["params"] += gate.params
        kind["macs"] += gate.macs
    return {"macs": sum(layer.macs for layer in layers), "added": list(kinds.values())}
