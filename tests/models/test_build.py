"""build: its example runs, its networks export, and the package stays alone."""

import ast
import doctest
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fieldmark.models
from fieldmark.models import Network, build, builder


def test_the_example_runs():
    assert doctest.testmod(builder) == (0, 1)


def test_the_package_imports_only_core():
    files = list(Path(fieldmark.models.__file__).parent.rglob("*.py"))
    assert len(files) > 8
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                ours = name.split(".")[0] == "fieldmark"
                assert not ours or name.startswith(("fieldmark.core", "fieldmark.models")), (file, name)


class Exported(nn.Module):
    """What a bundle's graph gives: logits, and the evidence for the top class."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(x)
        logits = self.network.head(features)
        return logits, self.network.head.evidence(features, logits.argmax(1))


@torch.no_grad()
@pytest.mark.slow
def test_gates_heads_and_evidence_export(tmp_path: Path):
    torch.manual_seed(0)
    words = "efficientnet_lite0+attention=mask+after=-1:se(norm=True)+head=bilinear(reduced=16,hidden=8)"
    network = Exported(build(words, classes=5)).eval()
    x = torch.randn(2, 3, 64, 64)
    file = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (x,),
        file,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
    )
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file)
    for photos in (x, torch.randn(5, 3, 64, 64)):
        logits, evidence = session.run(None, {session.get_inputs()[0].name: photos.numpy()})
        for theirs, ours in zip((logits, evidence), network(photos), strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)
