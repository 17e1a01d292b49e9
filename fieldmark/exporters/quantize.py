"""Post-training static quantization: exported network + some training images -> its convolutions in INT8.

Weights are symmetric with a scale for each output channel; activations are uint8 with a scale and a zero point (Jacob
et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"). Weights
take 7 of the 8 bits: processors without VNNI add two products of 8 by 8 bits in 16, where they do not fit. Rounding the
weights mainly shifts the mean of each channel; `correct_biases` compensates.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from fieldmark.core import runtime
from fieldmark.inference.classifier import CPU, create_session

PASSTHROUGH_OPS = ("Add", "Clip", "Concat", "MaxPool", "Relu")
"""Operators that can compute in INT8 between two convolutions."""
T = TypeVar("T")
ImageMapper = Callable[[Callable[[np.ndarray], T]], Iterable[T]]
"""Applies a function to images, uint8 (size, size, 3), and returns its results in order."""


def quantize_model(file: Path, map_images: ImageMapper) -> ModelProto:
    """The exported network with the nodes of `select_nodes` in INT8; head, softmax, evidence and OOD score stay FP32.

    Args:
        file: the FP32 model, written by `export_onnx`.
        map_images: applies a function to about a hundred training images, for the ranges of the activations.
    """
    with runtime.without_telemetry():
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    nodes = select_nodes(model.graph)
    weights = _add_missing_biases(model.graph, nodes)
    statistics = collect_statistics(model, nodes, map_images)
    with _without_advice():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, dict(statistics.ranges)),
            nodes_to_quantize=[node.name for node in nodes],
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv", *PASSTHROUGH_OPS],
            extra_options={},
        )
        quantizer.quantize_model()
    quantized = quantizer.model.model
    correct_biases(quantized.graph, weights, statistics.input_means)
    return quantized


def select_nodes(graph: GraphProto) -> list[NodeProto]:
    """The nodes that are quantized, in order: convolutions, and what lies between them.

    FP32 stay: the first convolution, whose few channels see the whole image; the head's, of whose outputs the class
    evidence is made; and those of single values, as in squeeze-and-excitation, where there is nothing to gain.

    None of these may stand between two INT8 activations: onnxruntime would quantize its weights itself when it loads
    the file (its WeightBiasQuantization), with one scale for all channels, which ruins depthwise convolutions.
    """
    convs = _quantizable_convs(graph)
    names = {node.name for node in convs} | _nodes_between(graph, convs)
    conv_outputs = {name for node in convs for name in node.output}
    names |= {node.name for node in graph.node if node.op_type in ("Clip", "Relu") and node.input[0] in conv_outputs}
    return [node for node in graph.node if node.name in names]


def _quantizable_convs(graph: GraphProto) -> list[NodeProto]:
    spatial_shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim[2:]] for info in graph.value_info
    }
    return [
        node
        for node in [node for node in graph.node if node.op_type == "Conv"][1:]
        if not node.input[1].startswith("network.head.") and spatial_shapes.get(node.input[0]) != [1, 1]
    ]


def _nodes_between(graph: GraphProto, convs: Sequence[NodeProto]) -> set[str]:
    """Names of the nodes through which these convolutions get their inputs and that can compute in INT8."""
    index, names, pending = _GraphIndex.of(graph), set[str](), [node.input[0] for node in convs]
    while pending:
        node = index.producers.get(pending.pop())
        if node is None or node.op_type not in PASSTHROUGH_OPS or node.name in names:
            continue
        if node.op_type != "Add" or not index.constants.keys() & set(node.input):
            names.add(node.name)
            pending += [name for name in node.input if name not in index.constants]
    return names


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of a network's tensors over some images.

    Attributes:
        ranges: smallest and largest value of each tensor, by its name.
        input_means: mean of each input channel (c,) of each convolution, by the convolution's name.
    """

    ranges: dict[str, tuple[np.ndarray, np.ndarray]]
    input_means: dict[str, np.ndarray]


def collect_statistics(model: ModelProto, nodes: Sequence[NodeProto], map_images: ImageMapper) -> ActivationStatistics:
    """Statistics of the inputs and outputs of these nodes."""
    constants = _GraphIndex.of(model.graph).constants
    tensors = sorted({name for node in nodes for name in (*node.input, *node.output) if name and name not in constants})
    convs = {node.name: node.input[0] for node in nodes if node.op_type == "Conv"}
    probe_model = ModelProto()
    probe_model.CopyFrom(model)
    graph = probe_model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "positions"))
    for tensor in tensors:
        graph.node.append(make_node("ReduceMin", [tensor], [f"{tensor}/min"], keepdims=0))
        graph.node.append(make_node("ReduceMax", [tensor], [f"{tensor}/max"], keepdims=0))
    for tensor in sorted(set(convs.values())):
        graph.node.append(make_node("ReduceMean", [tensor, "positions"], [f"{tensor}/mean"], keepdims=0))
    names = [name for node in graph.node[len(model.graph.node) :] for name in node.output]
    outputs = list(map_images(make_probe(probe_model, names)))
    stacked = {name: np.stack([output[name] for output in outputs]) for name in names}
    return ActivationStatistics(
        {tensor: (stacked[f"{tensor}/min"].min(), stacked[f"{tensor}/max"].max()) for tensor in tensors},
        {conv: stacked[f"{tensor}/mean"].mean((0, 1)) for conv, tensor in convs.items()},
    )


def correct_biases(graph: GraphProto, weights: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> None:
    """Subtract from each bias what the rounding of the weights adds to its channel on average.

    That is sum_k (w'_k - w_k) E[x_k], where w' are the rounded weights (o, c, h, w) and E[x] (c,) the means of the
    input channels (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
    section 4.2; not exact at the border, where zeros are padded). With it, 99 % of the labels of TrashNet and birds100
    agree instead of 96 % (docs/lab/prediction.md).

    Args:
        graph: the quantized graph, changed in place.
        weights: the FP32 weights (o, c, h, w) by the convolution's name.
        means: means of the input channels (c,) by the convolution's name.
    """
    index = _GraphIndex.of(graph)
    for conv in (node for node in graph.node if node.name in weights):
        (values, scale), (bias, bias_scale) = (
            [numpy_helper.to_array(index.constants[name]) for name in index.producers[dequantized].input[:2]]
            for dequantized in conv.input[1:3]
        )
        original = weights[conv.name]
        error = (values * scale.reshape(-1, 1, 1, 1) - original).sum((2, 3))  # (o, c of a group)
        mean = means[conv.name].reshape(-1, error.shape[1])  # (groups, c of a group)
        shift = (error.reshape(len(mean), -1, error.shape[1]) @ mean[:, :, None]).ravel()  # (o,)
        rounded_shift = np.rint(shift / bias_scale)
        limits = np.iinfo(np.int32)
        corrected = np.clip(bias - rounded_shift, limits.min, limits.max).astype(np.int32)
        name = index.producers[conv.input[2]].input[0]
        index.constants[name].CopyFrom(numpy_helper.from_array(corrected, name))


def _add_missing_biases(graph: GraphProto, nodes: Sequence[NodeProto]) -> dict[str, np.ndarray]:
    """Give every convolution a bias that can be corrected. Returns the weights (o, c, h, w) by its name."""
    constants, weights = _GraphIndex.of(graph).constants, {}
    for conv in (node for node in nodes if node.op_type == "Conv"):
        weights[conv.name] = numpy_helper.to_array(constants[conv.input[1]])
        if len(conv.input) < 3:
            name = f"{conv.name}/bias"
            zeros = np.zeros(len(weights[conv.name]), np.float32)
            graph.initializer.append(numpy_helper.from_array(zeros, name))
            conv.input.append(name)
    return weights


def make_probe(model: ModelProto, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function: an image, uint8 (size, size, 3) -> the values of these tensors of the graph; for any thread."""
    probe_model = ModelProto()
    probe_model.CopyFrom(model)
    del probe_model.graph.output[:]
    probe_model.graph.output.extend(make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    probe_session = create_session(probe_model.SerializeToString(), CPU)

    def probe(image: np.ndarray) -> dict[str, np.ndarray]:
        values = probe_session.run(list(names), {"photos": image[None]})
        return dict(zip(names, map(np.asarray, values), strict=True))

    return probe


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drop what onnxruntime's quantizer logs on the root logger, and nothing else."""

    def is_from_elsewhere(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in Path(record.pathname).parts

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(is_from_elsewhere)
    root.addHandler(handler)  # a root logger without any would be given one for good
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(is_from_elsewhere)


@dataclass(frozen=True)
class _GraphIndex:
    """The constants of a graph, and the nodes that produce its tensors, by name."""

    constants: dict[str, TensorProto]
    producers: dict[str, NodeProto]

    @classmethod
    def of(cls, graph: GraphProto) -> "_GraphIndex":
        return cls(
            {tensor.name: tensor for tensor in graph.initializer},
            {name: node for node in graph.node for name in node.output},
        )
