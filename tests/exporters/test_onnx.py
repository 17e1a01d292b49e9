"""The exported file is the network: same answers, evidence that sums to the logit, nothing else needed."""

import json
import shutil
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch

from fieldmark.data.dataset import Normalize
from fieldmark.data.image import preprocess
from fieldmark.exporters import graph_cache
from fieldmark.exporters import onnx as onnx_export
from fieldmark.exporters.onnx import ExportCheck, ExportWrapper, export_onnx, verify
from fieldmark.inference import bundle
from fieldmark.inference.bundle import BundleInfo
from fieldmark.inference.classifier import Classifier
from fieldmark.models import Bilinear, Network, build
from fieldmark.models.ood import OODScorer, make_scorer

CLASSES = ["cross, blue", "disc", "方 \udce9", "nothing"]
NETWORKS = {
    "linear": ("efficientnet_lite0+head=linear(hidden=9,dropout=0.3)", 64),
    "bilinear": ("resnet18+head=bilinear(reduced=8)", 48),
    "mask": ("efficientnet_lite0+after=-1:mask(norm=True)", 64),
    "se": ("resnet18+after=-1:se(ratio=4),-2:mask+head=bilinear(reduced=5,hidden=7)", 72),
}


class Model(NamedTuple):
    network: Network
    known: OODScorer
    info: BundleInfo
    classifier: Classifier
    photos: np.ndarray  # (n, size, size, 3)

    def answering(self) -> ExportWrapper:
        return ExportWrapper(self.network, self.known, self.info).eval()

    def run(self, photos: np.ndarray) -> dict[str, np.ndarray]:
        names = [output.name for output in self.classifier.session.get_outputs()]
        values = self.classifier.session.run(names, {"photos": photos})
        return dict(zip(names, map(np.asarray, values), strict=True))


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest, small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    words, size = NETWORKS[request.param]
    torch.manual_seed(0)
    network = build(words, classes=len(CLASSES))
    for slot in network.added_attention.values():
        slot.start_as_identity()  # then no longer the identity, so that its form counts
        for parameter in slot.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    look: dict[str, Any] = asdict(network.preprocessing) | {"size": size}
    photos = np.stack([preprocess(file, look) for file in sorted(small_photos.glob("*/0[0-3].jpg"))])
    x = Normalize(tuple(look["mean"]), tuple(look["std"]))(torch.from_numpy(photos).permute(0, 3, 1, 2))
    with torch.no_grad():  # norms take the photos' statistics, as in a trained network
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        network.train()(x)
    with torch.no_grad():
        features = network.eval().features(x)
        scored, logits = network.head.score_features(features).numpy(), network.head(features).numpy()
    labels = np.arange(len(photos)) % 3  # of the fourth class nothing was shown
    known = make_scorer(network).fit(scored, logits, labels, scored, logits)
    info = bundle.make_info(network, CLASSES, look, 1.7, 0.3, "none")
    file = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(network, known, info, file)
    return Model(network, known, info, Classifier(file), photos)


def test_it_equals_torch(model: Model):
    answered = model.run(model.photos)
    with torch.inference_mode():
        expected = model.answering()(torch.from_numpy(model.photos))
    assert list(answered) == ["probabilities", "logits", "evidence", "known_score"]
    for (name, got), wanted in zip(answered.items(), expected, strict=True):
        # A bilinear head's root is infinitely steep at zero: what single positions said is less exact than their sum.
        steep = name == "evidence" and isinstance(model.network.head, Bilinear)
        # Untrained, all photos look nearly the same, and the score of what is known counts in their small deviations.
        atol = 3e-2 if steep else 1e-4 if name == "known_score" else 1e-5
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=atol)
    assert len(np.unique(answered["logits"].round(3), axis=0)) == len(model.photos), "photos must differ"
    n = len(model.photos)
    assert answered["probabilities"].shape == answered["logits"].shape == (n, len(CLASSES))
    assert answered["known_score"].shape == (n,)
    assert answered["evidence"].shape[0] == n and answered["evidence"].ndim == 3


def test_its_input_is_pixels(model: Model):
    """uint8 n x H x W x 3 with any n; what is normalised inside is what a person would write outside."""
    (photos,) = model.classifier.session.get_inputs()
    size, n = model.info.preprocessing["size"], photos.shape[0]
    assert (photos.name, photos.type, photos.shape[1:]) == ("photos", "tensor(uint8)", [size, size, 3])
    assert isinstance(n, str)
    look = model.info.preprocessing
    pixels = (model.photos - np.array(look["mean"])) / np.array(look["std"])
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()).numpy()
    np.testing.assert_allclose(model.run(model.photos)["logits"], logits, rtol=0, atol=1e-4)


def test_a_batch_equals_single_photos(model: Model):
    together = model.run(model.photos)
    for n in (1, 2, 5):
        for name, value in model.run(model.photos[:n]).items():
            atol = {"evidence": 3e-2, "known_score": 1e-4}.get(name, 1e-5)
            np.testing.assert_allclose(value, together[name][:n], rtol=0, atol=atol)
    single = model.classifier.infer(model.photos[3])
    np.testing.assert_allclose(single["probabilities"], together["probabilities"][3], rtol=0, atol=1e-5)


def test_temperature_and_known_score(model: Model):
    answered = model.run(model.photos)
    weights = np.exp(answered["logits"] / 1.7 - (answered["logits"] / 1.7).max(1, keepdims=True))
    probabilities = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(answered["probabilities"], probabilities, atol=1e-6)
    assert ((answered["known_score"] > 0) & (answered["known_score"] < 1)).all()


def test_evidence_and_bias_sum_to_the_top_logit(model: Model):
    answered, look = model.run(model.photos), model.info.preprocessing
    photos = torch.from_numpy(model.photos).permute(0, 3, 1, 2)
    top = torch.from_numpy(answered["logits"].argmax(1))
    with torch.inference_mode():
        features = model.network.features(Normalize(tuple(look["mean"]), tuple(look["std"]))(photos))
        bias = model.network.head.bias(features, top).numpy()
    assert answered["evidence"].shape[1:] == features.shape[2:]
    logits = answered["logits"].max(1)
    np.testing.assert_allclose(answered["evidence"].sum((1, 2)) + bias, logits, rtol=1e-4, atol=1e-4)


def test_one_file_is_all_it_takes(model: Model, small_photos: Path, tmp_path: Path):
    assert [file.name for file in model.classifier.file.parent.iterdir()] == ["model.onnx"]
    elsewhere = shutil.copy(model.classifier.file, tmp_path / "其他 name.onnx")
    classifier, photo = Classifier(elsewhere), next(small_photos.glob("disc/*.jpg"))
    assert classifier.info.to_dict() == json.loads(json.dumps(model.info.to_dict()))
    assert classifier.classes == CLASSES
    assert classifier.predict(photo) == model.classifier.predict(photo)


def test_verify_finds_no_difference(model: Model):
    found = verify(model.network, model.known, model.info, model.classifier, list(model.photos))
    assert found.max_difference <= 1e-5 and found.label_agreement == 1.0 and found.images == len(model.photos)
    assert found.is_equivalent


@torch.no_grad()
def test_verify_finds_a_difference(model: Model):
    last = model.network.head.classifier
    kept = last.weight.clone(), last.bias.clone()
    for parameter in (last.weight, last.bias):
        parameter.copy_(parameter.roll(1, dims=0))  # every class takes its neighbour's place
    found = verify(model.network, model.known, model.info, model.classifier, list(model.photos))
    last.weight.copy_(kept[0])
    last.bias.copy_(kept[1])
    assert found.max_difference > 1e-2 and found.label_agreement == 0 and not found.is_equivalent


def test_slots_are_in_the_graph(model: Model):
    """The export of a network with its gates taken out answers otherwise: the gates above did count."""
    gates = list(model.network.added_attention.values())
    if not gates:
        return  # two of the networks have none
    x = torch.from_numpy(model.photos[:2])
    answering = model.answering()
    with torch.inference_mode():
        with_gates = answering(x)[1]
        hooks = [gate.register_forward_hook(lambda module, inputs, output: inputs[0]) for gate in gates]
        without = answering(x)[1]
    for hook in hooks:
        hook.remove()
    assert (with_gates - without).abs().max() > 1e-3


def test_nothing_to_verify_on(small_run: Path):
    network, known, info = (
        bundle.load_network(small_run),
        bundle.load_ood_scorer(small_run),
        bundle.read_info(small_run),
    )
    check = verify(network, known, info, Classifier(small_run), [])
    assert check == ExportCheck(max_difference=0.0, label_agreement=None, images=0) and check.is_equivalent


def test_the_network_is_left_as_it_was(tmp_path: Path):
    """What is exported is a copy, with its norms folded: traced in half the time."""
    network = build("efficientnet_lite0", classes=2).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    known = OODScorer(2, [1280], 0)
    info = bundle.make_info(network, ["a", "b"], asdict(network.preprocessing) | {"size": 32}, 1.0, 0.0, "none")
    export_onnx(network, known, info, tmp_path / "model.onnx")
    assert network.training and any(getattr(module, "inplace", False) for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Conv" in kinds and "BatchNormalization" not in kinds


# ---- graphs that are used again


def export_again(folder: Path, seed: int, norms: bool = True) -> bytes:
    """The file of a small network with weights of its own; `norms`: those of its norms, too."""
    torch.manual_seed(0)
    network = build("resnet18_small+after=-1:se(ratio=4)+head=linear(hidden=5)", classes=3).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and (norms or "bn" not in name):
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    known = OODScorer(3, [512], 0)
    look: dict[str, Any] = asdict(network.preprocessing) | {"size": 32}
    file = folder / "model.onnx"
    export_onnx(network, known, bundle.make_info(network, ["a", "b", "c"], look, 1.7, 0.3, "none"), file)
    return file.read_bytes()


def test_a_graph_is_used_again_where_a_fresh_export_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    traced, trace = list[int](), onnx_export._trace

    def counted(*given: Any) -> Any:
        traced.append(len(traced))
        return trace(*given)

    monkeypatch.setattr(onnx_export, "_trace", counted)
    monkeypatch.setattr(graph_cache, "_graphs", OrderedDict())
    for seed in (1, 2):  # only now is it known that these weights do not change the graph
        export_again(tmp_path, seed)
    again = export_again(tmp_path, 3)
    assert len(traced) == 2
    graph_cache._graphs.clear()
    assert export_again(tmp_path, 3) == again and len(traced) == 3
    with torch.no_grad():
        export_again(tmp_path, 4, norms=False)  # of equal norms the exporter makes one
    assert len(traced) == 4
