"""Second-order heads: the papers' formulas, the Tensor Sketch held against its form by FFT and against its kernel."""

from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fieldmark.models import Bilinear, SelfProduct, build
from fieldmark.models.bilinear import TensorSketch


@torch.no_grad()
def test_bilinear_description_is_the_papers():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    outer = sum(torch.outer(x[0, :, i, j], x[0, :, i, j]) for i in range(2) for j in range(2))
    assert isinstance(outer, torch.Tensor)
    root = outer.sign() * (outer.abs() + 1e-10).sqrt()
    expected = (root / root.norm()).flatten()
    torch.testing.assert_close(Bilinear(3, 2).pool_features(x)[0], expected)


def test_bilinear_vgg16_has_the_weights_of_the_write_up():
    with torch.device("meta"):
        network = build("vgg16+head=bilinear(hidden=1024)", classes=200)
        assert sum(parameter.numel() for parameter in network.parameters()) == 283_356_168
        assert network.features(torch.empty(1, 3, 300, 300)).shape == (1, 512, 9, 9)
        assert network.head.fc(torch.empty(1, 1024)).shape == (1, 200)


@torch.no_grad()
def test_the_self_product_is_the_diagonal_of_the_bilinear_form():
    x = torch.randn(2, 5, 3, 4)
    outer = torch.einsum("nchw,ndhw->ncd", x, x)
    torch.testing.assert_close(SelfProduct(5, 2).pool_features(x), outer.diagonal(dim1=1, dim2=2) / 12)


def test_the_sketch_is_the_papers_convolution_by_fft():
    sketch, d = TensorSketch(6, 10), 10
    draw = np.random.RandomState(0)
    places, signs = draw.randint(d, size=(2, 6)), draw.choice([-1.0, 1.0], size=(2, 6))
    positions = torch.randn(4, 6, dtype=torch.float64)
    expected = torch.zeros(d, dtype=torch.float64)
    for x in positions:
        counts = torch.zeros(2, d, dtype=torch.float64)
        for stream, i in product(range(2), range(6)):
            counts[stream, places[stream, i]] += signs[stream, i] * x[i]
        expected += torch.fft.ifft(torch.fft.fft(counts[0]) * torch.fft.fft(counts[1])).real
    form = positions.T @ positions
    torch.testing.assert_close(sketch(form[None])[0], expected)


@pytest.mark.parametrize("d", [64, 1024, 16384])
def test_sketches_multiply_as_the_squared_dot_product(d: int):
    torch.manual_seed(0)
    sketch = TensorSketch(32, d)
    x, y = torch.randn(2, 400, 32, dtype=torch.float64)
    sketches = [sketch(torch.einsum("ni,nj->nij", vectors, vectors)) for vectors in (x, y)]
    kernel = (x * y).sum(1).square()
    error = ((sketches[0] * sketches[1]).sum(1) - kernel) / (x.norm(dim=1) * y.norm(dim=1)).square()
    # The standard deviation that a draw of places and signs gives (Pham & Pagh 2013) is about 1 / sqrt(d).
    assert error.square().mean().sqrt() < 2 / d**0.5


def test_the_way_back_is_the_transpose():
    sketch = TensorSketch(5, 8)
    form, vector = torch.randn(3, 5, 5, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    there, back = (sketch(form) * vector).sum(), (form * sketch.transpose(vector)).sum()
    torch.testing.assert_close(there, back)


def test_the_sketch_is_always_the_same():
    torch.manual_seed(1)
    first = TensorSketch(64, 512)
    torch.manual_seed(2)
    assert torch.equal(first.places, TensorSketch(64, 512).places)
    assert torch.equal(first.signs, TensorSketch(64, 512).signs)
    assert not first.state_dict()
    assert first.places.max() == 511 and first.places[:6].tolist() == [355, 200, 462, 300, 300, 80]
    assert first.signs.unique().tolist() == [-1, 1] and abs(first.signs.mean()) < 0.3


@torch.no_grad()
def test_an_exported_sketch_says_the_same_each_time(tmp_path: Path):
    """Threads that add to the same place could lose sums."""
    sketch, form = TensorSketch(640, 256).eval(), torch.randn(1, 640, 640)
    torch.onnx.export(sketch, (form,), tmp_path / "sketch.onnx", dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "sketch.onnx")
    for _ in range(5):
        (found,) = session.run(None, {session.get_inputs()[0].name: form.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), sketch(form), rtol=1e-4, atol=1e-3)


def test_a_compact_head_counts_without_memory():
    with torch.device("meta"):
        head = Bilinear(512, 200, compact=8192)
        assert head(torch.empty(2, 512, 9, 9)).shape == (2, 200)
        assert head.classifier.in_features == 8192
