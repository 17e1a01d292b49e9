"""The classifier is the explicit solution; what it says of images that were left out is what refitting would say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from taught import clusters, unit

from fieldmark.pipeline.teaching.learner import (
    CLASS_EXPONENT,
    PENALTY,
    UNKNOWN_SCORE,
    LinearModel,
    fit,
    inverse_of,
    leave_out_scores,
    with_constant,
)

SEEDS = st.integers(0, 10_000)


def problem(seed: int, n: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels of classes of unequal sizes, and groups of up to several images, some of them identical."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.choice(classes, n - classes, p=rng.dirichlet(np.ones(classes)))])
    features = unit(rng.normal(size=(n, 9)) + 2 * np.eye(9)[labels])
    groups = rng.integers(0, n // 3, n)
    features[groups == groups[0]] = features[0]
    return features, labels, groups


def weights_and_targets(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(labels, minlength=classes)
    weights = (counts[counts > 0].mean() / counts[labels]) ** CLASS_EXPONENT
    targets = np.full((len(labels), classes), -1 / np.count_nonzero(counts))
    targets[np.arange(len(labels)), labels] += 1
    return weights, targets


def ridge(features: np.ndarray, weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """By least squares on rows that are scaled, with rows for the penalty: another way than the normal equations."""
    x = np.concatenate([features, np.ones((len(features), 1))], 1, dtype=np.float64)
    root = np.sqrt(weights)[:, None]
    rows = np.concatenate([root * x, np.sqrt(PENALTY) * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([root * targets, np.zeros((x.shape[1], targets.shape[1]))]))[0]


@given(SEEDS)
def test_it_is_the_weighted_ridge_solution(seed: int):
    features, labels, _ = problem(seed)
    expected = ridge(features, *weights_and_targets(labels, 4))
    np.testing.assert_allclose(fit(features, labels, 4).weight, expected, atol=1e-6)


@given(SEEDS)
def test_left_out_scores_are_those_of_refitting_without_the_group(seed: int):
    features, labels, groups = problem(seed)
    weights, targets = weights_and_targets(labels, 4)  # of all images: they are held fixed
    expected = np.empty((len(labels), 4))
    for group in np.unique(groups):
        inside = groups == group
        weight = ridge(features[~inside], weights[~inside], targets[~inside])
        expected[inside] = with_constant(features[inside]) @ weight
    scores = leave_out_scores(fit(features, labels, 4, groups), features, labels, groups)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-8)


def test_left_out_scores_of_large_groups_of_identical_images():
    features, labels = clusters(60, 2, spread=0.0)
    scores = leave_out_scores(fit(features, labels, 2, labels), features, labels, labels)
    weights, targets = weights_and_targets(labels, 2)
    for k in range(2):
        other = labels != k
        expected = with_constant(features[~other]) @ ridge(features[other], weights[other], targets[other])
        np.testing.assert_allclose(scores[~other], expected, rtol=0, atol=1e-8)


@given(SEEDS)
def test_a_class_without_labels_is_never_predicted(seed: int):
    features, labels, groups = problem(seed)
    labels = labels * 2  # the odd ones have none
    model = fit(features, labels, 8, groups)
    anywhere = unit(np.random.default_rng(seed).normal(size=(200, 9)))
    for scores in (model.scores(anywhere), leave_out_scores(model, features, labels, groups)):
        assert (scores.argmax(1) % 2 == 0).all() and (scores[:, 1::2] == UNKNOWN_SCORE).all()
    assert (model.probabilities(anywhere).argmax(1) % 2 == 0).all()


@given(SEEDS, st.integers(0, 3))
def test_further_classes_change_no_prediction(seed: int, more: int):
    features, labels, _ = problem(seed)
    model = fit(features, labels, 4)
    wider = model.with_classes(4 + more)
    np.testing.assert_array_equal(wider.scores(features)[:, :4], model.scores(features))
    np.testing.assert_array_equal(wider.logits(features).argmax(1), model.logits(features).argmax(1))
    assert wider.probabilities(features).shape == (40, 4 + more) and wider.with_classes(4 + more).scale == model.scale


@given(SEEDS)
def test_the_scale_fits_the_predictions_of_images_that_were_left_out(seed: int):
    features, labels, groups = problem(seed)
    model = fit(features, labels, 4, groups)
    scores = leave_out_scores(model, features, labels, groups)

    def cross_entropy(scale: float) -> float:
        return float(-log_softmax(scale * scores, axis=1)[np.arange(40), labels].mean())

    best = cross_entropy(model.scale)
    assert all(best <= cross_entropy(scale) + 1e-3 for scale in (1.0, model.scale / 1.2, min(50, model.scale * 1.2)))


def test_groups_make_it_less_sure():
    """Identical images with one label each would vouch for each other."""
    features, labels = clusters(30, 3, spread=1.5)
    repeated, names = np.repeat(features, 4, 0), np.repeat(labels, 4)
    alone = fit(repeated, names, 3).scale
    assert fit(repeated, names, 3, np.repeat(np.arange(30), 4)).scale < alone


def test_the_order_of_the_images_does_not_matter():
    features, labels, groups = problem(1)
    order = np.random.default_rng(0).permutation(40)
    one, other = fit(features, labels, 4, groups), fit(features[order], labels[order], 4, groups[order])
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-6)
    assert one.scale == pytest.approx(other.scale, rel=1e-4)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_the_inverse_before_there_is_a_classifier(n: int):
    features = clusters(5)[0][:n]
    x = with_constant(features)
    np.testing.assert_allclose(inverse_of(features) @ (x.T @ x + PENALTY * np.eye(13)), np.eye(13), atol=1e-9)


def test_a_rare_class_counts_more_for_each_image():
    """20 images of one class and 2 of another, all alike but for one coordinate: the rare one is still found."""
    features = unit(np.concatenate([np.tile([1.0, 0.2, 0.0], (20, 1)), np.tile([1.0, 0.0, 0.2], (2, 1))]))
    labels = np.repeat([0, 1], [20, 2])
    model = fit(features, labels, 2)
    plain = LinearModel(
        ridge(features, np.ones(22), weights_and_targets(labels, 2)[1]).astype(np.float32),
        model.is_known,
        model.inverse,
    )
    gain = model.scores(features[20:])[:, 1] - plain.scores(features[20:])[:, 1]
    assert (gain > 0).all()
