"""How much of what is planted does `fieldmark check` find: near-duplicates, and wrong labels.

    python benchmarks/audit_issues.py ../shared/data/birds100/train
    python benchmarks/audit_issues.py ../shared/data/trashnet ../shared/data/birds100/train --seeds 3 --labels

Near-duplicates, a row a seed: of 100 planted ones (20 each resized to 50-150 %, JPEG quality 30-95, cropped by 5 %,
+-20 % brightness, mirrored) how many lie in a cluster with their original; how many pairs of other photos were called
the same, also per million pairs. They are judged on 1,200 photos, whose own doubles (found before anything is planted)
are no false ones.

Labels, a row a set and prevalence: 0, 1, 3 and 5 % of the photos get the label of another class, uniformly at random;
how many labels are listed as errors, what part of those was planted (precision) and what part of the planted ones is
listed (recall), and how many planted ones lie in the top 7.5 % of the ranking. An error that a set came with counts as
a false one.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from planted import plant

from fieldmark.audit.audit import audit_catalog
from fieldmark.audit.label_errors import Embedder, rank_labels
from fieldmark.audit.report import LabelQuality
from fieldmark.core.runtime import torch_settings
from fieldmark.data.readers import read_catalog

UNTOUCHED, TOP = 1200, 0.075
PREVALENCES = (0.0, 0.01, 0.03, 0.05)


def check(photos: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fieldmark.cli", "check", str(photos), "--json", *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)


def pairs(found: dict[str, Any]) -> set[frozenset[str]]:
    clusters = found["near_duplicates"] + found["duplicates"]
    return {frozenset(pair) for cluster in clusters for pair in combinations(cluster, 2)}


def near(photos: Path, seed: int, folder: Path) -> str:
    plain = plant(photos, folder / "plain", near=0, most=UNTOUCHED, seed=seed)
    assert not plain.wrong
    doubles = pairs(check(folder / "plain", "--quick"))
    truth = plant(photos, folder / "near", near=100, most=UNTOUCHED, seed=seed)
    found = pairs(check(folder / "near", "--quick"))
    hits = {kind: sum(frozenset(pair) in found for pair in planted) for kind, planted in truth.near.items()}
    copies = {copy for planted in truth.near.values() for _, copy in planted}
    false = [pair for pair in found if not pair & copies]
    by_kind = ", ".join(f"{kind} {n}" for kind, n in hits.items())
    rate = 1e6 * len(false) / math.comb(UNTOUCHED, 2)
    return (
        f"{sum(hits.values())} of 100 near-duplicates found ({by_kind}); {len(false)} pairs among {UNTOUCHED} untouched"
        f" ({rate:.1f} per million pairs; {len(doubles)} of them without anything planted): "
        + "; ".join(" = ".join(sorted(pair)) for pair in false)
    )


def labels(photos: Path, seeds: int) -> None:
    catalog, embedder = read_catalog(photos), Embedder()
    report = audit_catalog(
        catalog, shorter=embedder.size, interpolation=embedder.interpolation, on_decoded=embedder.add
    )
    rows, features = embedder.features()
    paths, given = [photo.path for photo in catalog.photos], [photo.label for photo in catalog.photos]
    for share in PREVALENCES:
        results = []
        for seed in range(seeds if share else 1):
            wrong = plant_labels(given, rows, share, seed)
            said = [wrong.get(k, label) for k, label in enumerate(given)]
            ranking = rank_labels(rows, features, said, paths, report.groups)
            results.append(label_scores(ranking, {paths[k] for k in wrong}))
        listed, precision, recall, top = np.mean(results, 0)
        scores = (
            f"precision {precision:.0%}, recall {recall:.0%}, {top:.0%} in the top {TOP:.1%}" if share else "untouched"
        )
        print(f"{photos.name}: {share:.0%} of {len(rows)} planted, {listed:.0f} listed, {scores}", flush=True)


def plant_labels(given: list[str], rows: list[int], share: float, seed: int) -> dict[int, str]:
    rng, classes = np.random.default_rng(seed), sorted(set(given))
    chosen = rng.permutation(rows)[: round(share * len(rows))].tolist()
    return {k: str(rng.choice([name for name in classes if name != given[k]])) for k in chosen}


def label_scores(ranking: tuple[LabelQuality, ...], wrong: set[str]) -> tuple[float, float, float, float]:
    listed = {quality.path for quality in ranking if quality.is_issue}
    top = {quality.path for quality in ranking[: round(TOP * len(ranking))]}
    hits, n = len(listed & wrong), max(1, len(wrong))
    return len(listed), hits / max(1, len(listed)), hits / n, len(top & wrong) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="near-duplicates alone")
    parser.add_argument("--labels", action="store_true", help="wrong labels alone")
    options = parser.parse_args()
    for photos in options.photos:
        if not options.labels:
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    print(f"{photos.name}, seed {seed}: {near(photos, seed, Path(folder))}", flush=True)
        if not options.quick:
            with torch_settings():
                labels(photos, options.seeds)


if __name__ == "__main__":
    main()
