"""A photo like those of the training scores high, one of another world low, whatever its confidence."""

import numpy as np
import torch

from fieldmark.inference import bundle
from fieldmark.models.ood import OODScorer


def photos(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features around one of three corners, their labels, and logits that are high for it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    features = (3 * np.eye(40)[labels] + 0.3 * rng.random((n, 40))).astype(np.float32)
    logits = (4 * np.eye(3)[labels] + rng.normal(size=(n, 3))).astype(np.float32)
    return features, labels, logits


def test_both_kinds_of_strangers_score_lower():
    shown, labels, _ = photos(90, 0)
    features, _, logits = photos(200, 1)
    known = OODScorer.fit(shown, labels, features, logits)
    own = known.score_arrays(*photos(200, 2)[::2])
    least = np.quantile(known.score_arrays(features, logits), 0.1)
    assert 0.8 < (own >= least).mean() < 1 and ((own > 0) & (own < 1)).all()
    rng = np.random.default_rng(3)
    unsure = known.score_arrays(features, np.zeros_like(logits))  # where they should be, but like none of them
    elsewhere = known.score_arrays(np.roll(features, 20, 1), logits)  # as sure as ever, but somewhere else
    assert (unsure < least).mean() > 0.95 and (elsewhere < least).mean() > 0.95
    longer = known.score_arrays(features * rng.uniform(1, 9, (200, 1)).astype(np.float32), logits + 7)
    np.testing.assert_allclose(longer, known.score_arrays(features, logits), atol=1e-5)  # lengths say nothing


def test_of_two_classes_the_share_is_the_same_for_all_and_says_nothing():
    rng = np.random.default_rng(0)
    features, logits = rng.random((300, 40)).astype(np.float32), rng.normal(size=(300, 2)).astype(np.float32)
    known = OODScorer.fit(features, rng.integers(0, 2, 300), features, logits)
    parts = (known.score_components(torch.from_numpy(features), torch.from_numpy(logits)) - known.mean) / known.sd
    assert parts[:, 1].abs().max() < 1e-2 < parts[:, 0].std()


def test_without_validation_photos_or_a_class():
    shown, labels, _ = photos(30, 0)
    known = OODScorer.fit(shown[labels < 2], labels[labels < 2], shown[:0], np.zeros((0, 3), np.float32))
    assert torch.equal(known.centroids[2], torch.zeros(40))
    assert np.isfinite(known.score_arrays(shown, np.zeros((30, 3), np.float32))).all()
    assert known.score_arrays(shown[:0], np.zeros((0, 3), np.float32)).shape == (0,)


def test_the_bundle_gives_it_back(small_run):
    known, info = bundle.load_ood_scorer(small_run), bundle.read_info(small_run)
    assert known.centroids.shape[0] == len(info.classes)
    torch.testing.assert_close(known.centroids.norm(dim=1), torch.ones(len(info.classes)))
    assert 0 <= info.threshold < 1
