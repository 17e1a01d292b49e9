"""What is asked next: each image once, those that teach most, no scene twice in a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from taught import clusters, unit

from fieldmark.pipeline.teaching import queue
from fieldmark.pipeline.teaching.learner import PENALTY, fit, inverse_of, with_constant
from fieldmark.pipeline.teaching.queue import (
    MIN_FOR_NOVELTY,
    are_novel,
    find_clusters,
    nearest_images,
    next_images,
    uncertainty,
)


def one_by_one(features: np.ndarray, moments: np.ndarray, scores: np.ndarray | None, n: int) -> list[int]:
    """The choices by `next_images`' definition, with an explicit inverse for each step."""
    x = with_constant(features)
    own = np.ones(len(x)) if scores is None else scores
    reference = (x * own[:, None]).T @ x
    exponent = 1.0 if scores is None else queue.VARIANCE_EXPONENT
    chosen = list[int]()
    for _ in range(n):
        inverse = np.linalg.inv(moments)
        with_each = 1 + np.einsum("ij,jk,ik->i", x, inverse, x)
        reduction = np.einsum("ij,jk,kl,lm,im->i", x, inverse, reference, inverse, x) / with_each
        value = reduction**exponent * own
        value[chosen] = -1
        chosen.append(int(value.argmax()))
        moments = moments + np.outer(x[chosen[-1]], x[chosen[-1]])
    return chosen


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_a_batch_is_chosen_one_by_one(seed: int, has_scores: bool):
    rng = np.random.default_rng(seed)
    features, labelled = unit(rng.normal(size=(30, 6))), with_constant(unit(rng.normal(size=(10, 6))))
    scores = rng.uniform(0.1, 1, 30) if has_scores else None
    moments = labelled.T @ labelled + PENALTY * np.eye(7)
    expected = one_by_one(features, moments, scores, 8)
    assert next_images(features, np.linalg.inv(moments), scores, 8) == expected


@given(st.integers(0, 30), st.integers(0, 40), st.booleans())
def test_each_image_once_and_as_many_as_there_are(m: int, n: int, has_scores: bool):
    features = unit(np.random.default_rng(m).normal(size=(m, 4)))
    chosen = next_images(features, inverse_of(features[:0]), np.linspace(0.1, 1, m) if has_scores else None, n)
    assert len(set(chosen)) == len(chosen) == min(m, n) and set(chosen) <= set(range(m))


@pytest.mark.parametrize("has_scores", [True, False])
def test_of_many_images_the_most_uncertain_are_compared(monkeypatch: pytest.MonkeyPatch, has_scores: bool):
    monkeypatch.setattr(queue, "MAX_COMPARED", 50)
    monkeypatch.setattr(queue, "MAX_REFERENCE", 20)
    features = clusters(200)[0]
    scores = np.random.default_rng(0).uniform(0.1, 1, 200)
    chosen = next_images(features, inverse_of(features[:0]), scores if has_scores else None, 60)
    assert len(set(chosen)) == len(chosen) == 50
    if has_scores:
        assert set(chosen) == set(np.argsort(-scores)[:50])
    else:  # a random part, not the first ones
        assert max(chosen) > 150 and set(chosen) != set(
            next_images(features, inverse_of(features[:0]), None, 60, seed=1)
        )


@pytest.mark.parametrize("copies", [3, 40])
@pytest.mark.parametrize("has_scores", [True, False])
def test_identical_images_are_not_asked_in_one_batch(has_scores: bool, copies: int):
    features = np.concatenate([np.tile(unit(np.eye(20)[:1]), (copies, 1)), unit(np.eye(20)[1:])])
    scores = np.repeat([1.0, 0.1], [copies, 19]) if has_scores else None
    groups = np.maximum(np.arange(copies + 19) - copies + 1, 0)
    chosen = next_images(features, inverse_of(features[:0]), scores, 20, groups)
    assert sorted(groups[chosen]) == list(range(20))
    more = next_images(features, inverse_of(features[:0]), scores, 22, groups)
    assert more[:20] == chosen and len(set(more)) == 22


def test_images_that_resemble_those_before_them_wait_without_groups_too():
    features = np.concatenate([np.tile(unit(np.eye(20)[:1]), (2, 1)), unit(np.eye(20)[1:])])
    scores = np.repeat([1.0, 0.9], [2, 19])
    chosen = next_images(features, inverse_of(features[:0]), scores, 8)
    assert chosen[0] < 2 and min(chosen[1:]) >= 2


def test_without_a_classifier_it_sees_all_clusters_at_once():
    features, labels = clusters(300, classes=8, k=32)
    chosen = next_images(features, inverse_of(features[:0]), None, 8)
    assert len(set(labels[chosen])) == 8


def test_an_image_between_two_classes_is_the_most_uncertain():
    features, labels = clusters(60, 2, spread=0.2)
    model = fit(features, labels, 2)
    between = unit(features[labels == 0].mean(0, keepdims=True) + features[labels == 1].mean(0, keepdims=True))
    scores = uncertainty(model, np.concatenate([features, between]), np.array([30, 30]))
    assert scores.argmax() == 60 and (scores > 0).all() and (scores <= 1).all()


def test_classes_with_few_labels_come_first():
    features, labels = clusters(60, 2)
    model, equal = fit(features, labels, 2), uncertainty(fit(features, labels, 2), features, np.array([9, 9]))
    few = uncertainty(model, features, np.array([9, 1]))
    predicted = model.scores(features).argmax(1)
    np.testing.assert_allclose(few[predicted == 1], 3 * equal[predicted == 1])
    np.testing.assert_array_equal(few[predicted == 0], equal[predicted == 0])


@given(st.integers(0, 20), st.integers(1, 10))
def test_similar_images_begin_with_the_image_itself(row: int, n: int):
    features = clusters(21)[0]
    candidates = np.arange(5, 21)
    found = nearest_images(features, row, candidates, n)
    cosine = features @ features[row]
    assert found[0] == row and len(set(found)) == len(found) == min(n, 17 if row < 5 else 16)
    assert set(found[1:]) <= set(candidates) and (np.diff(cosine[found[1:]]) <= 0).all()


def test_clusters_are_of_one_class_each():
    features, labels = clusters(200, 4, spread=0.1)
    found = find_clusters(features, 6, 10)
    assert all(len(set(labels[members])) == 1 and 1 <= len(members) <= 10 for members in found)
    assert len({row for members in found for row in members}) == sum(map(len, found))
    assert {labels[members[0]] for members in found} == {0, 1, 2, 3}


@pytest.mark.parametrize("m", [0, 1, 3])
def test_clusters_of_few_images(m: int):
    assert sorted(row for members in find_clusters(clusters(9)[0][:m], 12, 24) for row in members) == list(range(m))


def test_clusters_of_identical_images():
    features = np.tile(clusters(1, 1)[0], (30, 1))
    found = find_clusters(features, 3, 5)
    assert found and all(members for members in found)


def test_clusters_of_a_sample_are_rows_of_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "MAX_CLUSTERED", 50)
    features, labels = clusters(200, 4, spread=0.1)
    for members in find_clusters(features, 6, 10):
        assert len(set(labels[members])) == 1 and max(members) < 200


def test_an_image_unlike_the_labelled_ones_is_novel():
    features, _ = clusters(200, 4, spread=0.2)
    away = -features[:1]
    assert are_novel(away, features).all()
    assert are_novel(features[:100], features[100:]).mean() < 0.2
    assert not are_novel(away, features[: MIN_FOR_NOVELTY - 1]).any()
    assert are_novel(features[:0], features).shape == (0,)
