"""Does it say when it does not know? Bird species it was not trained on (near), waste (far), and its own (known).

    python benchmarks/ood.py --work RUNS --seeds 3 --budget 2m

Of birds100's species 20 are left out, others for each seed; the rest is trained as `fieldmark train` does, with its
threshold from the validation photos. Shown are the test photos of its own species, those of the species left out, and
TrashNet. `at_90` is what would be rejected where just 90 % of its own test photos are answered, wherever the threshold
is. Rows go to RUNS/strangers.jsonl; what is there already is not repeated.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.parallel import ordered_map
from fieldmark.evaluation.metrics import Predictions
from fieldmark.inference.classifier import Classifier

PHOTOS = Path(__file__).parents[2] / "shared" / "data"
FIGURES = ("accuracy", "coverage", "accuracy_known", "near", "far", "near_at_90", "far_at_90")


def tree(photos: Path, left_out: set[str], out: Path) -> Path:
    """birds100 without these species, as links."""
    for folder in sorted(photos.glob("t*/*")):
        link = out / folder.relative_to(photos)
        if folder.name not in left_out and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder.resolve())
    return out


def scores(classifier: Classifier, photos: Iterable[Path]) -> np.ndarray:
    """Their known_score, (n,)."""
    outputs = ordered_map(classifier.infer_source, photos, runtime.available_cpus())
    return np.array([output["known_score"] for output in outputs])


def measure(photos: Path, seed: int, held_out: int, work: Path, words: list[str]) -> dict[str, float]:
    birds = photos / "birds100"
    species = sorted(folder.name for folder in (birds / "train").iterdir())
    left_out = set(random.Random(seed).sample(species, held_out))
    known, run = tree(birds, left_out, work / f"photos-{held_out}-{seed}"), work / f"run-{held_out}-{seed}"
    command = [sys.executable, "-m", "fieldmark.cli", "train", known, "--out", run, "--seed", seed, "--resume", *words]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    told = json.loads((run / "metrics.json").read_text())["test"]
    classifier = Classifier(run)
    least, at_90 = told["threshold"], float(np.quantile(Predictions.load(run / "answers.npz").scores, 0.1))
    near = [file for name in sorted(left_out) for file in sorted((birds / "test" / name).iterdir())]
    row = {name: told[name] for name in FIGURES[:3]}
    strangers = {"near": near, "far": sorted((photos / "trashnet").glob("*/*.jpg"))}
    for name, found in ((name, scores(classifier, files)) for name, files in strangers.items() if files):
        row |= {name: float((found < least).mean()), f"{name}_at_90": float((found < at_90).mean())}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=20, help="species that it is not trained on")
    options, words = parser.parse_known_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "strangers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    wanted = [{"seed": seed, "held_out": options.held_out, "words": words} for seed in range(options.seeds)]
    for setting in wanted:
        if not any(setting.items() <= row.items() for row in rows):
            found = measure(options.photos.resolve(), setting["seed"], options.held_out, options.work.resolve(), words)
            rows.append(setting | found)
            with file.open("a") as kept:
                kept.write(json.dumps(rows[-1]) + "\n")
    each = [row for row in rows if any(setting.items() <= row.items() for setting in wanted)]
    for name in (name for name in FIGURES if all(name in row for row in each)):
        values = [100 * row[name] for row in each]
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:16} {statistics.fmean(values):5.1f} +- {sd:.1f} %   {', '.join(f'{v:.1f}' for v in values)}")


if __name__ == "__main__":
    main()
