"""What to label next: images that the classifier is unsure of and that differ from those labelled so far.

Of each image: uncertainty (the margin between the two most probable classes) times its squared distance to the nearest
labelled one, taken greedily, so that a batch does not show one scene twice. The distance is what "active learning"
calls diversity (Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"), the
margin its uncertainty (Roth & Small 2006).
"""

import numpy as np

MAX_COMPARED = 2000
"""Images with the highest values among which a batch is chosen."""
MAX_CLUSTERED = 3000


class Distances:
    """Squared distance of each image to the nearest of a growing set.

    Args:
        features: (n, k), projected; rows may be filled later, see `update`.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.features = features
        self.members = dict[int, None]()
        self.nearest = np.full(len(features), np.inf, np.float32)
        self.is_known = np.zeros(len(features), bool)

    def update(self, is_read: np.ndarray) -> None:
        """Take in the images that have been read since."""
        new = np.flatnonzero(is_read & ~self.is_known)
        self.is_known |= is_read
        for first in range(0, len(new), 4096):
            rows = new[first : first + 4096]
            if self.members:
                members = np.asarray(self.features[list(self.members)])
                self.nearest[rows] = squared_distances(np.asarray(self.features[rows]), members).min(1)

    def add(self, row: int) -> None:
        """Image `row` joins the set."""
        if row not in self.members:
            self.members[row] = None
            known = np.flatnonzero(self.is_known)
            features = self.features if len(known) == len(self.features) else self.features[known]
            distances = squared_distances(np.asarray(features), np.asarray(self.features[[row]]))[:, 0]
            self.nearest[known] = np.minimum(self.nearest[known], distances)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, k), (m, k) -> (n, m)."""
    products = a @ b.T
    return np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * products, 0)


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """1 minus the margin between the two most probable classes: (n, classes) -> (n,)."""
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities), np.float32)
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return 1 - (top[:, 1] - top[:, 0])


def next_images(scores: np.ndarray, distances: Distances, candidates: np.ndarray, n: int) -> list[int]:
    """The `n` candidates with the highest score times distance, one after the other.

    Args:
        scores: uncertainty of each candidate.
        distances: to the labelled images.
        candidates: rows of images without an answer.
    """
    nearest = distances.nearest[candidates]
    nearest = np.where(np.isfinite(nearest), nearest, 1)
    if len(candidates) > MAX_COMPARED:
        best = np.argpartition(-scores * nearest, MAX_COMPARED)[:MAX_COMPARED]
        candidates, scores, nearest = candidates[best], scores[best], nearest[best]
    features, chosen = np.asarray(distances.features[candidates]), list[int]()
    is_first = not distances.members
    for _ in range(min(n, len(candidates))):
        k = int((scores * nearest).argmax())
        chosen.append(int(candidates[k]))
        distance = squared_distances(features, features[[k]])[:, 0]
        nearest = distance if is_first and len(chosen) == 1 else np.minimum(nearest, distance)
        nearest[k] = -1
    return chosen


def nearest_images(features: np.ndarray, row: int, candidates: np.ndarray, n: int) -> list[int]:
    """The `n` candidates that are most similar to image `row`, by the cosine; the image itself is the first."""
    own = np.asarray(features[row])
    others = np.asarray(features[candidates])
    cosine = others @ own / (np.linalg.norm(others, axis=1) * np.linalg.norm(own) + 1e-12)
    return [row, *(int(candidates[k]) for k in np.argsort(-cosine)[: n + 1] if candidates[k] != row)][:n]


def find_clusters(features: np.ndarray, n: int, size: int) -> list[list[int]]:
    """Clusters of images that look alike, the largest first, each with the images nearest to its centre.

    Args:
        features: (images, k), projected.
        n: number of clusters that are returned.
        size: images of each.
    """
    from sklearn.cluster import KMeans

    step = max(1, len(features) // MAX_CLUSTERED)
    sample = features[::step]
    directions = sample / (np.linalg.norm(sample, axis=1, keepdims=True) + 1e-12)
    clusters = KMeans(min(len(sample), max(2 * n, 8)), n_init=1, random_state=0).fit(directions)
    by_size = np.argsort(-np.bincount(clusters.labels_), kind="stable")
    found = list[list[int]]()
    for k in by_size[:n]:
        members = np.flatnonzero(clusters.labels_ == k)
        distance = np.square(directions[members] - clusters.cluster_centers_[k]).sum(1)
        found.append([int(i) * step for i in members[np.argsort(distance, kind="stable")[:size]]])
    return found
