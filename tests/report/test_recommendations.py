"""Each rule of "What to do next" fires where its evidence is there, and is silent where it is chance."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from findings import (
    CONFUSED,
    ERRORS,
    FLAT,
    NO_ISSUES,
    RARE_WEAK,
    SMALL,
    WIDE,
    audited,
    curve,
    decided,
    epochs,
    found,
    leaked,
    metadata,
    metrics_of,
    uneven,
)
from told import Page, english, make_run, write_csv

from fieldmark.cli.main import app
from fieldmark.core.i18n import ENGLISH, get_language
from fieldmark.data.catalog import UnreadableFile
from fieldmark.recipes.recipe import Recipe
from fieldmark.report import chart_notes
from fieldmark.report.recommendations.findings import Findings, load_findings
from fieldmark.report.recommendations.recommend import MAX_RECOMMENDATIONS, PREREQUISITES, RULES, USELESS, recommend
from fieldmark.report.recommendations.recommendation import Recommendation
from fieldmark.report.run_metrics import FoldMetrics, RunMetrics
from fieldmark.report.run_report import write_report

ZH = get_language("zh")
CASES: dict[str, tuple[Callable[[], Findings], Callable[[], Findings]]] = {
    "leaks": (lambda: leaked("train"), lambda: leaked("test")),
    "no_test": (lambda: found(has_test=False), lambda: found(metrics_of(FLAT))),
    "untested": (
        lambda: found(metrics_of([[190, 5, 5], [5, 190, 5], [0, 0, 0]])),
        lambda: found(metrics_of(FLAT)),
    ),
    "baseline": (lambda: found(metrics_of([[170, 10], [18, 2]])), lambda: found(metrics_of([[350, 10], [4, 36]]))),
    "few_images": (lambda: found(metrics_of(FLAT), images=29), lambda: found(metrics_of(FLAT), images=30)),
    "conflicts": (lambda: audited(conflicts=(("a/1.jpg", "b/1.jpg"),)), lambda: audited(duplicates=(("a", "b"),))),
    "labels": (lambda: audited(label_errors=ERRORS), lambda: audited(label_errors=())),
    "unchecked_labels": (lambda: audited(label_errors=None), lambda: audited(label_errors=())),
    "shortcut": (lambda: audited(metadata=metadata(0.97)), lambda: audited(metadata=metadata(0.5))),
    "finetune": (
        lambda: found(metrics_of(FLAT), history=epochs(probe=0.9)),
        lambda: found(metrics_of(FLAT), history=epochs(0.9, 0.9, probe=0.9)),
    ),
    "budget": (
        lambda: found(metrics_of(FLAT), history=epochs(probe=0.9), recipe=Recipe(budget="2m", epochs=0)),
        lambda: found(metrics_of(FLAT), history=epochs(0.9, probe=0.9), recipe=Recipe(budget="2m")),
    ),
    "longer": (
        lambda: found(metrics_of(FLAT), validation=metrics_of(FLAT), history=epochs(0.7, 0.75, 0.8, 0.9)),
        lambda: found(metrics_of(FLAT), validation=metrics_of(FLAT), history=epochs(0.87, 0.88, 0.89, 0.9)),
    ),
    "confused": (lambda: found(metrics_of(CONFUSED)), lambda: found(metrics_of(FLAT))),
    "more_images": (
        lambda: found(metrics_of(FLAT), learning_curve=curve(0.03, rises=True)),
        lambda: found(metrics_of(FLAT), learning_curve=curve(0.03, rises=False)),
    ),
    "class_images": (
        lambda: found(metrics_of(RARE_WEAK), counts={"class 0": 200, "class 1": 200, "class 2": 40}),
        lambda: found(metrics_of(RARE_WEAK), images=200),
    ),
    "imbalance": (
        lambda: found(metrics_of(RARE_WEAK), counts={"class 0": 200, "class 1": 200, "class 2": 40}),
        lambda: found(metrics_of(FLAT), counts={"class 0": 200, "class 1": 200, "class 2": 40}),
    ),
    "threshold": (lambda: decided(20), lambda: decided(1)),
    "rejection_off": (
        lambda: found(metrics_of(WIDE), validation=metrics_of([[3, 1], [0, 15]])),
        lambda: found(metrics_of(WIDE), validation=metrics_of([[4, 1], [0, 15]])),
    ),
    "coverage": (
        lambda: found(metrics_of(FLAT, rejected=150), validation=metrics_of(FLAT, rejected=48)),
        lambda: found(metrics_of(FLAT, rejected=60), validation=metrics_of(FLAT, rejected=48)),
    ),
    "small_test": (lambda: found(metrics_of(SMALL), images=200), lambda: found(metrics_of(FLAT), images=200)),
    "calibration": (lambda: found(metrics_of(FLAT, 0.7)), lambda: found(metrics_of(FLAT))),
    "review": (
        lambda: found(metrics_of(FLAT, rejected=10, wrong_rejected=10)),
        lambda: found(metrics_of(FLAT, rejected=20, wrong_rejected=1)),
    ),
    "unreadable": (lambda: audited(unreadable=(UnreadableFile("x.jpg", "empty"),)), lambda: audited()),
    "no_longer_training": (
        lambda: found(metrics_of(FLAT), history=epochs(0.8, 0.8, 0.8, probe=0.9), best_epoch=1),
        lambda: found(metrics_of(FLAT), history=epochs(0.8, probe=0.9), best_epoch=1),
    ),
    "no_more_images": (
        lambda: found(metrics_of(FLAT), learning_curve=curve(0.001, rises=False)),
        lambda: found(metrics_of(FLAT), learning_curve=curve(0.001, rises=False, n=100, changed=0.1)),
    ),
}


def by_kind(findings: Findings, language: Any = ENGLISH) -> dict[str, Recommendation]:
    """What all rules find, without the limit of the page."""
    rules = (*PREREQUISITES, *RULES, *USELESS)
    return {one.kind: one for rule in rules for one in rule(findings, language)}


@pytest.mark.parametrize("kind", CASES)
def test_a_rule_fires_on_evidence_and_not_on_chance(kind: str):
    fires, is_silent = CASES[kind]
    recommendation = by_kind(fires())[kind]
    assert recommendation.text and recommendation.reason
    assert len(re.findall(r"\w+", f"{recommendation.text} {recommendation.reason}")) <= 60
    assert kind not in by_kind(is_silent())


@pytest.mark.parametrize("kind", CASES)
def test_a_recommendation_is_translated(kind: str):
    one = by_kind(CASES[kind][0](), ZH)[kind]
    names = ["decisions.csv", "class", "JPEG", "known", "False", "jpg", "m", "a/", "b/", "x."]
    assert not english(one.text + one.reason, names), one


@pytest.mark.parametrize("kind", CASES)
def test_a_command_is_one_that_the_command_line_takes(kind: str):
    cli = typer.main.get_command(app)
    for command in by_kind(CASES[kind][0]())[kind].commands:
        program, verb, *words = shlex.split(command)
        assert program == "fieldmark"
        subcommand = cli.get_command(typer.Context(cli), verb)  # type: ignore[attr-defined]
        context = subcommand.make_context(verb, words)
        assert context.params.get("out") != "RUN", "the run that is there is refused"
        assert not context.params.get("resume")


def test_every_rule_has_a_case():
    assert len(CASES) == len({*PREREQUISITES, *RULES, *USELESS}) + 4  # no_test, longer and more_images have more kinds


# ---- what a claim rests on


def test_images_of_one_group_are_one_trial():
    alone, grouped = metrics_of(CONFUSED), metrics_of(CONFUSED, groups=np.arange(600) // 40)
    assert "confused" in by_kind(found(alone)) and "confused" not in by_kind(found(grouped))


def test_many_classes_are_not_confused_by_chance():
    rng = np.random.default_rng(0)
    matrix = np.diag(np.full(40, 8))
    for row in range(40):
        for other in rng.integers(1, 40, 2):
            matrix[row, (row + other) % 40] += 1
    assert "confused" not in by_kind(found(metrics_of(matrix.tolist())))


def test_of_many_classes_few_are_called_weak_by_chance():
    rng = np.random.default_rng(1)
    recalled = rng.binomial(10, 0.8, 100)
    matrix = np.diag(recalled)
    matrix[np.arange(100), (np.arange(100) + 1) % 100] += 10 - recalled
    test = metrics_of(matrix.tolist())
    assert test.per_class and min(row.recall for row in test.per_class.values()) <= 0.5
    counts = {name: 20 if row.recall < 0.7 else 200 for name, row in test.per_class.items()}
    assert "class_images" not in by_kind(found(test, counts=counts))


def test_a_perfect_test_asks_for_no_better_classifier():
    perfect = metrics_of([[200, 0, 0], [0, 200, 0], [0, 0, 200]])
    history, growing = epochs(0.7, 0.75, 0.8, 0.9), curve(0.03, rises=True)
    kinds = by_kind(found(perfect, validation=metrics_of(FLAT), history=history, learning_curve=growing))
    assert not {"longer", "more_images", "confused", "class_images"} & set(kinds)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"history": epochs(0.9, 0.8, 0.8, 0.8), "recipe": Recipe(epochs=9, patience=3)}, "the last 3 epochs"),
        ({"history": epochs(0.89, 0.9, train=0.999)}, "99.9\xa0% of the training images"),
        (
            {"history": epochs(0.9, 0.9), "recipe": Recipe(budget="10m", epochs=2), "seconds": {"phase2": 60.0}},
            "1 min 0 s",
        ),
    ],
)
def test_why_a_longer_training_would_not_help(changes: dict[str, Any], reason: str):
    useless = by_kind(found(metrics_of(FLAT), validation=metrics_of(FLAT), **changes))["no_longer_training"]
    assert reason in useless.reason and not useless.helps
    settings = {"history": epochs(0.88, 0.89, 0.9), "recipe": Recipe(epochs=3)}
    assert "no_longer_training" not in by_kind(found(metrics_of(FLAT), validation=metrics_of(FLAT), **settings))


def test_overfitting_is_no_reason_to_train_longer():
    rising = epochs(0.7, 0.75, 0.8, 0.9, train=0.97)
    assert "longer" not in by_kind(found(metrics_of(FLAT), validation=metrics_of(FLAT), history=rising))


def test_few_images_are_said_first_and_a_short_curve_says_nothing_against_more():
    flat = curve(0.001, rises=False)
    few = found(metrics_of(WIDE), images=7, learning_curve=flat, recipe=Recipe(folds=5))
    first, *others = recommend(few)
    assert first.text == "Take more images: 7 a class in training are few."
    assert first.reason == "30 a class give a first classifier."
    assert not {"no_more_images", "more_images", "small_test"} & {one.kind for one in others}
    reason = by_kind(found(metrics_of(FLAT), images=7))["few_images"].reason
    assert "with about 140 a class, training and test together, each has 20 test images" in reason
    assert "few_images" not in by_kind(found(metrics_of(FLAT), counts={"class 0": 5, "class 1": 30, "class 2": 30}))
    short = replace(flat, points=tuple(replace(point, photos=19) for point in flat.points))
    assert "no_more_images" in by_kind(found(metrics_of(FLAT), learning_curve=flat))
    assert "no_more_images" not in by_kind(found(metrics_of(FLAT), learning_curve=short))


def test_each_recommendation_trains_into_a_folder_of_its_own():
    issues = replace(NO_ISSUES, conflicts=(("a", "b"),), label_errors=ERRORS)
    shown = recommend(
        replace(found(metrics_of(WIDE), images=100, history=epochs(probe=0.9), audit=issues), run="my run")
    )
    by_folder: dict[str, set[str]] = {}
    for command in (command for one in shown for command in one.commands if command.startswith("fieldmark train")):
        by_folder.setdefault(shlex.split(command)[shlex.split(command).index("--out") + 1], set()).add(command)
    assert set(by_folder) == {"my run-2", "my run-3", "my run-4"}  # decisions (of both kinds), folds, fine-tuning
    assert all(len(commands) == 1 for commands in by_folder.values())


def test_a_confidence_that_is_right_on_average_is_called_neither_too_high_nor_too_low():
    assert by_kind(uneven(100))["calibration"].reason.startswith("On average it agrees with the accuracy, but in")
    assert "calibration" not in by_kind(uneven(24))
    assert by_kind(found(metrics_of(FLAT, 0.7)))["calibration"].reason.startswith("It is too low")


def test_conflicts_come_before_few_images():
    few = found(metrics_of(FLAT), images=7, audit=replace(NO_ISSUES, conflicts=(("a", "b"),), label_errors=ERRORS))
    assert [one.kind for one in recommend(few)][:3] == ["conflicts", "few_images", "labels"]


def test_rejection_is_off_where_one_fold_has_too_few_validation_images():
    few, enough = metrics_of([[6, 0], [0, 6]]), metrics_of([[10, 0], [0, 10]])
    folds = [FoldMetrics(enough, enough, ""), FoldMetrics(enough, few, "")]
    off = by_kind(found(metrics_of(FLAT), folds=folds))["rejection_off"]
    assert off.reason.startswith("There are 12 validation images; at least 20") and "3 classes" in off.reason
    assert "rejection_off" not in by_kind(found(metrics_of(FLAT), folds=folds[:1]))


def test_a_small_test_comes_first_and_asks_for_folds_or_images():
    wide = found(metrics_of(WIDE), images=100, audit=replace(NO_ISSUES, label_errors=ERRORS))
    first = recommend(wide)[0]
    assert first.kind == "small_test" and "--folds 5" in first.commands[0]
    folded = by_kind(replace(wide, recipe=Recipe(folds=5)))["small_test"]
    assert re.match(r"Label about \d+ more images", folded.text) and not folded.commands
    narrower = replace(wide, metrics=replace(wide.metrics, test=metrics_of(SMALL)))
    assert recommend(narrower)[0].kind == "labels"


def test_the_budget_that_is_enough_is_that_of_the_log(tmp_path):
    make_run(tmp_path, ["a", "b"], epochs=2)
    (tmp_path / "recipe.yaml").write_text("epochs: 0\nbudget: 1m\n")
    findings = load_findings(tmp_path)
    assert "--budget 570s" in by_kind(findings)["budget"].commands[0]
    (tmp_path / "log.txt").write_text("3 s left, too little; --budget 270s would be enough for it\n")
    assert "--budget 270s" in by_kind(load_findings(tmp_path))["budget"].commands[0]


def test_a_command_keeps_the_settings_of_the_run():
    metrics = RunMetrics(command="fieldmark train 'my photos' --out=RUN --epochs 3 --json --augment strong --resume")
    findings = Findings(metrics=metrics, photos="/my photos", recipe=Recipe(group_by="(p\\d+)", apply="d.csv"))
    assert shlex.split(findings.train_command(epochs=6)) == shlex.split(
        "fieldmark train 'my photos' --augment strong --out RUN-2 --epochs 6"
    )
    assert shlex.split(findings.check_command()) == [
        *("fieldmark", "check", "/my photos", "--group-by", "(p\\d+)", "--apply", "d.csv", "--out", "RUN-check")
    ]
    demo = replace(findings, metrics=RunMetrics(command="fieldmark demo --out RUN"))
    assert demo.train_command().startswith("fieldmark train '/my photos' --recipe RUN/recipe.yaml")


def test_at_most_six_are_shown_and_then_what_would_not_help():
    issues = {"label_errors": ERRORS, "conflicts": (("a", "b"),), "metadata": metadata(0.97)}
    issues["unreadable"] = (UnreadableFile("x.jpg", "empty"),)
    rich = found(
        metrics_of(CONFUSED, 0.6, wrong_rejected=40),
        audit=replace(NO_ISSUES, **issues),
        history=epochs(probe=0.9),
        learning_curve=curve(0.001, rises=False),
    )
    shown = recommend(rich)
    assert [one.helps for one in shown] == [True] * MAX_RECOMMENDATIONS + [False]
    assert [one.kind for one in shown[:3]] == ["conflicts", "labels", "shortcut"]


# ---- on the page


def test_the_page_begins_with_what_to_do_and_links_to_its_sections(tmp_path):
    make_run(tmp_path, ["a", "b", "c"])
    page = Page(write_report(tmp_path, None)[0])
    assert page.text.index("What to do next") < page.text.index("Check labels (1)") < page.text.index("Metrics")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    targets = {(attributes["href"] or "") for tag, attributes in page.tags if tag == "a"}
    assert targets and targets <= {f"#{name}" for name in ids}
    assert "About 92 of 100 images are classified correctly." in page.text


def test_nothing_to_do_is_said(tmp_path):
    metrics = make_run(tmp_path, [f"class {k}" for k in range(3)])
    (tmp_path / "audit.json").unlink()
    rows = [(f"class {k}/{n}.jpg", f"class {k}", "train") for k in range(3) for n in range(30)]
    write_csv(tmp_path / "split.csv", "path,label,split", rows)
    flat = metrics_of(FLAT).to_dict()
    changed = {"test": flat, "validation": flat, "learning_curve": None}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | changed))
    assert not [one for one in recommend(load_findings(tmp_path)) if one.helps]
    page = Page(write_report(tmp_path, None)[0])
    assert "Nothing needs to be done" in page.text and "OTHER_PHOTOS" in page.text


def test_a_real_run_has_the_section_the_notes_and_the_list(small_run: Path):
    page = Page(small_run / "report.html")
    findings = load_findings(small_run)
    shown = recommend(findings)
    assert "What to do next" in page.text and shown
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert [one["kind"] for one in metrics["next"]] == [one.kind for one in shown]
    for note in filter(None, chart_notes.describe_all(findings, ENGLISH).values()):
        assert re.sub(r"\s+", " ", note) in page.text
    assert "Next" in (small_run / "log.txt").read_text()
