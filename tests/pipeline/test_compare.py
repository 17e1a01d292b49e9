"""A difference is called real where it is one, networks share what they can, and the page says what the rows say."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from told import Words, english

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline import compare
from fieldmark.pipeline.compare import ComparedRun, paired_difference
from fieldmark.report.compare_page import write_compare_page


def run(network: str, seed: int, right: np.ndarray, groups: np.ndarray | None = None) -> ComparedRun:
    """A run that told so many photos right."""
    names = [f"{k}.jpg" for k in range(len(right))]
    own = names if groups is None else [str(group) for group in groups]
    told = dict(zip(names, zip(map(bool, right), own, strict=True), strict=True))
    return ComparedRun(Path(f"{network}-{seed}"), network, seed, {}, frozenset(names), told)


def test_one_seed_is_mcnemars_test():
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.8, rng.random(400) < 0.85
    found = paired_difference([(run("a", 0, first), run("b", 0, second))])
    won, lost = int((second & ~first).sum()), int((first & ~second).sum())
    assert (found["won"], found["lost"], found["test"]) == (won, lost, "McNemar, exact")
    assert found["p"] == pytest.approx(binomtest(won, won + lost).pvalue)
    assert found["difference"] == pytest.approx(second.mean() - first.mean())
    low, high = found["ci95"]
    assert low < found["difference"] < high
    assert paired_difference([(run("a", 0, first), run("a2", 0, first))])["p"] == 1.0


@pytest.mark.parametrize(("better", "real"), [(0.0, False), (0.15, True)])
def test_what_is_planted_is_found(better: float, real: bool):
    """Of twenty worlds without a difference hardly one is called real, with one of fifteen points nearly all are."""
    rng, called = np.random.default_rng(3), 0
    for _ in range(20):
        hard = rng.random(300)  # the same photos are hard for all
        pairs = []
        for seed in range(3):
            a, b = (hard + 0.2 * rng.normal(size=300) < quality for quality in (0.75, 0.75 + better))
            pairs.append((run("a", seed, a), run("b", seed, b)))
        called += paired_difference(pairs)["p"] < 0.05
    assert called >= 16 if real else called <= 4


def test_look_alikes_are_one_witness():
    rng = np.random.default_rng(0)
    first = rng.random(40) < 0.7
    second = first ^ (rng.random(40) < 0.2)
    alone = paired_difference([(run("a", 0, first), run("b", 0, second))])
    often = [
        run(name, 0, np.repeat(right, 6), np.repeat(np.arange(40), 6))
        for name, right in zip("ab", (first, second), strict=True)
    ]
    grouped = paired_difference([(often[0], often[1])])
    assert grouped["difference"] == pytest.approx(alone["difference"]) and grouped["test"].startswith("bootstrap")
    widths = [found["ci95"][1] - found["ci95"][0] for found in (alone, grouped)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)  # 240 photos tell no more than 40


def test_p_is_counted_for_all_comparisons():
    told: list[dict[str, Any]] = [{"p": p} for p in (0.02, 0.5, 0.01, 0.04)]
    compare._apply_holm(told)
    assert [row["p_holm"] for row in told] == pytest.approx([0.06, 0.5, 0.04, 0.08])
    assert [row["real"] for row in told] == [False, False, True, False]


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
        "efficientnet_lite0", "efficientnet_lite0+attention=se", "efficientnet_lite0+head=gem",
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
    other = dataclasses.replace(runs[1], photos=frozenset({"another.jpg"}))
    with pytest.raises(FieldmarkError, match="different photos"):
        compare.compare_runs([runs[0], other])
    with pytest.raises(FieldmarkError, match="no finished run"):
        compare.load_run(tmp_path)
    assert "two networks or two runs" in here("compare", small_run, "--out", tmp_path / "new").refusal
    twice = ("--network", "efficientnet_lite0", "--network", "efficientnet_lite0+after=-1:se", "--network")
    words = (small_run.parent, "--out", tmp_path / "new", *twice, "efficientnet_lite0+after=-1:se()")
    assert "named twice" in here("compare", *words).refusal
    assert "exists" in here("compare", small_run, small_run, "--out", tmp_path).refusal
    again = here("compare", *[run.folder for run in runs], "--out", tmp_path / "new", "--json")
    assert again.code == 0 and len(again.json["rows"]) == 3 and (tmp_path / "new" / "compare.csv").exists()


def test_its_page_is_chinese_where_that_is_asked_for(compared: Path, tmp_path: Path, here):
    runs = [run for row in json.loads((compared / "compare.json").read_text())["rows"] for run in row["runs"]]
    assert here("compare", *runs, "--out", tmp_path / "out", "--lang", "zh").code == 0
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page and "个百分点" in page
    names = [*runs, "efficientnet_lite0", "attention=se", "+head=gem", "Holm"]
    assert english("\n".join(Words(page).words), names) <= {"p", "M", "MB", "out", "se"}
