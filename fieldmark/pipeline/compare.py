"""Several networks under one recipe: trained with the same seeds and splits, and compared on the same test images."""

import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import ascii_file_name
from fieldmark.core.timing import measure
from fieldmark.data.splits import read_split_file
from fieldmark.evaluation.intervals import GroupBootstrap
from fieldmark.evaluation.paired import Outcomes, correct_holm, paired_difference
from fieldmark.evaluation.results import Metrics
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.models import NetworkSpec, build, profile, rebuild
from fieldmark.models.spec import format_network, parse_network
from fieldmark.pipeline.train import train
from fieldmark.recipes.recipe import Recipe
from fieldmark.report.results import AttentionCost, Comparison, ComparisonRow
from fieldmark.report.run_metrics import RunMetrics

MIN_IMAGE_OVERLAP = 0.9
"""Share of their images that runs of one dataset have in common at least: unreadable ones may be excluded."""
CACHE = ".shared"


@dataclass(frozen=True)
class ComparedRun:
    """What a comparison needs of a finished run.

    Attributes:
        image_paths: all images of the run.
        outcomes: path of a test image -> whether its prediction is correct, and its group.
    """

    folder: Path
    network: str
    seed: int
    metrics: RunMetrics
    test: Metrics
    image_paths: frozenset[str]
    outcomes: Outcomes


def run_name(spec: str, seed: int) -> str:
    """`efficientnet_lite0+after=-1:mask`, 2 -> `efficientnet_lite0_after_-1_mask-2`, a valid file name everywhere."""
    return f"{ascii_file_name(spec, 120, '_', 'A-Za-z0-9.-')}-{seed}"


def train_networks(
    photos: str, networks: Sequence[str], seeds: int, recipe: Recipe, out: Path, reporter: Reporter
) -> list[Path]:
    """Train every network with every seed into its own folder in `out`; return the folders.

    All networks are trained with one seed before the next, so that an interrupted comparison has compared all of them.
    Finished runs are not repeated. Networks with the same frozen layers share their features.

    Raises:
        FieldmarkError: a specification is invalid, or the settings cannot be compared.
    """
    fields_by_spec = _parse_networks(networks)
    if recipe.folds or recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("compare trains one run after the other, on one device: leave --folds and --devices out")
    if not recipe.test_share:
        raise FieldmarkError("--test-share is 0: networks are compared on test images, so leave it out")
    cache = None if recipe.budget else out / CACHE  # with shared features, later runs would have more time
    folders: list[Path] = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        split_file = recipe.split_file
        for spec, fields in fields_by_spec.items():
            reporter.info(f"{spec}, seed {seed}")
            run_recipe = recipe.replace(seed=seed, **fields)
            if split_file is not None:
                run_recipe = run_recipe.replace(split_file=split_file)
            folders.append(out / run_name(spec, seed))
            train(photos, run_recipe, out=folders[-1], resume=True, feature_cache_dir=cache)
            if not recipe.split_file:  # at another image size the audit may detect other near-duplicates
                split_file = str((folders[-1] / "split.csv").resolve())
        shutil.rmtree(out / CACHE, ignore_errors=True)  # another seed has other training images
    return folders


def _parse_networks(networks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Canonical specification -> fields of the recipe; refuses two spellings of one network."""
    with torch.device("meta"):
        fields_by_spec = {format_network(build(spec).spec): parse_network(spec) for spec in networks}
    if len({run_name(spec, 0) for spec in fields_by_spec}) < len(networks):
        raise FieldmarkError("a network is named twice: give each once, and more --seeds")
    return fields_by_spec


def load_run(folder: Path) -> ComparedRun:
    """Read a finished run.

    Raises:
        FieldmarkError: it is not a finished run, or has no test set.
    """
    try:
        metrics = RunMetrics.load(folder)
        rows = io.read_csv(folder / "predictions.csv")
        outcomes = {row["path"]: (row["label"] == row["predicted"], row.get("group") or row["path"]) for row in rows}
        paths = frozenset(photo.path for photo in read_split_file(folder / "split.csv"))
        name = format_network(NetworkSpec.from_dict(metrics.network))
    except (OSError, ValueError, KeyError, TypeError, FieldmarkError) as error:
        raise FieldmarkError(f"{folder} is not a finished run ({error})") from None
    if not outcomes or metrics.test is None or metrics.seed is None:
        raise FieldmarkError(f"{folder} has no test set: nothing to compare by")
    return ComparedRun(folder, name, metrics.seed, metrics, metrics.test, paths, outcomes)


def compare_runs(runs: Sequence[ComparedRun]) -> Comparison:
    """Compare networks over their seeds; the network of the first run is the baseline.

    Raises:
        FieldmarkError: the runs are of different images, or a network has two runs with the same seed.
    """
    by_network = _group_by_network(runs)
    rows = [_summarize_network(network, list(by_seed.values())) for network, by_seed in by_network.items()]
    baseline, *others = by_network.values()
    pairs_by_row = {k: pairs for k, each in enumerate(others, 1) if (pairs := _common_tests(baseline, each))}
    differences = correct_holm([paired_difference(pairs) for pairs in pairs_by_row.values()])
    for k, difference in zip(pairs_by_row, differences, strict=True):
        rows[k] = replace(rows[k], difference=difference)
    return Comparison(rows)


def _group_by_network(runs: Sequence[ComparedRun]) -> dict[str, dict[int, ComparedRun]]:
    """Network -> seed -> run."""
    first = runs[0].image_paths
    by_network: dict[str, dict[int, ComparedRun]] = {}
    for run in runs:
        if len(run.image_paths & first) < MIN_IMAGE_OVERLAP * len(run.image_paths | first):
            raise FieldmarkError("these runs are of different images: compare runs on one dataset")
        if run.seed in by_network.setdefault(run.network, {}):
            raise FieldmarkError(f"{run.network} has two runs with seed {run.seed}: give one of them")
        by_network[run.network][run.seed] = run
    return by_network


def _common_tests(
    first: Mapping[int, ComparedRun], second: Mapping[int, ComparedRun]
) -> list[tuple[Outcomes, Outcomes]]:
    """Outcomes of both, for each seed with which they have the same test set."""
    pairs = [(first[seed].outcomes, second[seed].outcomes) for seed in sorted(first.keys() & second.keys())]
    return [pair for pair in pairs if pair[0].keys() == pair[1].keys()]


def _summarize_network(network: str, runs: list[ComparedRun]) -> ComparisonRow:
    """Metrics and cost of one network over its seeds."""
    accuracies = [run.test.accuracy for run in runs]
    # Images are decoded once, for all; features that another run has computed count for each.
    parts = [{**run.metrics.seconds, "decode": run.metrics.cached_feature_seconds} for run in runs]
    outcomes = {(seed, path): outcome for seed, run in enumerate(runs) for path, outcome in run.outcomes.items()}
    is_correct, groups = zip(*outcomes.values(), strict=True)
    macs, added = _count_costs(runs[0])
    return ComparisonRow(
        network=network,
        accuracy=statistics.fmean(accuracies),
        sd=statistics.stdev(accuracies) if len(runs) > 1 else None,
        ci95=GroupBootstrap(np.array(groups)).share_interval(np.array(is_correct)),
        n=len(runs[0].outcomes),
        seeds=[run.seed for run in runs],
        accuracies=accuracies,
        macro_f1=_mean_if_known(run.test.macro_f1 for run in runs),
        ece=_mean_if_known(run.test.ece for run in runs),
        seconds=statistics.fmean(sum(seconds.values()) for seconds in parts),
        megabytes=(runs[0].folder / "bundle" / "model.onnx").stat().st_size / 1e6,
        images_per_s=measure_throughput(runs[0].folder),
        parameters=runs[0].metrics.parameters or 0,
        macs=macs,
        added=added,
        runs=[str(run.folder) for run in runs],
    )


def measure_throughput(folder: Path, repeats: int = 30) -> float:
    """Images per second of a run's model.onnx, one at a time: the median of `repeats`."""
    classifier = Classifier(folder)
    size = classifier.info.preprocessing["size"]
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return 1 / measure(lambda: classifier.infer(image), runs=repeats, warmup=3).median


def _count_costs(run: ComparedRun) -> tuple[int, list[AttentionCost]]:
    """Multiply-adds of one image, and the cost of each kind of inserted attention."""
    with torch.device("meta"):
        network = rebuild(NetworkSpec.from_dict(run.metrics.network))
    layers = profile.layer_table(network, bundle.read_info(run.folder).preprocessing["size"])
    gates = [gate for layer in layers for gate in layer.attention if not gate.own]
    costs = []
    for kind in dict.fromkeys(gate.kind for gate in gates):
        same = [gate for gate in gates if gate.kind == kind]
        params, macs = sum(gate.params for gate in same), sum(gate.macs for gate in same)
        costs.append(AttentionCost(kind, len(same), params, macs))
    return sum(layer.macs for layer in layers), costs


def _mean_if_known(values: Iterable[float | None]) -> float | None:
    """The mean; None if a value is missing, as a macro average where a class has no test images."""
    known = list(values)
    return None if None in known else statistics.fmean(value for value in known if value is not None)
