"""`timm:NAME`: the map is timm's own, positions where they belong; heads, slots, weights and export as everywhere."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import Network, build, published, rebuild
from fieldmark.models.profile import layer_table
from fieldmark.models.zoo import by_timm

# timm's own small networks for tests: convolutions; a norm in the head; tokens with a class token, with registers and
# a norm behind the average; channels last.
NAMES = ["test_resnet", "test_convnext", "test_vit", "test_vit2", "test_mambaout"]


def theirs(name: str, **settings: Any) -> Any:
    """timm's network in eval mode, its norms and its class layer not as they start."""
    torch.manual_seed(1)
    model: Any = timm.create_model(name, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
        model.get_classifier().weight.normal_()
    return model


@pytest.fixture
def file(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def write(model: nn.Module) -> Path:
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    return write


@torch.no_grad()
def as_map(name: str, model: Any, x: Tensor) -> Tensor:
    """What each of NAMES says of every position, by its own layers: (n, c, h', w')."""
    features = model.forward_features(x)
    if name == "test_convnext":
        return model.head.norm(features)
    if name == "test_mambaout":
        return model.head.norm(features).permute(0, 3, 1, 2)
    if name in ("test_vit", "test_vit2"):
        tokens = model.fc_norm(features[:, model.num_prefix_tokens :])
        return tokens.transpose(1, 2).reshape(len(x), -1, x.shape[2] // 16, x.shape[3] // 16)
    return features


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_map_is_timms(name: str, file: Callable[[nn.Module], Path]):
    model = theirs(name, **({"dynamic_img_size": True} if "vit" in name else {}))
    network = build(f"timm:{name}", classes=4, weights=file(model)).eval()
    x = torch.randn(2, 3, 96, 160)
    found, expected = network.features(x), as_map(name, model, x)
    assert found.shape == expected.shape and expected.flatten(1).std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_vit3"])
def test_timms_head_is_left_out(name: str, file: Callable[[nn.Module], Path]):
    model = theirs(name)
    network = build(f"timm:{name}", weights=file(model))
    assert not torch.equal(network.head.classifier.weight, model.get_classifier().weight)
    assert network.head.classifier.weight.shape == (1000, model.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_trains(name: str):
    """Nothing of timm's head is left in the network, where it would count and never learn."""
    network = build(f"timm:{name}", after="-1:se", classes=3)
    assert network.freeze_boundary is None
    loss = nn.functional.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_words_make_the_same_network_again(file: Callable[[nn.Module], Path]):
    words = "timm:test_vit+after=-1:mask+head=bilinear(reduced=4)"
    network = build(words, classes=3, channels=1, weights=file(theirs("test_vit"))).eval()
    again = rebuild(network.spec).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 48, 64)
    assert torch.equal(again(x), network(x))
    assert list(network.added_attention) == ["backbone.after_timm"]
    assert list(network.backbone.stages) == ["timm"]


def test_the_seed_decides_on_the_first_build_too():
    by_timm._inspect_layout.cache_clear()
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(build("timm:test_vit2").state_dict())
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


def test_strictly(file: Callable[[nn.Module], Path]):
    model = theirs("test_resnet")
    model.bn1 = nn.Identity()
    with pytest.raises(FieldmarkError, match=r"-timm\.model\.bn1\.weight"):
        build("timm:test_resnet", weights=file(model))


def test_preprocessing_is_timms():
    row, known = published.find_weights("timm:vit_tiny_patch16_224"), timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert row and known
    assert row.source == "timm: vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert (row.preprocessing.size, row.preprocessing.crop, row.preprocessing.interpolation) == (224, 0.9, "bicubic")
    assert row.preprocessing.mean == row.preprocessing.std == (127.5,) * 3
    assert build("timm:test_vit").preprocessing.size == 160


def test_timms_own_loading(hub, capfd: pytest.CaptureFixture[str]):
    """From the hub; then from its cache, without a network; a network without weights says so."""
    model = theirs("test_resnet")
    hub.publish("timm/test_resnet.r160_in1k", save(model.state_dict()))
    for _ in range(2):
        network = build("timm:test_resnet", weights="imagenet")
        assert torch.equal(network.state_dict()["backbone.timm.model.conv1.0.weight"], model.conv1[0].weight)
        hub.files.clear()
    with pytest.raises(FieldmarkError, match=r"fetch .*test_vit\.r160_in1k.* from the hub") as caught:
        build("timm:test_vit", weights="imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(FieldmarkError, match="no published weights of timm:test_mambaout"):
        build("timm:test_mambaout", weights="imagenet")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("timm:resnt26", "did you mean resnet26"),
        ("timm:resnet50.tv_in1", "did you mean resnet50.tv_in1k"),
        ("timm:", "no network ''"),
        ("timm:hf-hub:someone/some", "no network"),
        ("timm:crossvit_tiny_240", "no single spatial feature map"),
        ("timm:test_resnet+attention=se", "after=-1:se"),
        ("timm:test_resnet+attention=replace(se)", "no attention of its own"),
        ("timm:test_resnet+after=-2:se", "name each stage once"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words: str, line: str):
    with pytest.raises(FieldmarkError, match=line) as caught:
        build(words)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_without_timm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[timm\]'"):
        build("timm:test_efficientnet_gn")


def test_the_layers_are_shown():
    network = build("timm:test_vit+after=-1:se", classes=3)
    table = {row.name: row for row in layer_table(network, 96)}
    assert list(table) == ["timm", "after_timm", "head"]
    assert table["timm"].shape == (64, 6, 6)
    assert sum(row.params for row in table.values()) == sum(p.numel() for p in network.parameters())


class Exported(nn.Module):
    """What a bundle's graph gives: logits, and the evidence for the top class."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(x)
        logits = self.network.head(features)
        return logits, self.network.head.evidence(features, logits.argmax(1))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@torch.no_grad()
def test_it_exports(name: str, tmp_path: Path):
    torch.manual_seed(0)
    network, file = Exported(build(f"timm:{name}", after="-1:se", classes=5)).eval(), tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (torch.randn(2, 3, 64, 64),),
        file,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
    )
    session = onnxruntime.InferenceSession(file)
    x = torch.randn(5, 3, 64, 64)
    for found, ours in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), network(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), ours, rtol=1e-3, atol=1e-5)
