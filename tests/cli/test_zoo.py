"""`fieldmark zoo`: a table that fits a terminal, a network's layers, what its attention adds, JSON for scripts."""

import re

import pytest

from fieldmark.cli import zoo
from fieldmark.models import VARIANTS

ROW = {"name", "params", "macs", "input_size", "weights", "top1", "top5", "licence", "paper"}
LAYER = {"name", "shape", "params", "macs", "frozen", "frozen_in_phase_2", "attention"}


@pytest.fixture
def no_timing(monkeypatch):
    monkeypatch.setattr(zoo, "measure_throughput", lambda name: 1234.56)


@pytest.mark.slow
def test_json_of_every_network(command):
    done = command("zoo", "--json")
    assert (done.code, done.err) == (0, "")
    assert [row["name"] for row in done.json] == list(VARIANTS)
    assert all(row.keys() == ROW for row in done.json)


@pytest.mark.parametrize("options", [(), ("--speed",)])
def test_the_table_fits_eighty_columns(here, no_timing, options):
    lines = here("zoo", "--like", "ception", *options).out.splitlines()
    rows = [line for line in lines if line.startswith("  ")]
    asked = [name for name in VARIANTS if "ception" in name]
    assert "inception_resnet_v2_paper" in asked  # the longest name
    assert sorted(row.split()[0] for row in rows) == sorted(asked)
    assert all(len(row) <= 80 for row in rows)
    papers = {VARIANTS[name].paper for name in asked}
    assert {line for line in lines if line in papers} == papers
    assert not any(line != line.rstrip() or "\x1b" in line for line in lines)


def test_no_name_breaks_the_table():
    assert max(map(len, VARIANTS)) <= 26


def test_a_figure_is_the_row_s(here):
    (line,) = (line for line in here("zoo", "--like", "lite0").out.splitlines() if "efficientnet_lite0" in line)
    assert re.split(r"\s{2,}", line.strip()) == ["efficientnet_lite0", "4.7 M", "0.39 G", "224", "75.1 %", "pip"]


def test_networks_without_published_weights_say_so(here):
    lines = here("zoo", "--like", "resnet18").out.splitlines()
    (small,) = (line for line in lines if "resnet18_small" in line)
    assert re.split(r"\s{2,}", small.strip())[-2:] == ["-", "none published"]
    assert any(line.endswith("--weights none.") for line in lines)
    assert [row["weights"] for row in here("zoo", "--like", "resnet18_small", "--json").json] == [None]


def test_networks_by_a_word_of_their_name_with_their_speed(here, no_timing):
    found = here("zoo", "--like", "resnet18", "--speed", "--json").json
    assert {row["name"] for row in found} == {"resnet18", "resnet18_small"}
    assert all(row.keys() == ROW | {"images_per_s"} and row["images_per_s"] == 1234.56 for row in found)


def test_speed_is_measured():
    slow, fast = zoo.measure_throughput("resnet18", seconds=0), zoo.measure_throughput("mobilenet_v3_small", seconds=0)
    assert 0 < slow < fast


def test_layers_of_a_network(here):
    words = ("zoo", "resnet18", "--attention", "se", "--after", "-1:mask", "--classes", 5, "--image-size", 64)
    layers = here(*words, "--json").json
    assert all(row.keys() == LAYER for row in layers)
    assert layers[-1]["shape"] == [5] and layers[0]["frozen"] and not layers[-1]["frozen"]
    title, _, header, *lines = here(*words).out.splitlines()
    assert title == "resnet18+attention=se+after=-1:mask: images of 3 x 64 x 64, 5 classes"
    assert header.split() == ["layer", "output", "params", "MACs", "trained", "in", "attention"]
    body = dict(zip([row["name"] for row in layers], lines, strict=False))
    assert all(line.startswith(name) for name, line in body.items())
    assert re.split(r"\s{2,}", body["layer1.0"])[1:] == ["64 x 16 x 16", "74,564", "18,874,880", "fine-tuning", "se"]
    assert "both phases" in body["after_layer4"] and "both phases" in body["head"]
    assert f"{sum(row['params'] for row in layers):,}" in lines[len(layers)]


def test_what_attention_adds_is_the_difference(here):
    def total(*words: str) -> list[int]:
        out = here("zoo", "seresnet50", "--image-size", 64, *words).out
        (line,) = (line for line in out.splitlines() if line.startswith("total"))
        return [int(number.replace(",", "")) for number in line.split()[1:]]

    bare, plain, more = total("--attention", "none"), total(), total("--attention", "eca", "--after", "0:mask")
    lines = here("zoo", "seresnet50", "--image-size", 64, "--attention", "eca", "--after", "0:mask").out.splitlines()[
        -3:
    ]
    own, eca, mask = ([int(n.replace(",", "")) for n in re.findall(r"\+([\d,]+) (?:params|MACs)", x)] for x in lines)
    assert [line.split()[:3] for line in lines] == [
        ["se,", "the", "paper's"],
        ["eca,", "added", "16"],
        ["mask,", "added", "1"],
    ]
    assert own == [a - b for a, b in zip(plain, bare, strict=True)]
    assert [a + b for a, b in zip(eca, mask, strict=True)] == [a - b for a, b in zip(more, plain, strict=True)]
    assert f"(+{100 * mask[0] / (more[0] - mask[0]):.2f} %)" in lines[-1]


def test_frozen_layers_are_never_trained(here):
    lines = here("zoo", "resnet18").out.splitlines()
    marks = {line.split()[0]: line for line in lines if line}
    assert "never" in marks["conv1"] and "never" in marks["layer2.1"] and "fine-tuning" in marks["layer3.0"]
    assert not re.search("never|phase|fine", marks["relu"])  # has nothing to train


def test_refusals(here):
    assert "did you mean resnet18" in here("zoo", "resnet81").refusal
    assert "did you mean resnet18" in here("bench", "resnet81").refusal
    assert "fieldmark zoo` lists them" in here("zoo", "--like", "nothing").refusal
    assert "name it" in here("zoo", "--after", "-1:se").refusal
    assert "fieldmark bench resnet18" in here("zoo", "resnet18", "--speed").refusal
    small = here("zoo", "vgg16", "--image-size", 28).refusal
    assert small.startswith(
        "vgg16 does not accept images of 28 x 28 pixels: 32 is the smallest size that works (--image-size"
    )
