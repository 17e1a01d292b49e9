"""Counts of photos that come in groups -> 95 % intervals.

Where every photo is a group of its own, a share gets Wilson's interval, and all else a bootstrap over photos. Where
groups exist (look-alikes, photos of one patient), everything gets a bootstrap that draws whole groups: photos of one
group are right or wrong together, and counted one by one they would make the interval too narrow.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

N_RESAMPLES = 1000
RESAMPLES_PER_BLOCK = 50
"""Draws that are in memory at a time."""
CI_QUANTILES = (0.025, 0.975)
Z = 1.959964


def wilson_interval(share: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The 95 % intervals (k, 2) of shares (k,) of n (k,) (E. B. Wilson, 1927): sensible for few, and near 0 and 1.

    Nothing is known of a share of nothing: 0 to 1.
    """
    share, n = np.nan_to_num(np.asarray(share, float)), np.asarray(n, float)
    trials = np.maximum(n, 1)
    centre = (share + Z * Z / (2 * trials)) / (1 + Z * Z / trials)
    half = Z / (1 + Z * Z / trials) * np.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    bounds = np.clip(np.stack([centre - half, centre + half], -1), 0, 1)
    return np.where(n[..., None] > 0, bounds, [0.0, 1.0])


class GroupBootstrap:
    """Photos (n,) by their groups, drawn again and again: as many groups with replacement as there are.

    Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8. The same draws each time.
    """

    def __init__(self, groups: np.ndarray, n_resamples: int = N_RESAMPLES) -> None:
        _, first, number = np.unique(groups, return_index=True, return_inverse=True)
        group_index = np.argsort(np.argsort(first))[
            number
        ]  # in the order of the photos, whatever the groups are called
        self.n_groups, self.n_resamples = len(first), n_resamples
        self.is_independent = self.n_groups == len(groups)
        ones = np.ones(len(groups), np.float32)
        self.group_indicator = csr_array((ones, (group_index, np.arange(len(groups)))), (self.n_groups, len(groups)))

    def iter_weights(self) -> Iterator[np.ndarray]:
        """How often each group is drawn, (block, groups), a block of draws after the other."""
        rng = np.random.default_rng(0)
        for first in range(0, self.n_resamples, RESAMPLES_PER_BLOCK):
            drawn = rng.integers(
                self.n_groups, size=(min(RESAMPLES_PER_BLOCK, self.n_resamples - first), self.n_groups)
            )
            drawn += self.n_groups * np.arange(len(drawn))[:, None]  # one count for all draws of the block
            counts = np.bincount(drawn.ravel(), minlength=drawn.size)
            yield counts.reshape(drawn.shape).astype(np.float32)

    def resampled_totals(self, columns: csr_array) -> np.ndarray:
        """Columns (n, k), summed over the photos of each draw: (draws, k)."""
        sums = csr_array(self.group_indicator @ columns).T
        return np.concatenate([(sums @ weights.T).T for weights in self.iter_weights()])

    def ratio_intervals(self, part: csr_array, whole: csr_array) -> np.ndarray:
        """The intervals (k, 2) of sum(part) / sum(whole), columns (n, k) of zeros and ones each."""
        parts, wholes = (np.asarray(columns.sum(0)).ravel() for columns in (part, whole))
        share = parts / np.maximum(wholes, 1)
        if self.is_independent:
            return wilson_interval(share, wholes)
        part_totals, whole_totals = self.resampled_totals(part), self.resampled_totals(whole)
        with np.errstate(invalid="ignore"):
            intervals = percentile_intervals(np.where(whole_totals > 0, part_totals / whole_totals, np.nan))
        group_counts = csr_array(self.group_indicator @ whole)  # groups that say something about each share
        group_counts.data[:] = 1
        return self._fallback_to_wilson(intervals, share, np.asarray(group_counts.sum(0)).ravel())

    def interval(self, values: np.ndarray, value: float) -> list[float]:
        """The interval of a figure by its values (draws,) in the draws."""
        intervals = self._fallback_to_wilson(
            percentile_intervals(values[:, None]), np.array([value]), np.array([self.n_groups])
        )
        return intervals[0].tolist()

    @staticmethod
    def _fallback_to_wilson(intervals: np.ndarray, share: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Where all draws agree (all right, or all wrong) they say nothing: then groups count as photos do."""
        is_constant = ~(intervals[:, 1] > intervals[:, 0])
        return np.where(is_constant[:, None], wilson_interval(share, groups), intervals)


def percentile_intervals(values: np.ndarray) -> np.ndarray:
    """Values (draws, k), or not a number where a draw has none -> what 95 % of them lie between, (k, 2)."""
    if not np.isnan(values).any():
        return np.quantile(values, CI_QUANTILES, axis=0).T
    some = ~np.isnan(values).all(0)
    intervals = np.full((values.shape[1], 2), np.nan)
    intervals[some] = np.nanquantile(values[:, some], CI_QUANTILES, axis=0).T
    return intervals


def one_hot(numbers: np.ndarray, k: int, values: np.ndarray | None = None) -> csr_array:
    """Numbers (n,) below k -> columns (n, k) with a one, or the value, in the place of each."""
    n = len(numbers)
    data = np.ones(n, np.float32) if values is None else values.astype(np.float32)
    return csr_array((data, (np.arange(n), numbers)), (n, k))


def as_column(values: np.ndarray) -> csr_array:
    """Values (n,) as one column."""
    return csr_array(values.astype(np.float32)[:, None])
