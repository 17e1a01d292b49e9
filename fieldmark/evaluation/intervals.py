"""95 % confidence intervals of shares and other metrics, for images that may come in groups.

If every image is a group of its own, a share gets Wilson's score interval, and other metrics a bootstrap over images.
Otherwise (near-duplicates, images of one patient) all get a bootstrap that draws whole groups: images of one group
tend to be right or wrong together, and intervals that count them one by one are too narrow.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

from fieldmark.evaluation.results import Interval

N_RESAMPLES = 1000
RESAMPLES_PER_BLOCK = 50
"""Resamples that are in memory at a time."""
CI_QUANTILES = (0.025, 0.975)
Z_95 = 1.959964
"""97.5 % quantile of the normal distribution."""


def wilson_interval(share: np.ndarray, n: np.ndarray, z: float = Z_95) -> np.ndarray:
    """Score intervals (k, 2) of the shares (k,) of n (k,) trials; 0 to 1 without trials. Of 95 % unless `z` is given.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference". Unlike Wald's interval it holds
    its level with few trials and with shares near 0 and 1.
    """
    share, n = np.nan_to_num(np.asarray(share, float)), np.asarray(n, float)
    trials = np.maximum(n, 1)
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    half = z / (1 + z * z / trials) * spread
    bounds = np.clip(np.stack([centre - half, centre + half], -1), 0, 1)
    return np.where(n[..., None] > 0, bounds, [0.0, 1.0])


class GroupBootstrap:
    """Bootstrap over groups (cluster bootstrap): draws as many groups as there are, with replacement.

    Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8. The seed is fixed, and groups are
    numbered in the order of their first image, so that equal inputs give equal intervals.

    Args:
        groups: (n,) the group of each image.
        n_resamples: how often to draw.
    """

    def __init__(self, groups: np.ndarray, n_resamples: int = N_RESAMPLES) -> None:
        _, first, number = np.unique(groups, return_index=True, return_inverse=True)
        group_index = np.argsort(np.argsort(first))[number]
        self.n_groups, self.n_resamples = len(first), n_resamples
        self.is_independent = self.n_groups == len(groups)
        ones = np.ones(len(groups), np.float32)
        self.group_indicator = csr_array((ones, (group_index, np.arange(len(groups)))), (self.n_groups, len(groups)))

    def iter_weights(self) -> Iterator[np.ndarray]:
        """How often each group is drawn, float32 (block, groups), in blocks of resamples."""
        rng = np.random.default_rng(0)
        for first in range(0, self.n_resamples, RESAMPLES_PER_BLOCK):
            size = (min(RESAMPLES_PER_BLOCK, self.n_resamples - first), self.n_groups)
            drawn = rng.integers(self.n_groups, size=size)
            drawn += self.n_groups * np.arange(len(drawn))[:, None]  # one bincount for all resamples of the block
            counts = np.bincount(drawn.ravel(), minlength=drawn.size)
            yield counts.reshape(drawn.shape).astype(np.float32)

    def resampled_totals(self, columns: csr_array) -> np.ndarray:
        """Sums of the columns (n, k) over the images of each resample, (resamples, k)."""
        sums = csr_array(self.group_indicator @ columns).T
        return np.concatenate([(sums @ weights.T).T for weights in self.iter_weights()])

    def ratio_intervals(self, part: csr_array, whole: csr_array) -> np.ndarray:
        """Intervals (k, 2) of sum(part) / sum(whole), columns (n, k) of zeros and ones."""
        parts, wholes = (np.asarray(columns.sum(0)).ravel() for columns in (part, whole))
        share = parts / np.maximum(wholes, 1)
        if self.is_independent:
            return wilson_interval(share, wholes)
        part_totals, whole_totals = self.resampled_totals(part), self.resampled_totals(whole)
        with np.errstate(invalid="ignore"):
            intervals = percentile_intervals(np.where(whole_totals > 0, part_totals / whole_totals, np.nan))
        group_counts = csr_array(self.group_indicator @ whole)  # groups that have a part in each share
        group_counts.data[:] = 1
        return self._fallback_to_wilson(intervals, share, np.asarray(group_counts.sum(0)).ravel())

    def share_interval(self, hits: np.ndarray) -> Interval:
        """Interval of the mean of `hits`, bool (n,)."""
        low, high = self.ratio_intervals(as_column(hits), as_column(np.ones(len(hits))))[0].tolist()
        return low, high

    def interval(self, values: np.ndarray, value: float) -> Interval:
        """Percentile interval of a metric from its `values` (resamples,) and its estimate `value`."""
        intervals = percentile_intervals(values[:, None])
        low, high = self._fallback_to_wilson(intervals, np.array([value]), np.array([self.n_groups]))[0].tolist()
        return low, high

    @staticmethod
    def _fallback_to_wilson(intervals: np.ndarray, share: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Wilson's interval with a group as a trial where all resamples agree (all right or all wrong)."""
        is_constant = ~(intervals[:, 1] > intervals[:, 0])
        return np.where(is_constant[:, None], wilson_interval(share, groups), intervals)


def percentile_intervals(values: np.ndarray) -> np.ndarray:
    """Percentile intervals (k, 2) of values (resamples, k), without NaN (Davison & Hinkley, section 5.3)."""
    if not np.isnan(values).any():
        return np.quantile(values, CI_QUANTILES, axis=0).T
    some = ~np.isnan(values).all(0)
    intervals = np.full((values.shape[1], 2), np.nan)
    intervals[some] = np.nanquantile(values[:, some], CI_QUANTILES, axis=0).T
    return intervals


def one_hot(indices: np.ndarray, k: int, values: np.ndarray | None = None) -> csr_array:
    """Sparse float32 (n, k) with a one (or the value) at the index (n,) of each row."""
    n = len(indices)
    data = np.ones(n, np.float32) if values is None else values.astype(np.float32)
    return csr_array((data, (np.arange(n), indices)), (n, k))


def as_column(values: np.ndarray) -> csr_array:
    """Values (n,) as sparse float32 (n, 1)."""
    return csr_array(values.astype(np.float32)[:, None])
