"""What to label next: images that the classifier is unsure of and that tell most about the others.

Of each image: its uncertainty, times a root of how much its label would lower the variance of the predictions of all
uncertain images (Cohn, Ghahramani & Jordan 1996, "Active Learning with Statistical Models", equation 6, for the
least-squares classifier of `learner.py`). The second factor prefers images that resemble many others and none that is
labelled; without a classifier it chooses alone. Images are chosen one after the other, each as if those before it were
labelled already, and of near-duplicates one as long as there are others, so that a batch does not show one scene twice.
"""

import numpy as np

from fieldmark.pipeline.teaching.learner import LinearModel, with_constant

VARIANCE_EXPONENT = 0.125
"""Of the reduction of variance, beside the uncertainty."""
ENOUGH_LABELS = 5
"""Labels of a class up to which it is preferred."""
MAX_COMPARED = 4000
"""Images among which the next ones are chosen; of more, the most uncertain."""
MAX_REFERENCE = 2000
"""Images whose variance counts."""
MAX_CLUSTERED = 3000
MIN_FOR_NOVELTY, NOVEL_QUANTILE, MAX_SAMPLED = 20, 0.05, 500
"""Of `are_novel`."""


def uncertainty(model: LinearModel, features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Uncertainty of each image, (n, k) -> (n,), above 0 and at most 1.

    It is 1 minus the margin between the two best scores (Roth & Small 2006, "Margin-Based Active Learning for
    Structured Output Spaces"), larger where the predicted class has fewer than `ENOUGH_LABELS`.

    Args:
        counts: labels of each class.
    """
    scores = model.scores(features)
    top = np.partition(scores, -2, axis=1)[:, -2:]
    margin = np.clip(top[:, 1] - top[:, 0], 0, 0.999)
    return (1 - margin) / (1 + np.minimum(counts, ENOUGH_LABELS)[scores.argmax(1)])


def next_images(
    features: np.ndarray,
    inverse: np.ndarray,
    scores: np.ndarray | None,
    n: int,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> list[int]:
    """Positions of the `n` images to label next.

    Args:
        features: of the images without an answer, (m, k).
        inverse: see `LinearModel.inverse`.
        scores: `uncertainty` of the images; None without a classifier.
        groups: number of the group of near-duplicates of each image (m,); by default none has any.
        seed: of the sample of images whose variance counts.
    """
    if not len(features):
        return []
    rows = np.arange(len(features))
    if len(rows) > MAX_COMPARED:
        rng = np.random.default_rng(seed)
        rows = rng.permutation(rows) if scores is None else np.argsort(-scores, kind="stable")
        rows = np.sort(rows[:MAX_COMPARED])
    x = with_constant(np.asarray(features[rows])).astype(np.float32)
    own = np.ones(len(rows), np.float32) if scores is None else scores[rows].astype(np.float32)
    exponent = 1.0 if scores is None else VARIANCE_EXPONENT
    reference = slice(None, None, -(-len(rows) // MAX_REFERENCE))
    moments = (x[reference] * own[reference, None]).T @ x[reference]
    projected = x @ inverse.astype(np.float32)
    covered = projected @ moments
    groups = rows if groups is None else groups[rows]
    chosen, is_open, is_new = list[int](), np.ones(len(rows), bool), np.ones(len(rows), bool)
    while len(chosen) < min(n, len(rows)):
        variance = np.einsum("ij,ij->i", projected, x)
        reduction = np.maximum(np.einsum("ij,ij->i", covered, projected), 0) / (1 + variance)
        is_choice = is_new if is_new.any() else is_open
        k = int(np.where(is_choice, reduction**exponent * own, -1).argmax())
        chosen.append(int(rows[k]))
        is_open[k] = False
        is_new[groups == groups[k]] = False
        # What the inverse without image k becomes with it (Sherman & Morrison), applied to all images.
        step = projected[k] / (1 + variance[k])
        shared = x @ projected[k]
        projected = projected - shared[:, None] * step
        covered = covered - shared[:, None] * (step @ moments)
    return chosen


def are_novel(features: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Which images look like nothing that is labelled, bool (m,).

    Their nearest labelled image is less similar than that of 95 % of the labelled images themselves, by the cosine.

    Args:
        features: of the images, (m, k).
        labelled: of the labelled ones, (n, k); with fewer than `MIN_FOR_NOVELTY` no image is novel.
    """
    if len(labelled) < MIN_FOR_NOVELTY or not len(features):
        return np.zeros(len(features), bool)
    sample = np.arange(0, len(labelled), -(-len(labelled) // MAX_SAMPLED))
    own = labelled[sample] @ labelled.T
    own[np.arange(len(sample)), sample] = -1
    return (features @ labelled.T).max(1) < np.quantile(own.max(1), NOVEL_QUANTILE)


def nearest_images(features: np.ndarray, row: int, candidates: np.ndarray, n: int) -> list[int]:
    """The `n` candidates that are most similar to image `row`, by the cosine; the image itself is the first."""
    cosine = np.asarray(features[candidates]) @ np.asarray(features[row])
    return [row, *(int(candidates[k]) for k in np.argsort(-cosine)[: n + 1] if candidates[k] != row)][:n]


def find_clusters(features: np.ndarray, n: int, size: int) -> list[list[int]]:
    """Clusters of images that look alike, the largest first, each with the images nearest to its centre.

    Args:
        features: (images, k), of length 1.
        n: number of clusters that are returned.
        size: images of each.
    """
    from sklearn.cluster import KMeans

    if not len(features):
        return []
    step = -(-len(features) // MAX_CLUSTERED)
    sample = features[::step]
    n_clusters = min(len(np.unique(sample, axis=0)), max(2 * n, 8))
    clusters = KMeans(n_clusters, n_init="auto", random_state=0).fit(sample)
    cluster_of = np.asarray(clusters.labels_)
    by_size = np.argsort(-np.bincount(cluster_of), kind="stable")
    found = list[list[int]]()
    for k in by_size[:n]:
        members = np.flatnonzero(cluster_of == k)
        distance = np.square(sample[members] - clusters.cluster_centers_[k]).sum(1)
        found.append([int(i) * step for i in members[np.argsort(distance, kind="stable")[:size]]])
    return found
