"""A network in 8 bits: what is rounded and what is not; its means stay; its cost is told, or it is refused."""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper
from scipy.special import log_softmax

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.image import preprocess
from fieldmark.data.splits import read_split_file
from fieldmark.evaluation.paired import accuracy_change
from fieldmark.exporters import export_run, int8, quantize
from fieldmark.exporters.onnx import export_onnx
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.models import Network, build
from fieldmark.models.ood import make_scorer


def pixels(folder: Path, look: Mapping[str, Any], pattern: str = "*/*.jpg") -> list[np.ndarray]:
    return [preprocess(file, look) for file in sorted(folder.glob(pattern))]


class Rounded:
    """A network in 8 bits beside the one that it was."""

    def __init__(self, file: Path, photos: list[np.ndarray]) -> None:
        self.file, self.photos = file, photos
        self.small = quantize.quantize_model(file, lambda work: map(work, photos))
        self.before = onnx.shape_inference.infer_shapes(onnx.load(file))
        self.held = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.small.graph.initializer}
        self.made = {name: node for node in self.small.graph.node for name in node.output}
        self.convs = [node for node in self.small.graph.node if node.op_type == "Conv"]

    def kind(self, name: str) -> str:
        """Of the node that made a tensor; nothing where it is an input or a constant."""
        return self.made[name].op_type if name in self.made else ""

    def logits(self, model: ModelProto) -> np.ndarray:
        probe = quantize.make_probe(model, ["logits"])
        return np.concatenate([probe(photo)["logits"] for photo in self.photos])


@pytest.fixture(scope="module")
def lite(small_run: Path, small_photos: Path) -> Rounded:
    """The trained EfficientNet-Lite0."""
    return Rounded(
        small_run / "bundle" / "model.onnx",
        pixels(small_photos, bundle.read_info(small_run).preprocessing, "*/0*.jpg"),
    )


@pytest.fixture(scope="module")
def gated(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    """A ResNet with squeeze-and-excitation in its blocks, a mask and a bilinear head; its norms know the photos."""
    torch.manual_seed(0)
    network = build("resnet18+attention=se+after=-1:mask+head=bilinear(reduced=8)", classes=3)
    look: dict[str, Any] = asdict(network.preprocessing) | {"size": 64}
    photos = pixels(small_photos, look, "*/0[0-3].jpg")
    x = (torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) - 120.0) / 60.0
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        network.train()(x)
    file = tmp_path_factory.mktemp("gated") / "model.onnx"
    info = bundle.make_info(network, ["a", "b", "c"], look, 1.0, 0.5, "none")
    shown, logits = np.eye(9, 512, dtype=np.float32), np.eye(9, 3, dtype=np.float32)
    known = make_scorer(network).fit(shown, logits, np.arange(9) % 3, shown, logits)
    export_onnx(network.eval(), known, info, file)
    return Rounded(file, photos)


@pytest.fixture(params=["lite", "gated"])
def rounded(request: pytest.FixtureRequest) -> Rounded:
    return request.getfixturevalue(request.param)


# ---- the network


def test_weights_have_7_bits_and_a_scale_for_each_channel(rounded: Rounded):
    """So that the sum of two products fits 16 bits: 2 * 255 * 64 < 2^15."""
    weights = {conv.name: conv.input[1] for conv in rounded.before.graph.node if conv.op_type == "Conv"}
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in rounded.before.graph.initializer}
    some = [conv for conv in rounded.convs if rounded.kind(conv.input[1]) == "DequantizeLinear"]
    assert len(some) >= 10
    for conv in some:
        values, scale = (rounded.held[name] for name in rounded.made[conv.input[1]].input[:2])
        assert values.dtype == np.int8 and np.abs(values.astype(int)).max() <= 64
        assert scale.shape == (len(values),)
        scale = scale.reshape(-1, 1, 1, 1)
        assert (np.abs(values * scale - floats[weights[conv.name]]) <= 0.51 * scale).all()


def test_what_stays_in_32_bits(rounded: Rounded):
    """The first convolution, the head's, those of single values; and no other."""
    plain = [conv for conv in rounded.convs if rounded.kind(conv.input[1]) != "DequantizeLinear"]
    assert plain[0].name == rounded.convs[0].name
    shapes = {info.name: info.type.tensor_type.shape.dim for info in rounded.before.graph.value_info}
    before = {node.name: node for node in rounded.before.graph.node}
    for conv in plain[1:]:
        single = [dim.dim_value for dim in shapes[before[conv.name].input[0]][2:]] == [1, 1]
        assert single or conv.input[1].startswith("network.head."), conv.name
    heads = [name for name in rounded.held if name.startswith("network.head.")]
    assert heads and all(rounded.held[name].dtype == np.float32 for name in heads)


def test_onnxruntime_rounds_nothing_by_itself(rounded: Rounded):
    """It would, with one scale for all channels, where weights of 32 bits stand between two maps of 8 bits."""
    used = {name: node.op_type for node in rounded.small.graph.node for name in node.input}
    for node in rounded.small.graph.node:
        if node.op_type in ("Conv", "Gemm") and rounded.kind(node.input[1]) != "DequantizeLinear":
            between = rounded.kind(node.input[0]) == "DequantizeLinear" and used[node.output[0]] == "QuantizeLinear"
            assert not between, node.name


@pytest.mark.parametrize("name, most", [("lite", 0.02), ("gated", 0.2)])
def test_it_says_nearly_the_same(name: str, most: float, request: pytest.FixtureRequest):
    """To the one that is not trained, all photos look nearly the same."""
    rounded = request.getfixturevalue(name)
    before, after = rounded.logits(rounded.before), rounded.logits(rounded.small)
    noise = ((after - before) ** 2).mean() / before.var(0).mean()
    assert noise < most, f"{noise:.3f} of what the photos differ by"


def test_correcting_the_means_pays(lite: Rounded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantize, "correct_biases", lambda *_: None)
    without = quantize.quantize_model(lite.file, lambda work: map(work, lite.photos))
    before = lite.logits(lite.before)
    assert np.abs(lite.logits(lite.small) - before).mean() < np.abs(lite.logits(without) - before).mean() / 1.3


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_rounded_weights_leave_the_mean_of_each_channel(groups: int, inputs: int, outputs: int, side: int, seed: int):
    """Of maps that are flat, so that no border counts: w' x + b' is w x + b on average, but for half a step of b'."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(groups * outputs, inputs, side, side)).astype(np.float32)
    scale = (np.abs(w).max((1, 2, 3)) / 64).astype(np.float32)
    values = np.rint(w / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    x = rng.uniform(0, 6, (50, groups * inputs))  # photos, channels
    b, unit = rng.normal(size=len(w)).astype(np.float32), scale * np.float32(0.01)
    held = {"values": values, "scale": scale, "bias": np.rint(b / unit).astype(np.int32), "unit": unit}
    nodes = [
        helper.make_node("DequantizeLinear", ["values", "scale"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "unit"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", group=groups),
    ]
    graph = helper.make_graph(nodes, "one", [], [], [numpy_helper.from_array(a, name) for name, a in held.items()])
    quantize.correct_biases(graph, {"conv": w}, {"conv": x.mean(0)})
    bias = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "bias")

    def mean(weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
        sums = weights.astype(float).sum((2, 3)).reshape(groups, outputs, inputs)
        return np.einsum("goi,gi->go", sums, x.mean(0).reshape(groups, inputs)).ravel() + biases

    after = mean(values * scale.reshape(-1, 1, 1, 1), bias * unit.astype(float))
    assert (np.abs(after - mean(w, b)) <= 1.01 * unit + 1e-5).all()  # half a step each of b and of what is taken off


def test_it_is_quiet(lite: Rounded, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    """Of what onnxruntime logs nothing is seen; what others log meanwhile is, and the root logger stays as it was."""
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters), root.level

    def map_images(function: Callable) -> list[Any]:
        return [function(image) for image in lite.photos[:1]]

    quantize.quantize_model(lite.file, map_images)
    assert capfd.readouterr() == ("", "") and not caplog.records
    with quantize._without_advice():
        root.warning("of somebody else")
    assert [record.message for record in caplog.records] == ["of somebody else"]
    assert (list(root.handlers), list(root.filters), root.level) == before
    assert logging.root.manager.disable == logging.NOTSET


# ---- what it costs


photos_told = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400)


@given(photos_told)
def test_a_change_and_its_interval(told: list[tuple[bool, bool]]):
    before, after = np.array(told).T
    change, back = accuracy_change(before, after), accuracy_change(after, before)
    assert change.difference == pytest.approx(after.mean() - before.mean())
    assert -1 <= change.ci95[0] <= change.difference <= change.ci95[1] <= 1
    assert (change.won, change.lost) == (back.lost, back.won)
    assert change.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))


@pytest.mark.parametrize("won, lost", [(0.0, 0.0), (0.01, 0.02), (0.05, 0.03), (0.2, 0.1)])
def test_95_of_100_intervals_hold_the_truth(won: float, lost: float):
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        drawn = rng.uniform(size=320)
        first = (drawn < lost) | (drawn > 0.5)
        second = ((drawn >= lost) & (drawn < lost + won)) | (drawn > 0.5)
        low, high = accuracy_change(first, second).ci95
        held += low <= won - lost <= high
    assert held / 2000 >= 0.94


@pytest.mark.parametrize("n, enough", [(95, False), (96, True)])
def test_so_many_photos_it_takes(n: int, enough: bool):
    alike = np.ones(n, bool)
    assert (accuracy_change(alike, alike).ci95[0] >= int8.MIN_ACCURACY_CHANGE) == enough


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small_run: Path) -> None:
    """In place of the seconds that torch's exporter takes, the file that the training exported."""
    own = small_run / "bundle" / "model.onnx"
    monkeypatch.setattr(export_run, "export_onnx", lambda network, known, info, file: shutil.copy(own, file))


def test_few_photos_cannot_show_that_it_is_harmless(quick: None, small_run: Path, tmp_path: Path, here: Callable):
    done = here("export", small_run, "--out", tmp_path / "out", "--int8", "--json")
    for word in ("INT8 may cost more than 2 points", "points (", "labels agree on", "fewer than 96"):
        assert word in done.refusal
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def accepted(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, export_run.ExportReport]:
    """The run in 8 bits, whatever they cost: its few validation photos can say nothing of that."""
    out, own = tmp_path_factory.mktemp("accepted") / "out", small_run / "bundle" / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_run, "export_onnx", lambda network, known, info, file: shutil.copy(own, file))
        patch.setattr(int8, "MIN_ACCURACY_CHANGE", -1.0)
        patch.setattr("fieldmark.evaluation.calibration.MIN_IMAGES", 2)
        return out, export_run.export_run(small_run, out, Reporter(quiet=True), int8=True)


def test_a_file_in_8_bits(accepted: tuple[Path, export_run.ExportReport], small_run: Path, small_photos: Path):
    out, report = accepted
    assert report.files == (str(out / "model.onnx"), str(out / "model_int8.onnx"))
    assert report.int8 is not None
    small = Classifier(out / "model_int8.onnx")
    assert report.int8.bytes == (out / "model_int8.onnx").stat().st_size < 0.4 * report.int8.bytes_fp32
    assert report.int8.seconds.keys() == report.int8.seconds_fp32.keys() >= {1}
    assert small.info.verified == report.int8.accuracy.to_dict() and small.info.precision == "int8"
    assert small.info.model and small.info.model != Classifier(small_run).info.model, "it predicts otherwise"
    assert report.int8.accuracy.change.n == sum(row.split == "val" for row in read_split_file(small_run / "split.csv"))
    assert list(report.to_dict()["int8"]) == [
        *("label_agreement", "accuracy", "accuracy_32_bits", "difference", "ci95", "won", "lost", "n"),
        *("bytes", "bytes_32_bits", "seconds_32_bits", "seconds"),
    ]
    pairs = zip(small.predict(small_photos), Classifier(small_run).predict(small_photos), strict=True)
    assert np.mean([one.label == other.label for one, other in pairs]) > 0.9


def test_it_is_fitted_anew(accepted: tuple[Path, export_run.ExportReport], small_run: Path, small_photos: Path):
    """Its temperature fits the validation photos better than the old one, and 91 % of them are known by its score.

    The statistics of that score are its own.
    """
    small, before = Classifier(accepted[0] / "model_int8.onnx"), bundle.read_info(small_run)
    rows = [row for row in read_split_file(small_run / "split.csv") if row.split == "val"]
    found = [small.infer(preprocess(small_photos / row.path, before.preprocessing)) for row in rows]
    logits, labels = np.stack([one["logits"] for one in found]), [before.classes.index(row.label) for row in rows]
    t = small.info.temperature
    for one in found:
        assert one["probabilities"] == pytest.approx(np.exp(log_softmax(one["logits"] / t)), abs=1e-5)

    def loss(t: float) -> float:
        return -float(log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean())

    assert loss(t) <= loss(before.temperature) + 1e-6 and t != before.temperature
    scores = np.array([one["known_score"] for one in found])
    assert small.info.threshold == pytest.approx(np.quantile(scores, 0.09), abs=1e-4)
    constants = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
        for file in (accepted[0] / "model_int8.onnx", small_run / "bundle" / "model.onnx")
    ]
    for name in ("known.mean", "known.sd", "known.near_sd", "known.far_sd"):
        now, then = (values[name] for values in constants)
        assert now.shape == then.shape and not np.array_equal(now, then)


def class_biases(network: Network) -> np.ndarray:
    """The part of each logit that belongs to no position; it depends on no image where the head is linear."""
    head, count = network.head, len(network.head.classifier.bias)
    with torch.inference_mode():
        features = network.features(torch.zeros(1, 3, 64, 64)).expand(count, -1, -1, -1)
        return head.bias(features, torch.arange(count)).numpy()


def test_its_evidence_sums_to_its_logit(accepted, small_run: Path, small_photos: Path):
    small, network = Classifier(accepted[0] / "model_int8.onnx"), bundle.load_network(small_run)
    bias = class_biases(network)
    for photo in pixels(small_photos, small.info.preprocessing, "*/00.jpg"):
        found = small.infer(photo)
        top = found["logits"].argmax()
        assert found["evidence"].sum() + bias[top] == pytest.approx(found["logits"][top], abs=1e-4)


def test_photos_for_8_bits_need_both_sides(quick: None, small_run: Path, small_photos: Path, tmp_path: Path):
    with pytest.raises(FieldmarkError, match="--int8 needs training and validation images"):
        export_run.export_run(
            small_run / "bundle", tmp_path / "out", Reporter(quiet=True), photos=small_photos, int8=True
        )
