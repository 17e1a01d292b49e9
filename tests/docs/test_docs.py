"""The examples of the documentation run, and do what the text around them says."""

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import pytest
import torch
import typer
from pages import python_blocks

from fieldmark.cli.main import app
from fieldmark.models import VARIANTS, rebuild, spec

DOCS = Path(__file__).resolve().parents[2] / "docs"


PACKAGES = [folder.name for folder in (DOCS.parent / "fieldmark").iterdir() if folder.is_dir()]
# Pages that docs/conf.py writes.
GENERATED = {DOCS / "quickstart_notebook.ipynb", DOCS / "reference" / "cli.md"}
GENERATED |= {DOCS / "reference" / "packages" / f"{package}.md" for package in PACKAGES}


def examples(file: Path) -> str:
    """The Python of a page, in one piece."""
    return "\n".join(python_blocks(file.read_text(encoding="utf-8")))


@pytest.fixture
def restored_tables() -> Iterator[None]:
    """The tables of networks, attention and heads, to which the examples add, as they were afterwards."""
    with patch.dict(VARIANTS), patch.dict(spec.ATTENTIONS), patch.dict(spec.HEADS):
        yield


@pytest.mark.usefixtures("restored_tables")
def test_the_smallest_example_of_each_part():
    names = set(VARIANTS)
    here: dict = {}
    exec(compile(examples(DOCS / "developers" / "design.md"), "docs/developers/design.md", "exec"), here)
    network = here["network"].eval()
    assert set(here["VARIANTS"]) - names == {"resnet26", "plain4"}
    assert len(network.added_attention) == 5
    assert here["same"].spec.attention == "position" and len(rebuild(here["same"].spec).added_attention) == 5
    for slot in network.added_attention.values():
        slot.start_as_identity()
    x, target = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    plain = here["fieldmark"].build("plain4", attention="none", classes=6).eval()
    plain.load_state_dict(
        {key: tensor for key, tensor in network.state_dict().items() if "after" not in key and "attention" not in key}
    )
    with torch.no_grad():
        features, logits = network.features(x), network(x)
        assert torch.equal(features, plain.features(x))
        total = network.head.evidence(features, target).sum((1, 2)) + network.head.bias(features, target)
        torch.testing.assert_close(total, logits[[0, 1], target], rtol=1e-4, atol=1e-4)
        assert here["fieldmark"].build("resnet26", classes=2).eval()(x).shape == (2, 2)


def test_both_readmes_say_the_same_commands_figures_and_files():
    english, chinese = ((DOCS.parent / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))

    def commands(text: str) -> list[str]:
        blocks = re.findall(r"^```(?:sh|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return [line.partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]

    def words(text: str) -> set[str]:
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        return set(re.findall(r"`[^`]+`", " ".join(prose.split())))

    def figures(text: str) -> list[str]:
        return sorted(re.findall(r"(?<![\w.])\d[\d,]*\.\d+|\b\d{3,}\b", text))

    assert commands(english) == commands(chinese)
    assert words(english) == words(chinese)
    assert figures(english) == figures(chinese)
    assert english.count("\n## ") == chinese.count("\n## ")


def test_the_examples_of_the_guide_to_models_run():
    exec(compile(examples(DOCS / "guides" / "models.md"), "docs/guides/models.md", "exec"), {})


def test_links_between_pages_lead_somewhere():
    pages = [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            linked = (page.parent / target).resolve()
            assert linked in GENERATED or linked.exists(), f"{page.name}: {target}"


def options_of_commands() -> set[str]:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group)
    commands = [group, *(group.get_command(context, name) for name in group.list_commands(context))]
    return {
        option for command in commands for given in command.params for option in (*given.opts, *given.secondary_opts)
    }


OF_OTHERS = {
    "torchrun": "--nnodes --nproc-per-node --rdzv-backend --rdzv-endpoint --max-restarts",
    "SLURM": "--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --requeue",
    "tensorboard": "--logdir",
    "pip": "--no-deps --wheel-dir --no-index --find-links",
    "docker": "--rm --read-only --tmpfs --build-arg",
    "systemctl": "--now",
    "of every command": "--help --help-all --version --install-completion",
    "scripts of benchmarks": "--only --table --checkout --name --rows --sets --fieldmark --fastai-python --work "
    "--labels --opponent-seeds --images-per-class --methods --rounds --images --labelled",
}
"""Options of other programs that pages name."""


def test_every_option_that_a_page_names_is_one():
    known = options_of_commands() | {option for options in OF_OTHERS.values() for option in options.split()}
    pages = [page for folder in (".", "guides", "tutorials", "reference") for page in (DOCS / folder).glob("*.md")]
    for page in (*pages, DOCS.parent / "README.md"):
        text = re.sub(r"^```text.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known, page.name


def test_the_reference_names_what_is_there():
    named = [
        name
        for page in DOCS.glob("reference/*.md")
        for name in re.findall(r"^\.\. auto\w+:: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert named and all(resolve_name(name) is not None for name in named)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    words = ["sphinx", "--fresh-env", "--fail-on-warning", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "fieldmark.train" in (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "Attention after stages" in (tmp_path / "reference" / "packages" / "recipes.html").read_text(
        encoding="utf-8"
    )
    assert "--group-by" in (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(DOCS.glob("tutorials/*.zh-CN.md")), ids=lambda page: page.stem)
def test_a_tutorial_in_chinese_has_the_commands_and_links_of_the_english(page):
    pages = [page.with_name(page.name.replace(".zh-CN", "")), page]
    english, chinese = (text.read_text(encoding="utf-8") for text in pages)
    blocks, links = re.compile(r"^```sh\n.*?^```", re.DOTALL | re.MULTILINE), re.compile(r"\]\(([^)]*)\)")
    recipes = re.compile(r"--[a-z][\w-]+|[a-z]+-[\w-]*\d[\w-]*")
    assert blocks.findall(english) == blocks.findall(chinese)
    of_chinese = {link.replace(".zh-CN", "") for link in links.findall(chinese)}  # where a page is there in Chinese
    assert set(links.findall(english)) - {page.name} == of_chinese - {pages[0].name}
    assert set(recipes.findall(english)) == set(recipes.findall(chinese))


def test_the_routes_of_the_service_are_those_of_today():
    conf = runpy.run_path(str(DOCS / "conf.py"))
    assert conf["http_routes"]() == (DOCS / "reference" / "routes.md").read_text(encoding="utf-8")


def test_every_tutorial_is_there_in_chinese():
    assert len(list(DOCS.glob("tutorials/*.md"))) == 2 * len(list(DOCS.glob("tutorials/*.zh-CN.md")))
