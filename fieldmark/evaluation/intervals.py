"""Counts of photos that come in groups -> 95 % intervals.

Where every photo is a group of its own, a share gets Wilson's interval, and all else a bootstrap over photos. Where
groups exist (look-alikes, photos of one patient), everything gets a bootstrap that draws whole groups: photos of one
group are right or wrong together, and counted one by one they would make the interval too narrow.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

DRAWS = 1000
BLOCK = 50
"""Draws that are in memory at a time."""
TAILS = (0.025, 0.975)
Z = 1.959964


def wilson(share: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The 95 % intervals (k, 2) of shares (k,) of n (k,) (E. B. Wilson, 1927): sensible for few, and near 0 and 1.

    Nothing is known of a share of nothing: 0 to 1.
    """
    share, n = np.nan_to_num(np.asarray(share, float)), np.asarray(n, float)
    many = np.maximum(n, 1)
    centre = (share + Z * Z / (2 * many)) / (1 + Z * Z / many)
    half = Z / (1 + Z * Z / many) * np.sqrt(share * (1 - share) / many + Z * Z / (4 * many * many))
    bounds = np.clip(np.stack([centre - half, centre + half], -1), 0, 1)
    return np.where(n[..., None] > 0, bounds, [0.0, 1.0])


class Resampled:
    """Photos (n,) by their groups, drawn again and again: as many groups with replacement as there are.

    Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8. The same draws each time.
    """

    def __init__(self, groups: np.ndarray, draws: int = DRAWS) -> None:
        _, first, number = np.unique(groups, return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(first))[number]  # in the order of the photos, whatever the groups are called
        self.groups, self.draws = len(first), draws
        self.independent = self.groups == len(groups)
        ones = np.ones(len(groups), np.float32)
        self.gather = csr_array((ones, (place, np.arange(len(groups)))), (self.groups, len(groups)))

    def weights(self) -> Iterator[np.ndarray]:
        """How often each group is drawn, (block, groups), a block of draws after the other."""
        rng = np.random.default_rng(0)
        for first in range(0, self.draws, BLOCK):
            drawn = rng.integers(self.groups, size=(min(BLOCK, self.draws - first), self.groups))
            drawn += self.groups * np.arange(len(drawn))[:, None]  # one count for all draws of the block
            counts = np.bincount(drawn.ravel(), minlength=drawn.size)
            yield counts.reshape(drawn.shape).astype(np.float32)

    def totals(self, columns: csr_array) -> np.ndarray:
        """Columns (n, k), summed over the photos of each draw: (draws, k)."""
        sums = csr_array(self.gather @ columns).T
        return np.concatenate([(sums @ weights.T).T for weights in self.weights()])

    def shares(self, part: csr_array, whole: csr_array) -> np.ndarray:
        """The intervals (k, 2) of sum(part) / sum(whole), columns (n, k) of zeros and ones each."""
        parts, wholes = (np.asarray(columns.sum(0)).ravel() for columns in (part, whole))
        share = parts / np.maximum(wholes, 1)
        if self.independent:
            return wilson(share, wholes)
        drawn, of = self.totals(part), self.totals(whole)
        with np.errstate(invalid="ignore"):
            found = spread(np.where(of > 0, drawn / of, np.nan))
        told = csr_array(self.gather @ whole)  # groups that say something about each share
        told.data[:] = 1
        return self._or_wilson(found, share, np.asarray(told.sum(0)).ravel())

    def of(self, drawn: np.ndarray, value: float) -> list[float]:
        """The interval of a figure by its values (draws,) in the draws."""
        found = self._or_wilson(spread(drawn[:, None]), np.array([value]), np.array([self.groups]))
        return found[0].tolist()

    @staticmethod
    def _or_wilson(found: np.ndarray, share: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Where all draws agree (all right, or all wrong) they say nothing: then groups count as photos do."""
        alike = ~(found[:, 1] > found[:, 0])
        return np.where(alike[:, None], wilson(share, groups), found)


def spread(drawn: np.ndarray) -> np.ndarray:
    """Values (draws, k), or not a number where a draw has none -> what 95 % of them lie between, (k, 2)."""
    if not np.isnan(drawn).any():
        return np.quantile(drawn, TAILS, axis=0).T
    some = ~np.isnan(drawn).all(0)
    found = np.full((drawn.shape[1], 2), np.nan)
    found[some] = np.nanquantile(drawn[:, some], TAILS, axis=0).T
    return found


def one_hot(numbers: np.ndarray, k: int, values: np.ndarray | None = None) -> csr_array:
    """Numbers (n,) below k -> columns (n, k) with a one, or the value, in the place of each."""
    n = len(numbers)
    data = np.ones(n, np.float32) if values is None else values.astype(np.float32)
    return csr_array((data, (np.arange(n), numbers)), (n, k))


def column(values: np.ndarray) -> csr_array:
    """Values (n,) as one column."""
    return csr_array(values.astype(np.float32)[:, None])
