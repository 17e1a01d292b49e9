"""What scripts rely on: JSON alone on stdout, exit codes 0, 1 and 2, one line for people when nothing could be done."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from containers import mirrored

import fieldmark
from fieldmark.recipes.recipe import Recipe

VERBS = ("check", "teach", "train", "evaluate", "compare", "predict", "explain", "report", "zoo", "bench", "demo")
FIGURES = {"accuracy", "top5", "balanced_accuracy", "macro_f1", "ece", "n", "ci95", "per_class", "confusion"}
FIGURES |= {"coverage", "threshold"}
ANSWER = {"path", "label", "confidence", "known", "top", "model"}


# ---- help


def test_help_reads_well_and_lists_every_verb(command):
    done = command("--help")
    assert (done.code, done.err) == (0, "")
    lines = [line.strip("│ ") for line in done.out.splitlines()]
    assert all(sum(line.startswith(f"{verb} ") for line in lines) == 1 for verb in VERBS)
    assert all(f"─ {panel} ─" in done.out for panel in ("Data", "Train", "Evaluate", "Use", "Networks"))
    assert (
        not any(line.startswith(VERBS) and line.endswith("...") for line in lines)
        and max(map(len, done.out.splitlines())) <= 80
    )
    assert command().out == done.out  # nothing asked: what could be asked
    assert command("--version").out == f"fieldmark {fieldmark.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(here, verb):
    done = here(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out and "Traceback" not in done.out
    assert done.out.count(f"fieldmark {verb}") >= 3  # examples


def test_help_of_train_explains_every_setting(here):
    from fieldmark.recipes.recipe import Recipe, help_text, option_name

    def words(option: str) -> str:
        return " ".join(here("train", option).out.replace("│", " ").split())

    some, all_ = words("--help"), words("--help-all")
    for name in Recipe.model_fields:
        assert f" {option_name(name)} " in all_ and help_text(name)[:20].replace("`", "") in all_
    shown = [name for name in Recipe.model_fields if f" {option_name(name)} " in some]
    assert len(shown) < 15 and {"budget", "epochs", "backbone", "group_by"} <= set(shown)


def test_help_shows_only_options_that_do_something(here):
    assert "--epochs" not in here("look", "--help").out and "--augment" in here("look", "--help").out
    for verb in ("compare", "search"):
        assert not {"--folds", "--devices", "--nodes"} & set(here(verb, "--help-all").out.split())


def test_every_example_of_the_help_is_understood(here, monkeypatch):
    """Its options exist: each is parsed, and runs into what is not there."""
    examples = [
        line.strip().removeprefix("fieldmark ")
        for verb in VERBS
        for line in here(verb, "--help").out.splitlines()
        if line.strip().startswith(f"fieldmark {verb}") and verb not in ("demo", "zoo", "bench")
    ]
    assert len(examples) >= 3 * (len(VERBS) - 3)
    for example in examples:
        done = here(*shlex.split(example))
        assert done.code == 2 and "No such option" not in done.err and "--help" not in done.err, (example, done.err)


def test_colours_respect_no_color(command):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colour.search(command("--help", FORCE_COLOR="1").out)
    assert not colour.search(command("--help", FORCE_COLOR="1", NO_COLOR="1").out)


def test_help_imports_nothing_heavy():
    """How long it takes: benchmarks/startup.py."""
    code = "import sys; from fieldmark.cli import main; sys.argv[1:] = ['--help']\ntry: main.main()\n"
    code += "finally: print(*sorted({'torch', 'onnxruntime', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


# ---- check


def test_check(command, small_photos):
    done = command("check", small_photos, "--json")
    assert done.code == 0 and done.err == ""
    lists = {"unreadable", "duplicates", "near_duplicates", "conflicts", "leaks", "warnings"}
    assert done.json.keys() >= lists | {"classes", "photos", "label_errors"}
    assert done.json["classes"] == {"disc": 16, "square": 16, "cross, blue": 16} and done.json["photos"] == 48
    assert all(done.json[name] == [] for name in lists)


def test_check_with_something_to_see_to(here, small_photos, tmp_path):
    shutil.copytree(small_photos, tmp_path / "photos")
    shutil.copy(small_photos / "disc" / "00.jpg", tmp_path / "photos" / "square" / "twice.jpg")
    done = here("check", tmp_path / "photos", "--json")
    assert done.code == 1
    assert done.json["conflicts"] == done.json["duplicates"] == [["disc/00.jpg", "square/twice.jpg"]]
    assert "49  images" in here("check", tmp_path / "photos").out


# ---- train


def test_train(trained):
    run, done = trained
    assert done.code == 0, done.err
    found = done.json
    for part in ("test", "validation"):
        assert found[part].keys() >= {"accuracy", "top5", "n", "ci95"}
        assert found[part]["ci95"][0] <= found[part]["accuracy"] <= found[part]["ci95"][1]
    assert found["seconds"].keys() >= {"decode", "features", "phase1", "phase2", "evaluate", "report", "other"}
    assert Path(found["bundle"]) == run / "bundle" and Path(found["bundle"]).is_dir()
    assert sum(found["seconds"].values()) <= done.seconds
    doubts = "likely label error"  # so few images are hard to learn
    assert [text for text in found["warnings"] if doubts not in text] == []
    assert "Warning" not in done.err  # Python's, of libraries: nothing that a person could see to


def test_train_again_over_a_finished_run(here, trained, small_photos):
    run, done = trained
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert f"{run} exists" in here("train", small_photos, "--out", run).refusal
    again = here("train", small_photos, "--out", run, "--resume", "--json")
    assert again.code == 0 and again.json == done.json == json.loads((run / "metrics.json").read_text())
    same_words = here("train", small_photos, "--out", run, "--resume", "--json", "--image-size", 64, "--epochs", 1)
    assert same_words.json == done.json
    other_words = here("train", small_photos, "--out", run, "--resume", "--image-size", 96)
    assert "was started with --image-size 64, not 96" in other_words.refusal
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


WRONG = {
    "backbone": ("--backbone efficientnet_lite9", "did you mean efficientnet_lite"),
    "attention": ("--attention sea", "no attention 'sea'"),
    "setting of attention": ("--attention se(ration=4)", "did you mean ratio"),
    "after": ("--after mask", "STAGE:ATTENTION"),
    "stage": ("--after 9:mask", "9"),
    "head": ("--head bilinera", "did you mean bilinear"),
    "value of a head": ("--head bilinear(reduced=0)", "cannot build"),
    "choice": ("--augment wild", "--augment is 'wild', but can be none or flip-crop or standard or strong"),
    "kind": ("--epochs many", "'--epochs'"),
    "option": ("--epoch 3", "--epoch"),
    "recipe file": ("--recipe {here}/none.yaml", "cannot read the recipe"),
    "recipe name": ("--recipe classical", "the recipes that come with Fieldmark: "),
    "size to begin with": ("--image-size 64 --start-size 64", "--start-size is 64, but training images have 64 pixels"),
    "recipe key": ("--recipe {here}/key.yaml", "'epoch' is no setting of a recipe; epochs?"),
    "weights file": ("--weights {here}/none.safetensors", "none.safetensors"),
    "weights of others": ("--weights {here}/others.safetensors", "does not fit"),
    "no such published weights": ("--backbone resnet18_small --weights imagenet", "no published weights"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_words_are_refused_before_any_photo_is_read(here, small_photos, tmp_path, monkeypatch, what):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "key.yaml").write_text("epoch: 3")
    save_file({"x": torch.zeros(1)}, tmp_path / "others.safetensors")
    monkeypatch.setattr("fieldmark.data.image.read_file", lambda path: pytest.fail(f"{path} was read"))
    words, said = WRONG[what]
    options = words.replace("{here}", str(tmp_path)).split(" ")
    line = here("train", small_photos, "--out", tmp_path / "run", *options, "--json").refusal
    assert said in line
    assert not (tmp_path / "run").exists()


# ---- evaluate


def test_evaluate(command, small_run):
    done = command("evaluate", small_run, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json.keys() >= FIGURES
    told = json.loads((small_run / "metrics.json").read_text())["test"]
    assert {name: done.json[name] for name in FIGURES} == {name: told[name] for name in FIGURES}


def test_evaluate_on_other_classes(here, small_run, small_photos, tmp_path):
    mirrored(small_photos / "disc", tmp_path / "photos" / "disc")
    mirrored(small_photos / "square", tmp_path / "photos" / "star")
    done = here("evaluate", small_run, tmp_path / "photos", "--json")
    assert done.code == 1
    unknown, missing = done.json["warnings"]
    assert "star" in unknown and "cross, blue, square" in missing
    assert done.json["n"] == 16
    (tmp_path / "photos" / "disc").rename(tmp_path / "photos" / "moon")
    assert "is of a class of" in here("evaluate", small_run, tmp_path / "photos").refusal


# ---- predict


def test_predict_a_bad_photo_among_good_ones(command, small_run, small_photos, tmp_path):
    good, bad, gone = small_photos / "disc" / "03.jpg", tmp_path / "text.jpg", tmp_path / "gone.jpg"
    bad.write_text("hello")
    done = command(
        "predict", small_run, good, bad, small_photos / "square", gone, "--csv", tmp_path / "a.csv", "--json"
    )
    answers = done.json
    assert done.code == 1 and done.err == ""
    assert [a["path"] for a in answers[:2]] == [str(good), str(bad)] and answers[-1]["path"] == str(gone)
    assert answers[1] == {"path": str(bad), "error": "not a photo (text?)"} and "error" in answers[-1]
    assert len(answers) == 16 + 3 and all(a.keys() >= ANSWER for a in answers if "error" not in a)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [a["path"] for a in answers]
    for row, answer in zip(rows, answers, strict=True):
        assert row["error"] == answer.get("error", "") and row["label"] == answer.get("label", "")
        assert row["confidence"] == str(answer.get("confidence", "")) and row["model"] == answer.get("model", "")


def test_a_photo_gets_one_answer_everywhere(here, small_run, small_photos):
    folder = small_photos / "cross, blue"
    of_folder = here("predict", small_run, folder, "--json").json
    assert here("predict", small_run / "bundle", f"{folder}/*.jpg", "--json").json == of_folder
    predictions = fieldmark.load(small_run / "bundle" / "model.onnx").predict(folder)
    assert [prediction.to_dict() for prediction in predictions] == of_folder
    one = here("predict", small_run, folder / "07.jpg", "--top", 1, "--json")
    assert one.code == 0
    assert one.json == [{**of_folder[7], "top": of_folder[7]["top"][:1]}]
    said = here("predict", small_run, folder / "07.jpg")
    assert said.out.startswith(f"{folder / '07.jpg'}: {of_folder[7]['label']} ") and said.err == ""


def test_names_that_are_no_text_come_back_as_they_are(command, small_run, small_photos, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9 \xe5\x81\xa5.jpg")
    shutil.copy(small_photos / "disc" / "00.jpg", name)
    for language in ("utf-8:strict", "ascii:strict"):
        done = command("predict", small_run, "-", "--json", stdin=name + b"\n", PYTHONIOENCODING=language)
        assert done.code == 0
        (answer,) = done.json
        assert os.fsencode(answer["path"]) == name
    shutil.copytree(small_photos, tmp_path / "photos")
    (tmp_path / "photos" / "disc").rename(tmp_path / "photos" / "é 健康")
    done = command("check", tmp_path / "photos", "--json", PYTHONIOENCODING="ascii:strict")
    assert done.json["classes"]["é 健康"] == 16
    assert command("predict", small_run, "-", stdin=name + b"\n").code == 0


def test_predict_from_what_is_no_model(here, small_photos, tmp_path):
    photo = small_photos / "disc" / "00.jpg"
    (tmp_path / "model.onnx").write_text("hello")
    assert "it is missing" in here("predict", tmp_path / "none", photo).refusal
    assert "damaged" in here("predict", tmp_path, photo).refusal
    assert "no run, bundle" in here("predict", small_photos, photo).refusal


# ---- bench, demo


def test_bench(command):
    done = command("bench", "efficientnet_lite0", "--image-size", 32, "--batch", 2, "--json")
    assert done.code == 0 and done.json["mean_s"] > 0 and done.json["sd_s"] >= 0
    assert done.json["images_per_s"] == pytest.approx(2 / done.json["mean_s"])
    assert len(done.err.splitlines()) == 11 and "across 100 steps" in done.err


def test_demo(here, small_photos, tmp_path, monkeypatch):
    """The real command on a stand-in for the photos that pip brings, with settings that take seconds."""
    data = tmp_path / "elpv_dataset" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    rows = []
    for label, probability in (("disc", "0.0"), ("square", "1.0"), ("cross, blue", "0.3333333333333333")):
        for photo in sorted((small_photos / label).iterdir())[:8]:
            shutil.copy(photo, data / f"{label[0]}{photo.name}")
            rows.append(f"{label[0]}{photo.name}  {probability}   mono\n")
    (data / "labels.csv").write_text("".join(rows))
    quick = partial(Recipe, image_size=64, train_size=64, batch=8, frozen_epochs=2)
    monkeypatch.setattr("fieldmark.cli.commands.train.Recipe", quick)
    monkeypatch.syspath_prepend(tmp_path)
    again = [here("demo", "--out", tmp_path / "run", "--budget", "1s", "--json") for _ in range(2)]
    assert [done.code for done in again] == [0, 0], again[0].err
    assert again[0].json == again[1].json and again[0].json["classes"] == ["defective", "functional"]
    assert len(list((tmp_path / "run-photos" / "defective").iterdir())) == 8
    assert (
        "the accuracy over 2 classes is" in here("demo", "--out", tmp_path / "run", "--budget", "1s").out
    )  # a line a person understands


# ---- whatever else happens


def test_ctrl_c_is_one_line(here, monkeypatch, small_photos):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fieldmark.data.decisions.read_catalog", interrupted)
    assert "--resume" in here("check", small_photos).refusal


def test_an_internal_error_is_one_line_too(here, monkeypatch, small_photos):
    def faulty(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("fieldmark.data.decisions.read_catalog", faulty)
    assert "internal error: RuntimeError: two lines" in here("check", small_photos).refusal


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_answers_that_cannot_be_written(small_photos):
    program = [sys.executable, "-m", "fieldmark.cli", "check", str(small_photos), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith("fieldmark: No space left on device")
