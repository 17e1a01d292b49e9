"""Epochs -> RUN/tensorboard: scalars, hyper-parameters and the network's graph, in one event file.

Written record by record with TensorBoard's own parts. torch's SummaryWriter would import TensorFlow wherever that is
installed (seconds, and chatter on stderr), and traces the network for its graph (2 s, and warnings that tracing is
deprecated), which the exported file has already.
"""

import json
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


class TensorBoard:
    """The event file of a run. A resumed run begins a new one with all of its history, which makes the old one void."""

    def __init__(self, out: Path, settings: dict[str, Any], curves: dict[int, dict[str, float]]) -> None:
        self.out, self.proto = out, _messages("event_pb2")
        folder = out / "tensorboard"
        folder.mkdir(exist_ok=True)
        before = sorted(folder.glob("events.out.tfevents.*"))
        number = int(before[-1].suffix[1:]) + 1 if before else 1  # readers go by the names, and a clock may be set back
        self.file = folder / f"events.out.tfevents.{number:06}"
        wall = time.time() - sum(values["seconds"] for values in curves.values())
        self._write(wall, file_version="brain.Event:2")
        # From here on a reader drops what it has read from the file before.
        self._write(wall, step=0, session_log=self.proto.SessionLog(status=self.proto.SessionLog.START))
        for number, values in curves.items():
            wall += values["seconds"]  # as if the run had never stopped
            self._write(wall, step=number, summary=_scalars(values))
        for file in before[:-1]:  # a TensorBoard that looks on may be reading the last
            file.unlink()

    def epoch(self, number: int, values: dict[str, float]) -> None:
        self._write(time.time(), step=number, summary=_scalars(values))

    def close(self, epochs: int, figures: dict[str, float], settings: dict[str, Any]) -> None:
        now = time.time()
        self._write(now, step=epochs, summary=_scalars(figures))
        self._write(now, summary=_hyperparameters(settings))
        if (model := self.out / "bundle" / "model.onnx").exists():
            self._write(now, graph_def=_graph(model).SerializeToString())

    def _write(self, wall: float, **what: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.file.open("ab") as opened:  # each time, so that a training that fails leaves nothing open
            RecordWriter(opened).write(self.proto.Event(wall_time=wall, **what).SerializeToString())


def _messages(name: str) -> Any:
    """A module of protobuf messages, which come to be when it is imported: no type checker sees them."""
    return import_module(f"tensorboard.compat.proto.{name}")


def _scalars(values: Mapping[str, float]) -> Any:
    summary = _messages("summary_pb2").Summary
    return summary(value=[summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _hyperparameters(settings: dict[str, Any]) -> Any:
    """What the page HPARAMS reads; it takes its metrics from the scalars."""
    told = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData(version=0)
    for name, value in settings.items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        setattr(told.session_start_info.hparams[name], kind, value)
    pb = _messages("summary_pb2")
    content = pb.SummaryMetadata.PluginData(plugin_name="hparams", content=told.SerializeToString())
    metadata = pb.SummaryMetadata(plugin_data=content)
    return pb.Summary(value=[pb.Summary.Value(tag="_hparams_/session_start_info", metadata=metadata)])


def _graph(model: Path) -> Any:
    """The exported network as the page GRAPHS shows it: operations under the names of their modules, no weights."""
    import onnx

    graph, drawn = onnx.load(str(model)).graph, _messages("graph_pb2").GraphDef()
    makers = {photos.name: photos.name for photos in graph.input}  # tensor -> the node that makes it
    for name in makers:
        drawn.node.add(name=name, op="Placeholder")
    for node in graph.node:
        told = {entry.key: entry.value for entry in node.metadata_props}
        scopes = json.loads(told.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"'))  # modules, then the node
        path = scopes[-2].split(".") if len(scopes) > 2 else []
        name = "/".join([*path, node.name])
        drawn.node.add(name=name, op=node.op_type, input=[makers[tensor] for tensor in node.input if tensor in makers])
        makers |= dict.fromkeys(node.output, name)
    return drawn
