"""The exact head: the optimum that scikit-learn finds too, whatever the scale, and the decay that validation wants."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fieldmark.models import linear_probe
from fieldmark.models.linear_probe import average_classifiers, fit_logistic_regression


def photos(seed: int, n: int = 300, noise: float = 1.0) -> tuple[np.ndarray, torch.Tensor]:
    """Features (n, 12) of three classes, far from zero mean."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, n)
    centres = np.random.default_rng(0).normal(size=(3, 12))
    return (5 + centres[labels] + noise * draw.normal(size=(n, 12))).astype(np.float32), torch.from_numpy(labels)


def test_it_is_the_optimum_that_scikit_learn_finds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear_probe, "ROWS_PER_BLOCK", 64)  # several blocks, the last one short
    features, labels = photos(1)
    fc = nn.Linear(12, 3)
    decay = fit_logistic_regression(features, labels, features[:0], labels[:0], fc)
    scale = np.sqrt(features.var(0).mean())
    theirs = LogisticRegression(C=1 / (2 * decay * len(features)), tol=1e-8, max_iter=1000)
    theirs.fit((features - features.mean(0)) / scale, labels.numpy())
    with torch.inference_mode():
        ours = fc(torch.from_numpy(features)).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba((features - features.mean(0)) / scale), atol=2e-3)


def test_the_scale_of_the_features_changes_nothing():
    features, labels = photos(2)
    found = []
    for factor in (1.0, 1000.0):
        fc = nn.Linear(12, 3)
        fit_logistic_regression(features * factor, labels, features[:50] * factor, labels[:50], fc)
        with torch.inference_mode():
            found.append(fc(torch.from_numpy(features * factor)).softmax(1))
    torch.testing.assert_close(found[0], found[1], atol=5e-3, rtol=0)  # what is left when the steps end


def test_validation_chooses_the_decay():
    features, labels = photos(3, n=40, noise=3.0)  # few and noisy: a strong decay is better
    val, val_labels = photos(4, noise=3.0)
    losses = {}
    for decays in [*((decay,) for decay in linear_probe.WEIGHT_DECAYS), linear_probe.WEIGHT_DECAYS]:
        fc = nn.Linear(12, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear_probe, "WEIGHT_DECAYS", decays)
            chosen = fit_logistic_regression(features, labels, val, val_labels, fc)
        with torch.inference_mode():
            losses[decays] = nn.functional.cross_entropy(fc(torch.from_numpy(val)), val_labels).item()
    assert losses[linear_probe.WEIGHT_DECAYS] == pytest.approx(min(losses.values()), abs=1e-3)
    assert losses[(chosen,)] == pytest.approx(min(losses.values()), abs=1e-3)


def test_weights_of_classes_count():
    features, labels = photos(5, noise=3.0)
    fc = nn.Linear(12, 3)
    answers = []
    for weights in (None, torch.tensor([20.0, 1.0, 1.0])):
        fit_logistic_regression(features, labels, features[:50], labels[:50], fc, class_weights=weights)
        with torch.inference_mode():
            answers.append((fc(torch.from_numpy(features)).argmax(1) == 0).float().mean().item())
    assert answers[1] > answers[0] + 0.1


def test_smoothing_makes_it_as_sure_as_the_loss_wants():
    features, labels = photos(6, noise=0.1)
    fc = nn.Linear(12, 3)
    fit_logistic_regression(features, labels, features[:50], labels[:50], fc, smoothing=0.3)
    with torch.inference_mode():
        sure = fc(torch.from_numpy(features)).softmax(1).amax(1)
    assert sure.mean() == pytest.approx(1 - 0.3 * 2 / 3, abs=0.03)


def two_classifiers(features: np.ndarray, labels: torch.Tensor) -> tuple[nn.Linear, nn.Linear]:
    """Of all twelve features and of the columns 2 to 5."""
    fc, other = nn.Linear(12, 3), nn.Linear(4, 3)
    fit_logistic_regression(features, labels, features[:0], labels[:0], fc)
    fit_logistic_regression(features[:, 2:6], labels, features[:0, 2:6], labels[:0], other)
    return fc, other


def test_a_mean_of_two_classifiers_has_the_mean_of_their_logits():
    features, labels = photos(5)
    x = torch.from_numpy(features)
    fc, other = two_classifiers(features, labels)
    with torch.inference_mode():
        expected = torch.lerp(fc(x), other(x[:, 2:6]), linear_probe.DEFAULT_SHARE)
        assert average_classifiers(fc, other, slice(2, 6), features[:0], labels[:0]) == linear_probe.DEFAULT_SHARE
        torch.testing.assert_close(fc(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("informative", ["columns", "rest"])
def test_validation_chooses_the_share(informative: str):
    def draw(seed: int) -> tuple[np.ndarray, torch.Tensor]:
        features, labels = photos(seed, n=400)
        noise = np.random.default_rng(seed).normal(size=features.shape).astype(np.float32)
        is_noise = np.isin(np.arange(12), range(2, 6)) == (informative == "rest")
        return np.where(is_noise, 5 + noise, features), labels

    (features, labels), (val, val_labels) = draw(6), draw(7)
    fc, other = two_classifiers(features[:40], labels[:40])
    with torch.inference_mode():
        before = nn.functional.cross_entropy(fc(torch.from_numpy(val)), val_labels).item()
        share = average_classifiers(fc, other, slice(2, 6), val, val_labels)
        after = nn.functional.cross_entropy(fc(torch.from_numpy(val)), val_labels).item()
    assert after <= before + 1e-6
    assert share == (0.5 if informative == "columns" else 0.0)
