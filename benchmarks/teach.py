"""Labels that `fieldmark teach` needs, with simulated people: `python benchmarks/teach.py --work W [--seeds 3]`.

The labels of a data set are hidden; a simulated person answers each question with the true one. Of each set 30 % of the
images, whole groups of near-duplicates, are kept apart to measure on. Three measurements:

1. labels: how many it takes to reach 90 % of the accuracy that all labels of the other 70 % give, by the session's
   questions and by drawing images at random; the same classifier learns from both. Balanced accuracy on sets of which
   one class has most images.
2. wrong answers: 5 % of the answers name another class. Which part of them was asked about again?
3. the estimate: at each hundred labels, does the session's 95 % interval contain the true accuracy (that on all images
   that were never learned from)?

Rows go to W/teach.jsonl; --page FILE.md writes the tables, and the learning curves as FILE.svg.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from suite_data import find_sets

from fieldmark.core import runtime
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline.teaching.images import TeachingImages, from_catalog
from fieldmark.pipeline.teaching.learner import LinearModel, fit
from fieldmark.pipeline.teaching.questions import Question
from fieldmark.pipeline.teaching.reader import read_images
from fieldmark.pipeline.teaching.session import TeachingSession
from fieldmark.pipeline.teaching.store import READ, open_store

SETS = ("trashnet", "birds100", "magnetic-tile")
BALANCED = ("magnetic-tile", "solar-cells")
HELD_OUT = 0.3
PART_OF_FULL = 0.9
WRONG = 0.05
DRAWS = 5
"""Random orders of each split, whose numbers of labels are averaged."""
CONSECUTIVE = 3
"""Measurements, five labels apart, that have to be above the bar: one alone may be by chance."""
MIN_LABELS, MAX_LABELS = 500, 1500
"""Labels to learn from after which a session ends: the first if the bar is reached by then."""


@dataclass
class Pool:
    """The images that a session is about, in place of a `FeatureStore`."""

    features: np.ndarray
    groups: np.ndarray
    status: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.status = np.full(len(self.features), READ, np.uint8)


@dataclass
class Split:
    """A data set for one seed: the pool of a session, and images to measure on."""

    name: str
    pool: Pool
    labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    n_classes: int

    def accuracy(self, model: LinearModel | None, classes: list[int] | None = None) -> float:
        """On the images that are kept apart; `classes` are the numbers of the model's classes."""
        if model is None:
            return 0.0
        predicted = model.scores(self.test_features).argmax(1)
        if classes is not None:
            predicted = np.array(classes)[predicted]
        hits = predicted == self.test_labels
        if self.name in BALANCED:
            return float(np.mean([hits[self.test_labels == k].mean() for k in np.unique(self.test_labels)]))
        return float(hits.mean())


def load(name: str, folder: Path, work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, k), class numbers (n,) and groups (n,) of a data set; read once."""
    catalog = read_catalog(folder)
    images = from_catalog(catalog)
    names = list(images.sources)
    store = open_store(work / "features" / name, names, [images.signature(each) for each in names], "pretrained")
    read_images(images, store, np.random.default_rng(0).permutation(len(names)))
    number = {label: k for k, label in enumerate(catalog.classes)}
    rows = np.flatnonzero(store.status == READ)
    labels = np.array([number[images.labels[each]] for each in names])
    return np.array(store.features[rows]), labels[rows], store.groups[rows]


def split(name: str, features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Split:
    drawn = np.random.default_rng(seed).permutation(np.unique(groups))
    is_test = np.isin(groups, drawn[: int(HELD_OUT * len(drawn))])
    pool = Pool(features[~is_test], groups[~is_test])
    return Split(name, pool, labels[~is_test], features[is_test], labels[is_test], int(labels.max()) + 1)


@dataclass
class Person:
    """Answers with the true class, sometimes with another one; never twice wrong about the same image."""

    labels: np.ndarray
    n_classes: int
    seed: int
    wrong_share: float = 0.0
    wrong: set[int] = field(default_factory=set)
    asked_again: set[int] = field(default_factory=set)
    n_again: int = 0

    def answer(self, question: Question) -> str:
        row = int(question.path)
        label = int(self.labels[row])
        if question.label is not None:
            self.n_again += 1
            self.asked_again.add(row)
            return str(label)
        rng = np.random.default_rng([self.seed, row])
        if rng.random() < self.wrong_share:
            self.wrong.add(row)
            label = (label + int(rng.integers(1, self.n_classes))) % self.n_classes
        return str(label)


def start_session(data: Split, folder: str, seed: int) -> TeachingSession:
    names = {f"{row:06d}": "" for row in range(len(data.labels))}
    return TeachingSession(Path(folder), TeachingImages(names, {}), data.pool, seed)


def by_questions(data: Split, seed: int, bar: float, wrong_share: float = 0.0) -> dict[str, Any]:
    """Let a person answer until the bar is reached."""
    person, curve, checks, milliseconds = Person(data.labels, data.n_classes, seed, wrong_share), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        session = start_session(data, folder, seed)
        n_learned = n_total = 0
        while n_learned < MIN_LABELS or (n_learned < MAX_LABELS and labels_needed(curve, bar) is None):
            questions = session.next(1)
            if not questions:
                break
            session.answer(questions[0].path, person.answer(questions[0]))
            if questions[0].label is not None:
                continue
            n_total += 1
            n_learned += questions[0].purpose == "train"
            started = time.perf_counter()
            model = session.model
            milliseconds.append(1e3 * (time.perf_counter() - started))
            classes = [int(name) for name in session.classes]
            if questions[0].purpose == "train" and n_learned % 5 == 0:
                curve.append((n_learned, data.accuracy(model, classes)))
            if n_total % 100 == 0:
                checks.append(check_estimate(data, session, classes, n_total))
        n_tests = len(session.labels) - n_learned
    return {
        "curve": curve,
        "checks": checks,
        "tests": n_tests,
        "learn_ms": float(np.median(milliseconds)),
        "wrong": len(person.wrong),
        "again": person.n_again,
        "brought_back": len(person.wrong & person.asked_again),
    }


def check_estimate(data: Split, session: TeachingSession, classes: list[int], n_total: int) -> dict[str, float]:
    """The session's estimate beside the accuracy on all images that were never learned from."""
    accuracy, model = session.metrics.accuracy, session.model
    assert model is not None
    features = np.concatenate([data.test_features, data.pool.features[session.test_rows]])
    labels = np.concatenate([data.test_labels, data.labels[session.test_rows]])
    true = float((np.array(classes)[model.scores(features).argmax(1)] == labels).mean())
    return {"labels": n_total, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n, "true": true}


def by_chance(data: Split, seed: list[int], bar: float) -> list[tuple[int, float]]:
    """The learning curve of images drawn at random, until the bar is reached."""
    order = np.random.default_rng(seed).permutation(len(data.labels))
    curve = []
    for n in range(5, len(order) + 1, 5):
        rows = order[:n]
        if n > MIN_LABELS and labels_needed(curve, bar) is not None:
            break
        if len(np.unique(data.labels[rows])) > 1:
            model = fit(data.pool.features[rows], data.labels[rows], data.n_classes, data.pool.groups[rows])
            curve.append((n, data.accuracy(model)))
    return curve


def labels_needed(curve: list[tuple[int, float]], bar: float) -> int | None:
    above = [accuracy >= bar for _, accuracy in curve]
    for k in range(len(above) - CONSECUTIVE + 1):
        if all(above[k : k + CONSECUTIVE]):
            return curve[k][0]
    return None


def measure(name: str, data: Split, seed: int) -> dict[str, Any]:
    """A row: labels needed, wrong answers brought back, estimates."""
    full = data.accuracy(fit(data.pool.features, data.labels, data.n_classes, data.pool.groups))
    bar = PART_OF_FULL * full
    asked = by_questions(data, seed, bar)
    noisy = by_questions(data, seed, 0.0, WRONG)
    chances = [by_chance(data, [seed, draw], bar) for draw in range(DRAWS)]
    needed = [labels_needed(curve, bar) for curve in chances]
    return {
        "set": name,
        "seed": seed,
        "full": full,
        "needed": labels_needed(asked["curve"], bar),
        "needed_at_random": None if None in needed else round(statistics.fmean(filter(None, needed))),
        "curve": [asked["curve"], chances[0]],
        "checks": asked["checks"],
        "tests": asked["tests"],
        "learn_ms": asked["learn_ms"],
        **{key: noisy[key] for key in ("wrong", "again", "brought_back")},
        "checks_noisy": noisy["checks"],
    }


def write_page(rows: list[dict], file: Path) -> None:
    """The tables as Markdown."""
    lines = [
        "| data set | all labels | labels needed, by questions | at random | ratio | wrong answers brought back | "
        "asked again |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        needed, chance = ([row[key] for row in own] for key in ("needed", "needed_at_random"))
        ratio = np.mean(needed) / np.mean(chance) if all(needed) and all(chance) else None
        wrong, back, again = (sum(row[key] for row in own) for key in ("wrong", "brought_back", "again"))
        lines.append(
            f"| {name} | {np.mean([row['full'] for row in own]):.1%} | {_numbers(needed)} | {_numbers(chance)} | "
            f"{'–' if ratio is None else f'{ratio:.2f}'} | {back} of {wrong} ({back / max(wrong, 1):.0%}) | {again} |"
        )
    lines += ["", "| data set | estimates | true accuracy within the 95 % interval | mean width |", "|---|---|---|---|"]
    for name in [*dict.fromkeys(row["set"] for row in rows), "all"]:
        checks = [check for row in rows if name in ("all", row["set"]) for check in row["checks"]]
        inside = [check["low"] <= check["true"] <= check["high"] for check in checks]
        width = np.mean([check["high"] - check["low"] for check in checks])
        lines.append(f"| {name} | {len(checks)} | {np.mean(inside):.0%} | {100 * width:.0f} points |")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_curves(rows: list[dict[str, Any]]) -> str:
    """The learning curves as SVG: a panel for each set, the mean over the splits, by questions and at random."""
    width, height, left, top = 250, 190, 44, 34
    sets = list(dict.fromkeys(row["set"] for row in rows))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(sets) * (width + 20)} {height + 70}" '
        'font-family="system-ui,sans-serif" font-size="12" role="img" aria-label="Accuracy over labels, by questions '
        'and at random">',
        "<style>.q{stroke:#0b62a4}.r{stroke:#b8500c;stroke-dasharray:5 4}path{fill:none;stroke-width:2}"
        "text{fill:#57606a}.g{stroke:#8b949e;stroke-width:.7}@media (prefers-color-scheme:dark){text{fill:#a4adb7}"
        ".q{stroke:#6db3f2}.r{stroke:#f0964f}}</style>",
    ]
    for number, name in enumerate(sets):
        own = [row for row in rows if row["set"] == name]
        means = [_mean_curve([row["curve"][k] for row in own]) for k in (0, 1)]
        most = min(max(n for n, _ in curve) for curve in means)
        bar = PART_OF_FULL * statistics.fmean(row["full"] for row in own)
        x0 = number * (width + 20) + left
        parts.append(f'<text x="{x0}" y="16" font-weight="600">{name}</text>')
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = top + height * (1 - share)
            parts.append(f'<path class="g" d="M{x0} {y:.1f}h{width - left}"/>')
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
        y = top + height * (1 - bar)
        parts.append(f'<path class="g" stroke-dasharray="2 3" d="M{x0} {y:.1f}h{width - left}"/>')
        for kind, curve in zip("qr", means, strict=True):
            points = [(x0 + (width - left) * n / most, top + height * (1 - a)) for n, a in curve if n <= most]
            parts.append(f'<path class="{kind}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>')
        parts.append(f'<text x="{x0 + width - left}" y="{top + height + 16}" text-anchor="end">{most:,} labels</text>')
    y = height + top + 32
    parts.append(f'<path class="q" d="M{left} {y}h24"/><text x="{left + 30}" y="{y + 4}">by questions</text>')
    parts.append(f'<path class="r" d="M{left + 130} {y}h24"/><text x="{left + 160}" y="{y + 4}">at random</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _mean_curve(curves: list[list[list[float]]]) -> list[tuple[int, float]]:
    """The mean accuracy at each number of labels that all curves have."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for n, accuracy in curve:
            values.setdefault(int(n), []).append(accuracy)
    return [(n, statistics.fmean(some)) for n, some in sorted(values.items()) if len(some) == len(curves)]


def _numbers(values: list[int | None]) -> str:
    return ", ".join("not reached" if value is None else f"{value:,}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    log, rows = options.work / "teach.jsonl", []
    for image_set in find_sets(options.sets, options.data, options.work, None):
        with runtime.torch_settings():
            arrays = load(image_set.name, image_set.folder, options.work)
        for seed in range(options.seeds):
            row = measure(image_set.name, split(image_set.name, *arrays, seed), seed)
            rows.append(row)
            with log.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
            shown = ("set", "seed", "full", "needed", "needed_at_random", "wrong", "brought_back", "again", "learn_ms")
            print({key: row[key] for key in shown}, flush=True)
    if options.page:
        write_page(rows, options.page)
        options.page.with_suffix(".svg").write_text(draw_curves(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
