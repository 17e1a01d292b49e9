"""What TensorBoard shows of a run: settings, figures and the network; and what it costs to write that."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fieldmark.recipes.recipe import Recipe

FIGURES = {"test": {"accuracy": 0.9}, "validation": {"accuracy": 0.8}}


def test_closing_shows_the_figures_and_the_settings(begin, shown, tmp_path: Path):
    recipe = Recipe(budget="5m", steps_per_epoch=5)
    begin(tmp_path, 2, recipe)[0].close(FIGURES, recipe)
    seen = shown(tmp_path)
    for split, accuracy in (("test", 0.9), ("validation", 0.8)):
        assert [(e.step, e.value) for e in seen.Scalars(f"{split}/accuracy")] == [(2, pytest.approx(accuracy))]
    messages: Any = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    content = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = messages.HParamsPluginData.FromString(content).session_start_info.hparams
    settings = {name: value for name, value in recipe.to_dict().items() if value is not None}
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in told.items()} == settings


def test_the_graph_shows_the_operations_by_module(begin, shown, tmp_path: Path):
    from fieldmark.exporters.onnx import export_onnx
    from fieldmark.inference.bundle import make_info
    from fieldmark.models import build
    from fieldmark.models.ood import OODScorer

    (tmp_path / "bundle").mkdir()
    network = build("resnet18", classes=2)
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 32}
    info = make_info(network, ["a", "b"], preprocessing, 1.0, 0.0, "none")
    export_onnx(network, OODScorer(2, [512], 0), info, tmp_path / "bundle" / "model.onnx")
    begin(tmp_path, 0, Recipe())[0].close(FIGURES, Recipe())
    drawn = shown(tmp_path).Graph().node
    nodes = {node.name: node for node in drawn}
    convolutions = {name for name, node in nodes.items() if node.op == "Conv"}
    assert len(nodes) == len(drawn) and len(convolutions) == 20
    assert sum(name.startswith("network/backbone/layer3/") for name in convolutions) == 5
    reached, waiting = set(), [name for name in nodes if name.startswith("network/head/")]
    while waiting:
        new = set(nodes[waiting.pop()].input) - reached
        waiting.extend(new)
        reached |= new
    assert reached >= convolutions | {"photos"}, "edges are missing"


def test_readers_find_the_epochs_after_many_kills(begin, row, shown, tmp_path: Path):
    for saved in (0, 1, 0, 2):
        begin(tmp_path, saved, Recipe())[0].log_epoch(row(saved + 1))
    assert [event.step for event in shown(tmp_path).Scalars("loss/train")] == [1, 2, 3]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2, "what no reader needs any more is gone"


LIGHT = """
import sys
from pathlib import Path
from fieldmark.training import loggers
heavy = {"torch", "tensorboard", "wandb", "mlflow", "onnx"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
loggers.LoggerGroup(Path(sys.argv[1]), loggers.Recipe(), print).start([])
assert not {"torch", "tensorflow"} & set(sys.modules)
"""


def test_what_is_heavy_is_imported_late_and_tensorflow_never(shown, tmp_path: Path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").touch()
    command = [sys.executable, "-W", "error", "-c", LIGHT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert shown(tmp_path).FirstEventTimestamp() > 0
