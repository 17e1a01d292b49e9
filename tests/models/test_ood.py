"""A photo like those of the training scores high, one of another world low, whatever its logits."""

import numpy as np
import pytest
import torch

from fieldmark.core.errors import FieldmarkError
from fieldmark.inference import bundle
from fieldmark.models import build
from fieldmark.models.ood import OODScorer, combine_components, make_scorer
from fieldmark.models.state import load_state, save_state

GROUPS, LAST_MAP = (10, 30, 10, 30), 1


def photos(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features whose second group lies around one of three corners, logits that are high for it, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    features = 1 + 0.3 * rng.normal(size=(n, sum(GROUPS)))
    features[:, 10:40] += 3 * np.eye(30)[labels]
    logits = 4 * np.eye(3)[labels] + rng.normal(size=(n, 3))
    return features.astype(np.float32), logits.astype(np.float32), labels


def fitted() -> tuple[OODScorer, float]:
    """A scorer, and the score that 90 % of its validation images reach."""
    features, logits, _ = photos(200, 1)
    known = OODScorer(3, GROUPS, LAST_MAP).fit(*photos(300, 0), features, logits)
    return known, float(np.quantile(known.score_arrays(features, logits), 0.1))


def test_its_own_images_pass():
    known, least = fitted()
    own = known.score_arrays(*photos(400, 2)[:2])
    assert 0.85 < (own >= least).mean() < 0.95 and ((own > 0) & (own < 1)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda features, logits: (features, np.zeros_like(logits)),  # where they should be, but like none of them
        lambda features, logits: (np.roll(features, 10, 1), logits),  # as sure as ever, but somewhere else
        lambda features, logits: (np.roll(features, 10, 1), 50 * logits),  # and surer than any image of training
        lambda features, logits: (
            features + np.r_[np.ones(10), np.zeros(30), np.ones(40)].astype(np.float32),
            50 * logits,
        ),
    ],
    ids=["near", "far", "far and sure", "other stages"],
)
def test_out_of_distribution_images_do_not(change):
    known, least = fitted()
    assert (known.score_arrays(*change(*photos(400, 3)[:2])) < least).mean() > 0.95


def test_a_constant_in_all_logits_says_nothing():
    known, _ = fitted()
    features, logits, _ = photos(50, 4)
    np.testing.assert_allclose(
        known.score_arrays(features, logits + 7), known.score_arrays(features, logits), atol=1e-5
    )


def test_of_two_classes_the_direction_of_the_logits_says_nothing():
    rng = np.random.default_rng(0)
    features, logits = rng.random((300, 40)).astype(np.float32), rng.normal(size=(300, 2)).astype(np.float32)
    known = OODScorer(2, [40], 0).fit(features, logits, logits.argmax(1), features, logits)
    parts = (known.score_components(torch.from_numpy(features), torch.from_numpy(logits)) - known.mean) / known.sd
    assert parts[:, 1:3].abs().max() < 1e-2 < parts[:, 0].std()


def test_a_channel_that_is_silent_in_training_does_not_outweigh_the_others():
    features, logits, labels = photos(300, 0)
    features[:, 0] = 0
    val_features, val_logits, _ = photos(200, 1)
    val_features[:, 0] = 0
    known = OODScorer(3, GROUPS, LAST_MAP).fit(features, logits, labels, val_features, val_logits)
    least = np.quantile(known.score_arrays(val_features, val_logits), 0.1)
    seen, seen_logits, _ = photos(200, 2)
    seen[:, 0] = 0.05  # a sixth of the deviation of its neighbours
    assert (known.score_arrays(seen, seen_logits) >= least).mean() > 0.8


def test_features_off_the_subspace_of_training_are_rejected_though_each_is_usual():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, sum(GROUPS))).astype(np.float32)  # five causes of all features

    def correlated(n: int) -> np.ndarray:
        return rng.normal(size=(n, 5)).astype(np.float32) @ mixing + 0.1 * rng.normal(size=(n, 80)).astype(np.float32)

    logits, labels = photos(700, 0)[1:]
    own, val, test = correlated(300), correlated(200), correlated(200)
    known = OODScorer(3, GROUPS, LAST_MAP).fit(own, logits[:300], labels[:300], val, logits[300:500])
    least = np.quantile(known.score_arrays(val, logits[300:500]), 0.1)
    shuffled = rng.permuted(test, axis=0)  # each feature by itself: the values are the same
    assert (known.score_arrays(test, logits[500:]) >= least).mean() > 0.8
    assert (known.score_arrays(shuffled, logits[500:]) < least).mean() > 0.95


def test_more_similar_images_need_higher_logits():
    known, _ = fitted()
    features, logits, labels = photos(400, 2)
    corners = np.eye(sum(GROUPS), dtype=np.float32)[10 + labels]
    x = torch.from_numpy(logits)
    usual, similar = (known.score_components(torch.from_numpy(part), x) for part in (features, features + 3 * corners))
    assert torch.equal(usual[:, :3], similar[:, :3]) and (similar[:, 3] > usual[:, 3]).all()
    only_similarity = usual.clone()
    only_similarity[:, 3] = similar[:, 3]
    scores = [
        combine_components(part, known.mean, known.sd, known.near_sd, known.far_sd) for part in (usual, only_similarity)
    ]
    assert (scores[1] <= scores[0]).all() and (scores[1] < scores[0]).float().mean() > 0.5


def test_fewer_images_than_directions():
    features, logits, labels = photos(6, 0)
    known = OODScorer(3, GROUPS, LAST_MAP).fit(features, logits, labels, *photos(40, 1)[:2])
    gram = known.directions.T @ known.directions
    torch.testing.assert_close(gram, torch.diag((torch.arange(len(gram)) < 5).float()), atol=1e-5, rtol=0)
    one = OODScorer(3, GROUPS, LAST_MAP).fit(features[:1], logits[:1], labels[:1], *photos(40, 1)[:2])
    assert not one.directions.any() and np.isfinite(one.score_arrays(features, logits)).all()


def test_without_validation_photos_or_a_class():
    features, logits, labels = photos(30, 0)
    some = labels < 2
    known = OODScorer(3, GROUPS, LAST_MAP).fit(features[some], logits[some], labels[some], features[:0], logits[:0])
    assert torch.equal(known.centroids[2], torch.zeros(30)) and torch.equal(known.logit_centroids[2], torch.zeros(3))
    assert np.isfinite(known.score_arrays(features, np.zeros((30, 3), np.float32))).all()
    assert known.score_arrays(features[:0], logits[:0]).shape == (0,)


@pytest.mark.parametrize("words", ["resnet18", "resnet18+head=gem", "efficientnet_lite0+head=multi_stage"])
def test_it_reads_what_the_head_reads(words: str):
    network = build(words, classes=3).eval()
    maps = network.features(torch.rand(2, 3, 64, 64))
    features, scorer = network.head.score_features(maps), make_scorer(network)
    assert features.shape == (2, len(scorer.feature_mean)) and sum(scorer.groups) == features.shape[1]
    last_map = features.split(scorer.groups, 1)[scorer.last_map]
    torch.testing.assert_close(last_map, network.head.embed(maps))
    assert last_map.shape[1] == scorer.centroids.shape[1]


def test_the_bundle_gives_it_back(small_run):
    known, info = bundle.load_ood_scorer(small_run), bundle.read_info(small_run)
    assert known.centroids.shape[0] == len(info.classes)
    torch.testing.assert_close(known.centroids.norm(dim=1), torch.ones(len(info.classes)))
    assert 0 <= info.threshold < 1


def test_one_of_an_earlier_version_is_refused_in_one_line(small_run, tmp_path):
    for name in ("bundle.json", "model.onnx", "known.safetensors"):
        (tmp_path / name).write_bytes((small_run / "bundle" / name).read_bytes())
    tensors, _ = load_state(tmp_path / "known.safetensors")
    save_state(tmp_path / "known.safetensors", {name: tensors[name] for name in ("centroids", "mean", "sd")})
    with pytest.raises(FieldmarkError, match="earlier version"):
        bundle.load_ood_scorer(tmp_path)
