"""Metadata of image files -> how well they alone tell the classes apart, which a network may learn instead of images.

Only what a file says of itself counts, and the colour of a uniform border: bytes a pixel do not, since they say how
much detail an image has, which is often what the classes differ by (docs/developers/design.md).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fieldmark.audit.decision_tree import DecisionTree
from fieldmark.audit.outliers import ImageStats
from fieldmark.audit.report import MetadataScore, Shortcut
from fieldmark.core.text import printable, shorten

SHORTCUT_SHARE = 0.95
"""Least part of a class's images that have the property of a shortcut."""
SHORTCUT_MAX_ELSEWHERE = 0.05
"""Largest part of all other images that have it."""
SHORTCUT_MIN_IMAGES = 10
"""Least number of images that have it, and of images of other classes; least size of a class that is measured."""
MIN_GROUPS = N_FOLDS = 5
"""Least number of groups in a class that is measured, so that each fold has one."""
MAX_SAMPLE, MAX_CLASSES = 20_000, 200
"""Images and classes that are measured, at most: a fraction of a second."""
TREE_DEPTH, MIN_LEAF = 5, 5
MAX_BINS = 32
"""Intervals of a numeric property."""
MIN_VALUE_SHARE, MAX_VALUES = 0.1, 48
"""Part of a class that must have a value for the tree to ask for that value, and how many it asks for."""
MIN_BORDER_CONTRAST = 10.0
"""Standard deviation of the grey levels from which on an image of a uniform border has a content that differs."""
MIN_IMPORTANCE = 0.2
"""Part of the tree's importances from which on the second attribute is named."""
_BLACK, _WHITE = 8, 247  # grey levels of borders, with the traces of JPEG
_CATEGORIES = ("format", "mode", "camera", "size", "border")
_FLAGS = ("progressive encoding", "EXIF data", "ICC profiles")
_NUMBERS = ("width", "height", "aspect ratio", "JPEG quality", "resolution")


def find_shortcuts(labels: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Shortcut]:
    """Properties that nearly all images of a class have and hardly any others."""
    of_class = Counter(labels)
    for attribute in ("size", "format", "mode", "camera"):
        values = [_format_value(getattr(image, attribute)) for image in stats]
        in_all, in_class = Counter(values), defaultdict[str, Counter[str]](Counter)
        for label, value in zip(labels, values, strict=True):
            in_class[label][value] += 1
        for label, n in sorted(of_class.items()):
            value, most = in_class[label].most_common(1)[0]
            others = len(labels) - n
            share, elsewhere = most / n, (in_all[value] - most) / max(1, others)
            if (
                value
                and most >= SHORTCUT_MIN_IMAGES
                and others >= SHORTCUT_MIN_IMAGES
                and share >= SHORTCUT_SHARE
                and elsewhere <= SHORTCUT_MAX_ELSEWHERE
            ):
                yield Shortcut(label, attribute, value, share, elsewhere)


def measure_metadata(labels: Sequence[str], stats: Sequence[ImageStats], groups: Sequence[int]) -> MetadataScore | None:
    """How well a shallow tree on the metadata tells the classes apart, cross-validated with groups kept whole.

    Classes of fewer than `SHORTCUT_MIN_IMAGES` images or `MIN_GROUPS` groups are left out, and the rest is sampled.

    Returns:
        None if fewer than two classes are left, or if all files are alike.
    """
    names, rows, label_ids = _sample(labels, groups)
    if len(names) < 2:
        return None
    columns = _columns([stats[i] for i in rows], label_ids, len(names))
    if not columns:
        return None
    bins = np.column_stack([column.bins for column in columns])
    group_ids = np.unique([groups[i] for i in rows], return_inverse=True)[1]
    confusion = _cross_validate(bins, label_ids, group_ids, len(names))
    rates = confusion / confusion.sum(1, keepdims=True)
    errors = _standard_errors(rates, label_ids, group_ids)
    accuracy, error = _balanced_accuracy_of_each(rates, errors)
    best = int((accuracy - 2 * error).argmax())
    importances = DecisionTree.fit(bins, label_ids, len(names), TREE_DEPTH, MIN_LEAF).importances
    attributes = _rank_attributes(columns, importances)
    return MetadataScore(
        balanced_accuracy=float(rates.diagonal().mean()),
        standard_error=float(np.linalg.norm(errors.diagonal()) / len(names)),
        chance=1 / len(names),
        attributes=tuple(attributes[:2]),
        label=names[best],
        label_accuracy=float(accuracy[best]),
        label_error=float(error[best]),
        evidence=_evidence(names[best], label_ids == best, columns, attributes),
    )


def with_evidence(shortcuts: Iterable[Shortcut], score: MetadataScore | None) -> Iterator[Shortcut]:
    """The shortcuts, and the evidence of the score if it is one that is not among them."""
    known = set[tuple[str, str]]()
    for shortcut in shortcuts:
        known.add((shortcut.label, shortcut.attribute))
        yield shortcut
    if score and score.is_shortcut and (score.evidence.label, score.evidence.attribute) not in known:
        yield score.evidence


def describe_metadata(score: MetadataScore) -> str:
    """One line: how well the metadata tell the classes apart, and by what."""
    if score.tells_all:
        whom, accuracy, chance = "the classes apart", score.balanced_accuracy, score.chance
    else:
        whom, accuracy, chance = f"{_short(score.label)} from the others", score.label_accuracy, 0.5
    return (
        f"file properties alone tell {whom} with a balanced accuracy of {100 * accuracy:.0f} % (chance"
        f" {100 * chance:.0f} %), by {' and '.join(score.attributes)}: {describe_shortcut(score.evidence)}"
    )


def describe_shortcut(shortcut: Shortcut) -> str:
    """`83 % of covid have the format JPEG and 0 % of the others`."""
    attribute, value = shortcut.attribute, _short(shortcut.value)
    if attribute in _FLAGS:
        what = attribute if value == "yes" else f"no {attribute}"
    elif attribute in _NUMBERS:
        article = "an" if attribute[0] in "aeiou" else "a"
        what = f"no {attribute}" if value == "none" else f"{article} {attribute} of {value}"
    else:
        what = f"the {attribute} {value}"
    share, elsewhere = f"{100 * shortcut.share:.0f} %", f"{100 * shortcut.elsewhere:.0f} %"
    return f"{share} of {_short(shortcut.label)} have {what} and {elsewhere} of the others"


def _short(name: str) -> str:
    return shorten(printable(name), 24)


def _sample(labels: Sequence[str], groups: Sequence[int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the classes that are measured, images of them as positions in `labels`, and their class numbers."""
    names, label_ids = np.unique(np.array(labels, object), return_inverse=True)
    first_of_group = np.unique(np.column_stack([label_ids, groups]), axis=0)[:, 0] if len(labels) else label_ids
    n_images, n_groups = (np.bincount(ids, minlength=len(names)) for ids in (label_ids, first_of_group))
    kept = np.flatnonzero((n_images >= SHORTCUT_MIN_IMAGES) & (n_groups >= MIN_GROUPS))
    kept = np.sort(kept[np.argsort(-n_images[kept], kind="stable")][:MAX_CLASSES])
    rng, each = np.random.default_rng(0), MAX_SAMPLE // max(1, len(kept))
    while np.minimum(n_images[kept], each * 2).sum() <= MAX_SAMPLE and each < n_images.max(initial=0):
        each *= 2
    rows = [np.flatnonzero(label_ids == k) for k in kept]
    rows = [own if len(own) <= each else np.sort(rng.choice(own, each, replace=False)) for own in rows]
    sizes = [len(own) for own in rows]
    return names[kept].tolist(), np.concatenate([np.empty(0, int), *rows]), np.repeat(np.arange(len(kept)), sizes)


class _Column(NamedTuple):
    """A property of the images as small integers.

    Attributes:
        bins: uint8 (n,).
        low: for each bin but the last the value that images up to it have, or empty.
        high: for each bin but the last the value that images beyond it have.
    """

    attribute: str
    bins: np.ndarray
    low: tuple[str, ...]
    high: tuple[str, ...]


def _columns(stats: Sequence[ImageStats], label_ids: np.ndarray, n_classes: int) -> list[_Column]:
    """All properties in which the images differ; those that a person grasps at once come first."""
    values = [_categories(image) for image in stats]
    columns = [
        _Column(attribute, np.array([row[k] == value for row in values], np.uint8), ("",), (value,))
        for k, attribute in enumerate(_CATEGORIES)
        for value in _common_values([row[k] for row in values], label_ids, n_classes)
    ]
    flags = np.array([(image.is_progressive, image.has_exif, image.has_icc) for image in stats], np.uint8)
    columns += [_Column(name, flags[:, k], ("no",), ("yes",)) for k, name in enumerate(_FLAGS)]
    numbers = np.array([_numbers(image) for image in stats], float)
    for k, name in enumerate(_NUMBERS):
        bounds = np.unique(numbers[:, k])[:-1]
        if len(bounds) >= MAX_BINS:
            bounds = np.unique(np.quantile(numbers[:, k], np.arange(1, MAX_BINS) / MAX_BINS, method="lower"))
        low = tuple(f"at most {bound:g}" if bound else "none" for bound in bounds)
        high = tuple(f"over {bound:g}" for bound in bounds)
        columns.append(_Column(name, np.searchsorted(bounds, numbers[:, k]).astype(np.uint8), low, high))
    return [column for column in columns if column.bins.min() < column.bins.max()]


def _categories(image: ImageStats) -> tuple[str, ...]:
    """The values of `_CATEGORIES`."""
    border = ""
    if image.border >= 0 and image.contrast >= MIN_BORDER_CONTRAST:
        is_extreme = not _BLACK < image.border < _WHITE
        border = ("black" if image.border <= _BLACK else "white") if is_extreme else f"grey level {image.border:.0f}"
    return image.format, image.mode, image.camera, _format_value(image.size), border


def _numbers(image: ImageStats) -> tuple[float, ...]:
    """The values of `_NUMBERS`."""
    width, height = image.size
    return width, height, round(width / max(1, height), 2), image.quality, image.dpi


def _common_values(values: list[str], label_ids: np.ndarray, n_classes: int) -> list[str]:
    """The values that many images of some class have, the most common ones first."""
    counts = [Counter[str]() for _ in range(n_classes)]
    for k, value in zip(label_ids.tolist(), values, strict=True):
        counts[k][value] += 1
    shares = defaultdict[str, float](float)
    for count in counts:
        for value, n in count.most_common(round(1 / MIN_VALUE_SHARE)):
            shares[value] = max(shares[value], n / count.total())
    common = [value for value, share in shares.items() if value and share >= MIN_VALUE_SHARE]
    return sorted(common, key=lambda value: -shares[value])[:MAX_VALUES]


def _cross_validate(bins: np.ndarray, label_ids: np.ndarray, group_ids: np.ndarray, n_classes: int) -> np.ndarray:
    """The confusion matrix out of fold: rows are labels, columns predictions."""
    fold, predicted = _folds(label_ids, group_ids), np.zeros(len(bins), int)
    for k in range(N_FOLDS):
        train, test = fold != k, fold == k
        tree = DecisionTree.fit(bins[train], label_ids[train], n_classes, TREE_DEPTH, MIN_LEAF)
        predicted[test] = tree.predict(bins[test])
    return np.bincount(label_ids * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def _folds(label_ids: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """The fold of each image: a group is in one, and the classes in all. Large groups are dealt first, at random."""
    _, first, size = np.unique(group_ids, return_index=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(size))
    counts, totals = np.zeros((int(label_ids.max()) + 1, N_FOLDS), int), [0] * N_FOLDS
    fold_of_group = np.zeros(len(size), int)
    for group in order[np.argsort(-size[order], kind="stable")].tolist():
        in_class = counts[label_ids[first[group]]]
        fold = min(range(N_FOLDS), key=lambda k: (in_class[k], totals[k]))
        fold_of_group[group] = fold
        in_class[fold] += size[group]
        totals[fold] += int(size[group])
    return fold_of_group[group_ids]


def _standard_errors(rates: np.ndarray, label_ids: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """Standard errors of the rows of a confusion matrix, by the number of groups (Agresti & Coull 1998)."""
    of_group = np.unique(np.column_stack([label_ids, group_ids]), axis=0)[:, 0]
    n = np.bincount(of_group, minlength=len(rates))[:, None]
    adjusted = (rates * n + 2) / (n + 4)
    return np.sqrt(adjusted * (1 - adjusted) / (n + 4))


def _balanced_accuracy_of_each(rates: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balanced accuracy of telling each class from the others, which count alike, and its standard error."""
    n_others = len(rates) - 1
    recall, false_alarms = rates.diagonal(), (rates.sum(0) - rates.diagonal()) / n_others
    square = errors**2
    variance = square.diagonal() + (square.sum(0) - square.diagonal()) / n_others**2
    return (recall + 1 - false_alarms) / 2, np.sqrt(variance) / 2


def _rank_attributes(columns: Sequence[_Column], importances: np.ndarray) -> list[str]:
    """The attributes by their part of the importances, the largest first: one at least, and those that matter."""
    of_attribute = Counter[str]()
    for column, importance in zip(columns, importances.tolist(), strict=True):
        of_attribute[column.attribute] += importance
    ranked = of_attribute.most_common()
    least = MIN_IMPORTANCE * sum(of_attribute.values())
    return [attribute for k, (attribute, importance) in enumerate(ranked) if not k or importance >= max(least, 1e-9)]


def _evidence(label: str, is_label: np.ndarray, columns: Sequence[_Column], attributes: Sequence[str]) -> Shortcut:
    """The property by which most of a class differ from the others, among the most important attributes."""
    found = Shortcut(label, attributes[0], "", 0.0, 0.0)
    for column in columns:
        if column.attribute not in attributes:
            continue
        for k, values in enumerate(zip(column.low, column.high, strict=True)):
            for has, value in zip((column.bins <= k, column.bins > k), values, strict=True):
                share, elsewhere = float(has[is_label].mean()), float(has[~is_label].mean())
                if value and share - elsewhere > found.share - found.elsewhere + 0.02:  # a small gain is no reason
                    found = Shortcut(label, column.attribute, value, share, elsewhere)
    return found


def _format_value(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
