"""How much of what is planted does `fieldmark check` find: near-duplicates and wrong labels in a copy of birds100.

    python benchmarks/audit_issues.py ../shared/data/birds100/train
    python benchmarks/audit_issues.py ../shared/data/birds100/train --seeds 5 --quick

A row a seed: of 100 planted near-duplicates (20 each resized to 50-150 %, JPEG quality 30-95, cropped by 5 %, +-20 %
brightness, mirrored) how many lie in a cluster with their original; how many pairs of other photos were called the
same, also per million pairs; of labels planted wrong (5 % of the photos) how many lie in the top 7.5 % of the ranking.
Near-duplicates are judged on 1,200 photos, whose own doubles (found before anything is planted) are no false ones.
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

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from planted import plant

UNTOUCHED, TOP = 1200, 0.075


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


def labels(photos: Path, seed: int, folder: Path) -> str:
    total = sum(path.is_file() for path in photos.glob("*/*"))
    truth = plant(photos, folder / "labels", near=0, wrong=round(0.05 * total), seed=seed)
    found = check(folder / "labels", "--out", str(folder / "found"))
    lines = (folder / "found" / "labels.csv").read_text(encoding="utf-8").splitlines()[1:]
    ranking = [line.split(",")[0] for line in lines]
    top = set(ranking[: round(TOP * len(ranking))])
    hits, flagged = len(top & truth.wrong.keys()), {error["path"] for error in found["label_errors"]}
    right = sum(e["suggested"] == truth.wrong.get(e["path"]) for e in found["label_errors"])
    return (
        f"{hits} of {len(truth.wrong)} wrong labels ({hits / len(truth.wrong):.1%}) in the top {TOP:.1%} of"
        f" {len(ranking)} photos; {len(flagged)} flagged, {len(flagged & truth.wrong.keys())} of them planted,"
        f" {right} with the true class"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="near-duplicates alone")
    options = parser.parse_args()
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            print(f"seed {seed}: {near(options.photos, seed, Path(folder))}", flush=True)
            if not options.quick:
                print(f"seed {seed}: {labels(options.photos, seed, Path(folder))}", flush=True)


if __name__ == "__main__":
    main()
