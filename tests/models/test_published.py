"""The table of published weights equals its sources'; fetching: checked, cached, silent, one line where it fails."""

import logging
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import VARIANTS, build, download
from fieldmark.models.published import PUBLISHED_WEIGHTS
from fieldmark.models.weights import rename_key

HUB_NAME, HUB_SET = "efficientnet_b0", "timm/tf_efficientnet_b0.aa_in1k"
LITE = "efficientnet_lite0"
TURNED = {"googlenet": torchvision.models.GoogLeNet, "inception_v3": torchvision.models.Inception3}


def of(kind: str) -> dict[str, str]:
    """The table's networks of one source -> the name of their weights there."""
    return {
        name: row.source.partition(": ")[2]
        for name, row in PUBLISHED_WEIGHTS.items()
        if row.source.startswith(f"{kind}: ")
    }


def test_all_but_those_that_nobody_published_have_a_row():
    without = {"alexnet_2012", "vgg11_mnist", "vgg16_c", "resnet18_small"}
    without |= {"inception_resnet_v2_paper", "se_inception_resnet_v2"}
    assert set(VARIANTS) - set(PUBLISHED_WEIGHTS) == without
    assert set(PUBLISHED_WEIGHTS) <= set(VARIANTS)
    assert set(PUBLISHED_WEIGHTS) - set(of("pip") | of("torchvision") | of("hub") | of("timm")) == {"bn_inception"}


@pytest.mark.parametrize("name", of("torchvision"))
def test_rows_say_what_torchvision_says(name: str):
    row, weights = PUBLISHED_WEIGHTS[name], torchvision.models.get_weight(of("torchvision")[name])
    transforms, figures = weights.transforms(), weights.meta["_metrics"]["ImageNet-1K"]
    seen = row.preprocessing
    assert [seen.size] == transforms.crop_size
    assert [round(seen.size / seen.crop)] == transforms.resize_size
    assert seen.interpolation == transforms.interpolation.value
    assert (row.top1, row.top5) == (figures["acc@1"], figures["acc@5"])
    assert re.search("-[0-9a-f]{8}[.]pth$", weights.url)
    pixels = torch.rand(1, 3, 4, 4)
    theirs = (pixels - torch.tensor(transforms.mean)[:, None, None]) / torch.tensor(transforms.std)[:, None, None]
    if name in TURNED:  # the network itself turns what it gets into what its file expects
        theirs = TURNED[name]._transform_input(SimpleNamespace(transform_input=True), theirs)  # type: ignore[arg-type]
    ours = (255 * pixels - torch.tensor(seen.mean)[:, None, None]) / torch.tensor(seen.std)[:, None, None]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", of("hub") | of("timm"))
def test_rows_say_what_timm_says(name: str):
    row, where = PUBLISHED_WEIGHTS[name], (of("hub") | of("timm"))[name]
    theirs = timm.models.get_pretrained_cfg(where.removeprefix("timm/"))
    seen = row.preprocessing
    assert theirs is not None
    assert (theirs.hf_hub_id == where) if name in of("hub") else re.search("-[0-9a-f]{8,}[.]pth$", str(theirs.url))
    assert (3, seen.size, seen.size) == theirs.input_size
    assert (seen.crop, seen.interpolation) == (theirs.crop_pct, theirs.interpolation)
    assert seen.mean == pytest.approx([255 * value for value in theirs.mean])
    assert seen.std == pytest.approx([255 * value for value in theirs.std])
    assert row.licence.lower() == theirs.license
    assert row.top1 and row.top5 and 70 < row.top1 < row.top5 < 100


def test_densenets_files_have_the_old_names():
    """torchvision's own pattern finds in the file what our renames undo."""
    with torch.device("meta"):
        keys = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): tensor for key, tensor in keys.items()}
    assert len(set(old) - set(keys)) > 500
    assert [rename_key(key, PUBLISHED_WEIGHTS["densenet121"].renames) for key in old] == list(keys)


@pytest.fixture
def published(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], str]:
    """Serves content as torchvision's ResNet-18; gives the file's name, which has the hash of the argument."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def serve(content: bytes, hashed: bytes | None = None) -> str:
        name = f"resnet18-{sha256(content if hashed is None else hashed).hexdigest()[:8]}.pth"
        server.add(f"/models/{name}", content)
        monkeypatch.setattr(
            "torchvision.models.get_weight", lambda _: SimpleNamespace(url=f"{server.url}/models/{name}")
        )
        return name

    return serve


def refused(name: str, **words) -> str:
    """The one line of a build whose published weights cannot be had."""
    with pytest.raises(FieldmarkError) as caught:
        build(name, weights="imagenet", **words)
    line = str(caught.value)
    assert "\n" not in line and "--weights FILE" in line and f"--backbone {LITE}" in line, line
    return line


def test_torchvisions_file_is_fetched_once(published, server, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    network = build("resnet18")
    state = {key.split(".", 1)[1]: tensor for key, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "file")
    name = published((tmp_path / "file").read_bytes())
    for _ in range(2):
        loaded = build("resnet18", weights="imagenet")
        assert torch.equal(loaded.head.classifier.weight, network.head.classifier.weight)
    assert server.asked == [f"GET /models/{name}"]
    assert capfd.readouterr() == ("", "")
    (tmp_path / "hub" / "checkpoints" / name).write_bytes(b"cut off")
    assert "SHA-256" in refused("resnet18")


@pytest.mark.parametrize("content", [b"other bytes", b"<html>Please log in to this network</html>"])
def test_other_content_is_refused_and_not_kept(published, tmp_path: Path, content: bytes):
    name = published(content, hashed=b"what was published")
    line = refused("resnet18")
    assert f"/models/{name}" in line and str(tmp_path / "hub" / "checkpoints") in line
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def b0() -> tuple[dict[str, torch.Tensor], bytes]:
    state = timm.create_model("tf_efficientnet_b0").state_dict()
    return state, save(state)


def test_a_hubs_file_is_fetched_once(hub, b0, capfd: pytest.CaptureFixture[str]):
    state, content = b0
    hub.publish(HUB_SET, content)
    for _ in range(2):
        network = build(HUB_NAME, weights="imagenet")
        assert torch.equal(network.head.classifier.weight, state["classifier.weight"])
        own = network.backbone.state_dict()
        assert torch.equal(own["blocks.1.0.se.fc1.weight"], state["blocks.1.0.se.conv_reduce.weight"])
    assert hub.asked.count(f"GET /{HUB_SET}/resolve/main/model.safetensors") == 1
    asked = len(hub.asked)
    build(HUB_NAME, weights="imagenet", classes=3)
    assert len(hub.asked) == asked
    assert capfd.readouterr() == ("", "")


def test_offline_the_hub_is_not_asked(hub, b0, monkeypatch: pytest.MonkeyPatch):
    hub.publish(HUB_SET, b0[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(HUB_NAME)
    assert hub.asked == []


def test_a_hubs_wrong_files_are_refused(hub, b0, tmp_path: Path):
    _, content = b0
    assert "404" in refused(HUB_NAME)
    hub.add(f"/{HUB_SET}/resolve/main/model.safetensors", b"<html>Please log in to this network</html>")
    assert HUB_SET in refused(HUB_NAME)
    hub.publish(HUB_SET, content[:-1000], size=len(content), digest=sha256(content).hexdigest())
    assert HUB_SET in refused(HUB_NAME)
    hub.publish(HUB_SET, content, digest="0" * 64)
    for digest in ("0" * 64, sha256(content).hexdigest()):  # fetched with other content, cut off in the cache
        line = refused(HUB_NAME)
        (blob,) = (tmp_path / "hub").rglob(digest)
        assert f"{blob} has the SHA-256" in line
        blob.unlink()
        hub.publish(HUB_SET, content)
        build(HUB_NAME, weights="imagenet")
        (blob,) = (tmp_path / "hub").rglob(sha256(content).hexdigest())
        blob.write_bytes(content[:-1000])


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes calls and never says a word."""
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield "http://{}:{}".format(*listening.getsockname())


@pytest.mark.parametrize("name", ["resnet18", HUB_NAME])
def test_a_server_that_says_nothing(name: str, hub, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    template = silent + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    nowhere = SimpleNamespace(url=f"{silent}/resnet18-f37072fd.pth")
    monkeypatch.setattr("torchvision.models.get_weight", lambda _: nowhere)
    refused(name)  # or it would wait for ever


def test_a_download_leaves_the_process_as_it_is(hub, b0, published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While it runs too: other threads have sockets, loggers, warnings and progress bars of their own."""

    def state() -> tuple[Any, ...]:
        bars = huggingface_hub.utils.are_progress_bars_disabled()
        return socket.getdefaulttimeout(), logging.root.manager.disable, list(warnings.filters), bars

    during: list[tuple[Any, ...]] = []
    hub.publish(HUB_SET, b0[1])
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "file")
    published((tmp_path / "file").read_bytes())
    monkeypatch.setattr(hub, "on_request", lambda: during.append(state()))
    before = state()
    PUBLISHED_WEIGHTS[HUB_NAME].fetch()
    PUBLISHED_WEIGHTS["resnet18"].fetch()
    assert len(during) >= 3 and all(seen == before for seen in [*during, state()])


def test_without_a_network_one_line(tmp_path: Path):
    """As a user sees it, in a process of its own, with the hub and the cache that the environment names."""
    program = f"""
import sys
from fieldmark.core.errors import FieldmarkError
from fieldmark.models import build
try:
    build({HUB_NAME!r}, weights="imagenet")
except FieldmarkError as error:
    print(error, file=sys.stderr)
"""
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert "fetch http://" in done.stderr and f"{HUB_SET}/resolve/main/model.safetensors from the hub" in done.stderr


def test_addresses_that_timm_knows(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = timm.create_model("legacy_seresnet50").state_dict()
    torch.save(state, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    path = f"/se_resnet50-{sha256(content).hexdigest()[:8]}.pth"
    server.add(path, content)
    known = SimpleNamespace(url=server.url + path)
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name: {"legacy_seresnet50.in1k": known}[name])
    network = build("seresnet50", weights="imagenet")
    assert torch.equal(network.head.classifier.weight, state["last_linear.weight"])
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[timm\]'"):
        build("seresnet50", weights="imagenet")
