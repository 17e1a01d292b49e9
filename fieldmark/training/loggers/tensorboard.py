"""TensorBoard: scalars, hyperparameters and the network's graph, in one event file in RUN/tensorboard.

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


class TensorBoardLogger:
    """Writes the event file of a run; a resumed run starts a new one with all of its history."""

    def __init__(self, out: Path, hyperparameters: dict[str, Any], curves: dict[int, dict[str, float]]) -> None:
        self.out, self.event_pb2 = out, _import_proto("event_pb2")
        folder = out / "tensorboard"
        folder.mkdir(exist_ok=True)
        before = sorted(folder.glob("events.out.tfevents.*"))
        number = int(before[-1].suffix[1:]) + 1 if before else 1  # readers sort by name, and a clock may be set back
        self.file = folder / f"events.out.tfevents.{number:06}"
        wall = time.time() - sum(values["seconds"] for values in curves.values())
        self._write_event(wall, file_version="brain.Event:2")
        # Here a reader drops what it has read from the previous file.
        self._write_event(wall, step=0, session_log=self.event_pb2.SessionLog(status=self.event_pb2.SessionLog.START))
        for number, values in curves.items():
            wall += values["seconds"]  # as if the run had never stopped
            self._write_event(wall, step=number, summary=_scalar_summary(values))
        for file in before[:-1]:  # a running TensorBoard may be reading the last
            file.unlink()

    def log_epoch(self, number: int, values: dict[str, float]) -> None:
        self._write_event(time.time(), step=number, summary=_scalar_summary(values))

    def close(self, epochs: int, metrics: dict[str, float], hyperparameters: dict[str, Any]) -> None:
        now = time.time()
        self._write_event(now, step=epochs, summary=_scalar_summary(metrics))
        self._write_event(now, summary=_hparams_summary(hyperparameters))
        if (model := self.out / "bundle" / "model.onnx").exists():
            self._write_event(now, graph_def=_to_graph_def(model).SerializeToString())

    def _write_event(self, wall: float, **fields: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.file.open("ab") as opened:  # each time, so that a failed training leaves nothing open
            RecordWriter(opened).write(self.event_pb2.Event(wall_time=wall, **fields).SerializeToString())


def _import_proto(name: str) -> Any:
    """A module of protobuf messages, which are generated at import: no type checker sees them."""
    return import_module(f"tensorboard.compat.proto.{name}")


def _scalar_summary(values: Mapping[str, float]) -> Any:
    summary = _import_proto("summary_pb2").Summary
    return summary(value=[summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _hparams_summary(hyperparameters: dict[str, Any]) -> Any:
    """For TensorBoard's HParams tab, which takes its metrics from the scalars."""
    hparams = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData(version=0)
    for name, value in hyperparameters.items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        setattr(hparams.session_start_info.hparams[name], kind, value)
    pb = _import_proto("summary_pb2")
    content = pb.SummaryMetadata.PluginData(plugin_name="hparams", content=hparams.SerializeToString())
    metadata = pb.SummaryMetadata(plugin_data=content)
    return pb.Summary(value=[pb.Summary.Value(tag="_hparams_/session_start_info", metadata=metadata)])


def _to_graph_def(model: Path) -> Any:
    """The exported network for TensorBoard's Graphs tab: operations under the names of their modules, no weights."""
    import onnx

    graph, graph_def = onnx.load(str(model)).graph, _import_proto("graph_pb2").GraphDef()
    producers = {value.name: value.name for value in graph.input}  # tensor -> the node that makes it
    for name in producers:
        graph_def.node.add(name=name, op="Placeholder")
    for node in graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = json.loads(
            metadata.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"')
        )  # modules, then the node
        path = scopes[-2].split(".") if len(scopes) > 2 else []
        name = "/".join([*path, node.name])
        graph_def.node.add(
            name=name, op=node.op_type, input=[producers[tensor] for tensor in node.input if tensor in producers]
        )
        producers |= dict.fromkeys(node.output, name)
    return graph_def
