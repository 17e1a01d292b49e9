"""A model made in a moment: for tests of everything around a prediction, in which nothing has to be learned."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ["red", "绿, green", "blue"]
SIDE = 32


def write_model(file: Path) -> Path:
    """An exported model that predicts the colour, red, green or blue, of which an image has most."""
    values = {
        "axes": np.array([1, 2], np.int64),
        "channel_axis": np.array([3], np.int64),
        "other_axes": np.array([1], np.int64),
        "scale": np.array(0.1, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["photos"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMean", ["pixels", "channel_axis"], ["evidence"], keepdims=0),
        helper.make_node("ReduceMax", ["probabilities", "other_axes"], ["known_score"], keepdims=0),
    ]
    outputs = {"probabilities": ["n", 3], "logits": ["n", 3], "evidence": ["n", SIDE, SIDE], "known_score": ["n"]}
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("photos", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    preprocessing = {"size": SIDE, "crop": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}
    info = {"format": 1, "classes": CLASSES, "preprocessing": preprocessing, "temperature": 1.0, "threshold": 0.1}
    helper.set_model_props(model, {"fieldmark": json.dumps(info | {"network": {}})})
    onnx.save(model, file)
    return file
