"""Deletion and insertion separate a map of the object from its negative and from random maps."""

import numpy as np
import pytest
import torch
from bright import counts_brightness, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.explanation import faithfulness

SIZE = 64


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """An image, its mean colour, and a map (8, 8) of its object."""
    x, inside = planted()
    return x, torch.zeros_like(x), inside[::8, ::8].astype(np.float32)


def test_the_map_of_the_object_beats_its_negative_and_chance(scene):
    x, hidden, where = scene
    noise = [faithfulness.random_map(where.shape, seed) for seed in range(4)]
    found = faithfulness.deletion_insertion(counts_brightness(), x, hidden, [where, -where, *noise], 0)
    assert found.shape == (6, 2) and (found >= 0).all() and (found <= 1).all()
    deletion, insertion = found.T
    assert deletion[0] < deletion[2:].min() <= deletion[2:].max() < deletion[1]
    assert insertion[0] > insertion[2:].max() >= insertion[2:].min() > insertion[1]


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_deletion_of_a_map_is_insertion_of_its_negative(seed: int):
    torch.manual_seed(seed)
    x, hidden = torch.rand(2, 1, 3, SIZE, SIZE)
    importance = faithfulness.random_map((8, 8), seed)
    (deletion, insertion), (other_deletion, other_insertion) = faithfulness.deletion_insertion(
        counts_brightness(), x, hidden, [importance, -importance], 1
    )
    assert deletion == pytest.approx(other_insertion, abs=1e-5)
    assert insertion == pytest.approx(other_deletion, abs=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100), shape=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_only_the_order_of_a_map_counts(seed: int, factor: float, shape: tuple[int, int]):
    torch.manual_seed(seed)
    x, hidden = torch.rand(2, 1, 3, SIZE, SIZE)
    importance = faithfulness.random_map(shape, seed)
    maps = [importance, importance * np.float32(factor)]
    one, other = faithfulness.deletion_insertion(counts_brightness(), x, hidden, maps, 0)
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_a_constant_network_has_the_same_area_for_every_map(scene):
    x, hidden, where = scene
    network = counts_brightness()
    with torch.no_grad():
        network.head.classifier.weight.zero_()
    expected = 1 / (1 + np.exp(2 / 1.5))  # the biases are -1 and 1, the temperature 1.5
    found = faithfulness.deletion_insertion(network, x, hidden, [where, np.zeros((3, 5))], 0, temperature=1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ties_are_broken_at_random(scene):
    """A constant map scores as a random one."""
    x, hidden, where = scene
    x = torch.where(torch.arange(SIZE)[:, None] < SIZE // 2, 1.0, 0.0).expand_as(x)
    (deletion, insertion), *_ = faithfulness.deletion_insertion(
        counts_brightness(), x, hidden, [np.zeros_like(where)], 0
    )
    assert deletion == pytest.approx(insertion, abs=0.05)


def test_random_maps_depend_on_the_seed_alone():
    np.testing.assert_array_equal(faithfulness.random_map((7, 8), 3, 4), faithfulness.random_map((7, 8), 3, 4))
    assert len({faithfulness.random_map((7, 8), seed).tobytes() for seed in range(9)}) == 9


def test_blur_keeps_colours_and_removes_details():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    blurred = faithfulness.blur_image(photo)
    assert blurred.shape == photo.shape and blurred.dtype == np.uint8
    np.testing.assert_allclose(blurred.mean((0, 1)), photo.mean((0, 1)), atol=3)
    assert blurred.std() < photo.std() / 5
