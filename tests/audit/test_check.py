"""`fieldmark check`: what is planted is found, and what somebody decides about it is what trains."""

import csv
import json
import shutil
import zipfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted import plant

from fieldmark.audit import label_errors
from fieldmark.audit.check import check
from fieldmark.audit.report import PathGroups
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.decisions import apply_decisions, apply_split_file
from fieldmark.data.readers import read_catalog
from fieldmark.report.check_page import write_check


def pairs(clusters: PathGroups) -> set[frozenset[str]]:
    return {frozenset(pair) for cluster in clusters for pair in combinations(cluster, 2)}


def test_planted_near_duplicates_are_found(birds100, tmp_path):
    truth = plant(birds100 / "train", tmp_path / "photos", near=100, most=1200)
    found = check(tmp_path / "photos", Reporter(quiet=True), quick=True).report
    assert found.label_errors is None
    together = pairs(found.near_duplicates + found.duplicates)
    planted = [frozenset(pair) for pairs in truth.near.values() for pair in pairs]
    assert len(planted) == 100 and sum(pair in together for pair in planted) >= 95
    copies = {path for pair in planted for path in pair if "/copy-" in path}
    assert len([pair for pair in together if not pair & copies]) <= 6


@pytest.fixture(scope="module")
def mislabelled(birds100, tmp_path_factory):
    """Twelve species of thirty photos, 18 of which lie in a wrong folder: the folder, the truth, what check found."""
    root = tmp_path_factory.mktemp("mislabelled")
    for species in sorted(folder.name for folder in (birds100 / "train").iterdir())[:12]:
        shutil.copytree(birds100 / "train" / species, root / "some" / species)
    truth = plant(root / "some", root / "photos", near=0, wrong=18)
    return root / "photos", truth.wrong, check(root / "photos", Reporter(quiet=True))


def test_planted_label_errors_lie_on_top(mislabelled):
    _, wrong, found = mislabelled
    ranking = found.label_ranking
    top = {quality.path for quality in ranking[: round(0.075 * len(ranking))]}
    assert len(ranking) == found.report.n_images
    assert len(top & wrong.keys()) >= 0.9 * len(wrong)
    flagged = {error.path: error.suggested for error in found.report.label_errors}
    assert sum(flagged.get(path) == label for path, label in wrong.items()) >= 0.7 * len(wrong)
    assert any("likely label errors: " in warning for warning in found.report.warnings)


def test_a_page_and_a_table_to_decide_in(mislabelled, tmp_path):
    photos, wrong, found = mislabelled
    page, decisions, ranking = write_check(found, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "Likely label errors" in text and text.count("<img") >= len(found.report.label_errors)
    assert "http" not in text.replace("http://www.w3.org", "")
    with decisions.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} >= {error.path for error in found.report.label_errors}
    assert len(ranking.read_text(encoding="utf-8").splitlines()) == 1 + found.report.n_images

    before = read_catalog(photos)
    assert [photo.label for photo in apply_decisions(before, decisions).photos] == [
        photo.label for photo in before.photos
    ]
    for row in rows:
        row["decision"] = "relabel" if row["path"] in wrong else "exclude"
        row["to"] = wrong.get(row["path"], "")
    with decisions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    after = {photo.path: photo.label for photo in apply_decisions(before, decisions).photos}
    listed = {row["path"] for row in rows}
    assert not {path for path in wrong.keys() & listed if after[path] != wrong[path]}
    assert not (listed - wrong.keys()) & after.keys()


def test_out_of_fold_means_out_of_group(monkeypatch):
    """A photo's own group is never among those that its judge has learned from."""
    rng = np.random.default_rng(0)
    said, groups = np.arange(60) % 3, (np.arange(60) // 2).tolist()
    features = rng.normal(size=(60, 4)).astype(np.float32)
    features[:, 3] = np.arange(60)  # tells who it is
    learned: list[set[int]] = []

    def logistic(rows, *_, weight_decays):
        learned.append({groups[int(k)] for k in rows[:, 3]})

    monkeypatch.setattr(label_errors, "fit_logistic_regression", logistic)
    label_errors.cross_val_probabilities(features, said.astype(np.int64), groups, 3)
    everyone = set(groups)
    assert len(learned) == 5 and all(everyone - some for some in learned)
    left_out = [everyone - some for some in learned]
    assert sum(map(len, left_out)) == len(everyone) and set.union(*left_out) == everyone


def test_too_few_to_judge():
    assert label_errors.rank_labels([0, 1], np.zeros((2, 3), np.float32), ["a", "b"], ["1", "2"], [0, 1]) == ()


@pytest.mark.parametrize("each", [2, 3, 4])
def test_small_classes_are_judged_all_the_same(each):
    """Fewer photos of each class than there are folds; of one class all are in one group, and nobody could say it."""
    n = 5 * each
    said, groups = [f"{k // each}" for k in range(n)], [*range(n - each), *[n] * each]
    features = np.eye(5, dtype=np.float32)[np.arange(n) // each] + 0.01 * np.arange(n, dtype=np.float32)[:, None]
    found = label_errors.rank_labels(range(n), features, said, [f"{k}.jpg" for k in range(n)], groups)
    assert {quality.label for quality in found} == (
        {"0", "1", "2", "3"} if 4 * each >= label_errors.MIN_IMAGES else set()
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("disc/00.jpg,drop,", "'drop' is none of exclude, relabel and keep"),
        ("disc/no.jpg,exclude,", "decision 1: disc/no.jpg is not among the photos"),
        ("disc/00.jpg,relabel,", "relabel disc/00.jpg to what"),
        ("disc/00.jpg,relabel,a\ndisc/00.jpg,relabel,b", "decision 2: disc/00.jpg cannot be both a and b"),
    ],
)
def test_decisions_that_cannot_be_done(small_photos, tmp_path, line, message):
    (tmp_path / "d.csv").write_text("path,decision,to\n" + line + "\n")
    with pytest.raises(FieldmarkError, match=message):
        apply_decisions(read_catalog(small_photos), tmp_path / "d.csv")


def test_a_split_file_is_kept_to(small_photos, tmp_path):
    catalog = read_catalog(small_photos)
    chosen = {photo.path: ("train", "val", "test")[k % 3] for k, photo in enumerate(catalog.photos[:30])}
    lines = [f'"{path}",,{side}' for path, side in chosen.items()]
    (tmp_path / "split.csv").write_text("path,label,split\n" + "\n".join([*lines, "gone.jpg,x,test"]) + "\n")
    found = apply_split_file(catalog, tmp_path / "split.csv")
    assert {photo.path: photo.split for photo in found.photos} == chosen
    assert found.warnings[0].startswith("18 photos not listed in") and found.warnings[1].startswith("1 photo of")
    (tmp_path / "split.csv").write_text("path,label,split\ngone.jpg,x,test\n")
    with pytest.raises(FieldmarkError, match="names no photo of"):
        apply_split_file(catalog, tmp_path / "split.csv")


def test_the_command(small_photos, tmp_path, command):
    done = command("check", small_photos, "--quick", "--out", tmp_path / "found", "--json")
    assert done.code == 0 and done.json["label_errors"] is None
    assert {file.name for file in (tmp_path / "found").iterdir()} == {"check.html", "decisions.csv"}
    again = command("check", small_photos, "--quick", "--out", tmp_path / "found")
    assert "exists: give another --out" in again.refusal


def test_decisions_train(small_photos, tmp_path, here, tiny_options):
    first = "disc/00.jpg,exclude,\nsquare/00.jpg,relabel,disc\n"
    (tmp_path / "decisions.csv").write_text("path,decision,to\n" + first)
    options = ("--apply", tmp_path / "decisions.csv", "--group-by", r"/(\d)", "--out", tmp_path / "run", "--json")
    done = here("train", small_photos, *options, *tiny_options)
    assert done.code == 0, done.err
    with (tmp_path / "run" / "split.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert "disc/00.jpg" not in rows and rows["square/00.jpg"]["label"] == "disc"
    sides: dict[str, set[str]] = {}
    for row in rows.values():
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert any("decisions.csv: 1 photo excluded, 1 relabelled" in text for text in done.json["warnings"])
    again = here(
        *("train", small_photos, "--split-file", tmp_path / "run" / "split.csv", "--out", tmp_path / "again", "--json"),
        *tiny_options,
    )
    assert again.code == 0, again.err
    kept = json.loads((tmp_path / "again" / "metrics.json").read_text())["test"]["n"]
    assert kept == done.json["test"]["n"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--folds", 1), "give 2 folds or more"),
        (("--folds", 3, "--fold", 4), "give 2 folds or more, and one of them"),
        (("--fold", 1), "give 2 folds or more, and one of them"),
        (("--folds", 3, "--split-file", "x.csv"), "leave --split-file out"),
        (("--folds", 3, "--batch", 31, "--accumulate", 2), "cannot share evenly"),
    ],
)
def test_folds_that_cannot_be(small_photos, tmp_path, here, words, message):
    assert message in here("train", small_photos, "--out", tmp_path / "run", *words).refusal
    assert not (tmp_path / "run").exists()


def test_folds(small_photos, tmp_path, here, tiny_options):
    words = ("train", small_photos, "--folds", "2", "--out", tmp_path / "run", "--json", *tiny_options)
    done = here(*words)
    assert done.code == 0, done.err
    tested: list[str] = []
    for k in (1, 2):
        with (tmp_path / "run" / f"fold-{k}" / "split.csv").open(encoding="utf-8", newline="") as file:
            tested += [row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    assert sorted(tested) == sorted(photo.path for photo in read_catalog(small_photos).photos)
    accuracies = [fold["test"]["accuracy"] for fold in done.json["folds"]]
    assert done.json["test"]["n"] == 48 and min(accuracies) <= done.json["test"]["accuracy"] <= max(accuracies)
    right = sum(fold["test"]["accuracy"] * fold["test"]["n"] for fold in done.json["folds"])
    assert done.json["test"]["accuracy"] == pytest.approx(right / 48) and len(done.json["test"]["per_class"]) == 3
    known = sum(fold["test"]["coverage"] * fold["test"]["n"] for fold in done.json["folds"])
    assert done.json["test"]["coverage"] == pytest.approx(known / 48)  # each by the threshold of its own fold
    assert Path(done.json["bundle"]).is_dir() and (tmp_path / "run" / "report.html").is_file()
    assert here(*words, "--resume").json == done.json


def test_a_zip_trains_like_its_folder(small_photos, tmp_path, here, tiny_options):
    """Same photos, same split, same figures; the report shows them, and evaluate finds them again."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(small_photos.rglob("*.jpg")):
            archive.write(file, Path("any name") / file.relative_to(small_photos))
    runs = [
        here("train", photos, "--out", tmp_path / name, "--json", *tiny_options)
        for photos, name in ((small_photos, "plain"), (tmp_path / "photos.zip", "zipped"))
    ]
    assert runs[0].code == runs[1].code == 0, runs[1].err
    assert runs[0].json["test"] == runs[1].json["test"] and runs[0].json["fingerprint"] == runs[1].json["fingerprint"]
    pages = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("plain", "zipped")]
    assert pages[0].count("data:image/jpeg") == pages[1].count("data:image/jpeg") > 0
    again = here("evaluate", tmp_path / "zipped", "--json")
    assert again.json["accuracy"] == runs[1].json["test"]["accuracy"]


def test_boxes_are_trained_on_and_judged_by(small_photos, tmp_path, here, tiny_options):
    """What lies outside of the boxes makes no difference, neither for the training nor for its evaluation."""
    torch, load_file = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").load_file
    networks = []
    for background in ("white", "black"):
        root = tmp_path / background
        lines = ["path,label,box"]
        for file in sorted(small_photos.rglob("*.jpg")):
            with Image.open(file) as opened:
                image = opened.convert("RGB").resize((80, 60))
            canvas = Image.new("RGB", (120, 100), background)
            canvas.paste(image, (20, 30))
            name = f"{file.parent.name.replace(', ', '-')}-{file.stem}.png"
            root.mkdir(exist_ok=True)
            canvas.save(root / name)
            lines.append(f'{name},{file.parent.name.replace(", ", "-")},"20,30,80,60"')
        (root / "list.csv").write_text("\n".join(lines))
        words = ("--crop-boxes", "--out", tmp_path / f"run-{background}", "--json", *tiny_options)
        done = here("train", root / "list.csv", *words)
        assert done.code == 0, done.err
        assert here("evaluate", tmp_path / f"run-{background}", "--json").json["loss"] == done.json["test"]["loss"]
        networks.append(load_file(tmp_path / f"run-{background}" / "bundle" / "model.safetensors"))
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())
    assert "come without boxes" in here("train", small_photos, "--crop-boxes", "--out", tmp_path / "x").refusal
