"""Compared networks share features and splits, and the page shows the rows."""

import dataclasses
import json
from pathlib import Path

import pytest
from told import Words, english

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline import compare
from fieldmark.report.compare_page import write_compare_page


def test_names_of_folders():
    assert compare.run_name("efficientnet_lite0+after=-1:mask", 2) == "efficientnet_lite0_after_-1_mask-2"
    assert "/" not in compare.run_name("timm:vit/../x", 0)


@pytest.fixture(scope="module")
def compared(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks, one seed, through the command line's own function; never write into it."""
    from fieldmark.core.progress import Reporter
    from fieldmark.recipes.recipe import Recipe

    out = tmp_path_factory.mktemp("compared") / "out"
    recipe = Recipe(image_size=64, train_size=64, epochs=1, batch=8)
    networks = ["efficientnet_lite0", "efficientnet_lite0+attention=se", "efficientnet_lite0+head=gem"]
    folders = compare.train_networks(str(small_photos), networks, 1, recipe, out, Reporter(quiet=True))
    write_compare_page(compare.compare_runs([compare.load_run(folder) for folder in folders]), out)
    return out


def test_rows(compared: Path):
    found = json.loads((compared / "compare.json").read_text())
    plain, se, gem = found["rows"]
    assert [row["network"] for row in found["rows"]] == [
        "efficientnet_lite0+head=multi_stage", "efficientnet_lite0+attention=se+head=multi_stage",
        "efficientnet_lite0+head=gem",
    ]  # fmt: skip
    for row in found["rows"]:
        told = json.loads((Path(row["runs"][0]) / "metrics.json").read_text())
        assert row["accuracy"] == told["test"]["accuracy"] and row["ci95"] == pytest.approx(told["test"]["ci95"])
        assert row["parameters"] == told["parameters"] and row["images_per_s"] > 0 and row["macs"] > 0
    (gate,) = se["added"]
    assert gate["kind"] == "se" and gate["params"] == se["parameters"] - plain["parameters"]
    assert gate["macs"] == se["macs"] - plain["macs"] and plain["added"] == gem["added"] == []
    assert plain["difference"] is None and se["difference"]["p_holm"] >= se["difference"]["p"]
    assert len(found["answers"]) == 2
    page = (compared / "compare.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert all(row["network"] in page for row in found["rows"])


def test_features_are_computed_once(compared: Path):
    """The gates in the blocks start as the identity: the second network takes the features of the first."""
    borrowed = [
        json.loads((folder / "metrics.json").read_text())["borrowed_s"] for folder in sorted(compared.glob("eff*"))
    ]
    plain, se, gem = borrowed
    assert plain == 0 and se > 0 and gem == 0  # GeM looks at maps, which nobody had computed
    assert not (compared / ".shared").exists()


def test_borrowed_features_change_nothing(compared: Path, small_photos: Path, tmp_path: Path):
    import fieldmark

    recipe = fieldmark.Recipe(
        image_size=64, train_size=64, epochs=1, batch=8, attention="se", backbone="efficientnet_lite0"
    )
    alone = fieldmark.train(small_photos, recipe, out=tmp_path / "alone").folder
    for name in ("bundle/model.safetensors", "split.csv", "predictions.csv"):
        assert (alone / name).read_bytes() == (compared / "efficientnet_lite0_attention_se-0" / name).read_bytes(), name


def test_what_cannot_be_compared(compared: Path, small_run: Path, tmp_path: Path, here):
    runs = [compare.load_run(folder) for folder in sorted(compared.glob("eff*"))]
    with pytest.raises(FieldmarkError, match="two runs with seed 0"):
        compare.compare_runs([runs[0], runs[0]])
    other = dataclasses.replace(runs[1], image_paths=frozenset({"another.jpg"}))
    with pytest.raises(FieldmarkError, match="different images"):
        compare.compare_runs([runs[0], other])
    with pytest.raises(FieldmarkError, match="not a finished run"):
        compare.load_run(tmp_path)
    assert "two networks or two runs" in here("compare", small_run, "--out", tmp_path / "new").refusal
    twice = ("--network", "efficientnet_lite0", "--network", "efficientnet_lite0+after=-1:se", "--network")
    words = (small_run.parent, "--out", tmp_path / "new", *twice, "efficientnet_lite0+after=-1:se()")
    assert "named twice" in here("compare", *words).refusal
    no_test = here("compare", *words[:-2], "--test-share", 0).refusal
    assert no_test == "--test-share is 0: networks are compared on test images, so leave it out"
    assert "exists" in here("compare", small_run, small_run, "--out", tmp_path).refusal
    again = here("compare", *[run.folder for run in runs], "--out", tmp_path / "new", "--json")
    assert again.code == 0 and len(again.json["rows"]) == 3 and (tmp_path / "new" / "compare.csv").exists()


def test_its_page_is_chinese_where_that_is_asked_for(compared: Path, tmp_path: Path, here):
    runs = [run for row in json.loads((compared / "compare.json").read_text())["rows"] for run in row["runs"]]
    assert here("compare", *runs, "--out", tmp_path / "out", "--lang", "zh").code == 0
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page and "个百分点" in page
    names = [*runs, "efficientnet_lite0", "attention=se", "+head=gem", "Holm"]
    assert english("\n".join(Words(page).words), names) <= {"p", "M", "MB", "out", "se", "head", "multi", "stage"}
