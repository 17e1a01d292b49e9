"""docs/guides/networks.md says what the tables of the package say today."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from fieldmark.models import VARIANTS
from fieldmark.models.profile import network_table
from fieldmark.models.published import PUBLISHED_WEIGHTS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_table", DOCS / "model_table.py")
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def cells(page: str) -> list[list[str]]:
    """The cells of the table's rows, without the headings."""
    return [re.split(r" *\| *", line.strip("| \n")) for line in page.splitlines() if line.startswith("| `")]


def test_the_table_has_every_network_and_its_weights(script):
    rows = cells(script.PAGE.read_text(encoding="utf-8"))
    assert [row[0].strip("`") for row in rows] == list(VARIANTS)
    for row in rows:
        published = PUBLISHED_WEIGHTS.get(row[0].strip("`"))
        assert (row[6] == published.source and row[7] == published.licence) if published else "none published" in row
        assert (f"{published.top1:.1f} %" in row) if published and published.top1 else not any("%" in c for c in row)


def test_a_row_has_the_figures_of_its_network(script):
    (profile,) = network_table(["resnet18"])
    (row,) = cells(script.format_page([profile], None))
    assert row[:6] == ["`resnet18`", "11,689,512", "1.81 G", "224", "69.8 %", "torchvision"]
    assert row in cells(script.PAGE.read_text(encoding="utf-8"))


def test_a_measured_speed_is_a_column(script):
    profiles = network_table(["resnet18", "resnet18_small"])
    speeds = {"date": "2026-11-30", "machine": "a laptop", "images_per_s": {"resnet18": 12.345}}
    page = script.format_page(profiles, speeds)
    assert [row[4] for row in cells(page)] == [
        "12.3",
        "",
    ] and "`fieldmark bench NETWORK`: a laptop, 2026-11-30." in page


@pytest.mark.slow
def test_the_table_is_the_one_that_the_script_writes(script, tmp_path, monkeypatch):
    written = script.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", tmp_path / "networks.md")
    script.main()
    assert script.PAGE.read_text(encoding="utf-8") == written
