"""Metadata that tells the classes apart is named; what files differ in by chance or by their subject is not."""

import time
from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest

from fieldmark.audit.decision_tree import DecisionTree
from fieldmark.audit.outliers import ImageStats
from fieldmark.audit.report import MetadataScore, Shortcut
from fieldmark.audit.shortcuts import describe_metadata, find_shortcuts, measure_metadata, with_evidence

RNG = np.random.default_rng(0)


def stats(**changed) -> ImageStats:
    """A photo of a usual size from the web, with some properties as given."""
    width, height = RNG.integers(600, 1400, 2).tolist()
    usual = ImageStats((width, height), "RGB", "JPEG", "", 120.0, 50.0, 0.9, int(RNG.choice([75, 85, 90])))
    return usual._replace(**changed)


def png(**changed) -> ImageStats:
    return stats(**({"size": (1024, 1024), "format": "PNG", "quality": 0} | changed))


def measure(*classes: list[ImageStats], groups: list[int] | None = None) -> MetadataScore | None:
    labels = [f"class {k}" for k, images in enumerate(classes) for _ in images]
    return measure_metadata(labels, [*chain(*classes)], groups or list(range(len(labels))))


def xrays(n: int) -> list[list[ImageStats]]:
    """Of one class 83 % are JPEGs of all sizes; all others are PNGs of one size."""
    n_jpeg = round(0.83 * n)
    mixed = [stats(mode="L") for _ in range(n_jpeg)] + [png(mode="L") for _ in range(n - n_jpeg)]
    return [mixed, [png(mode="L") for _ in range(n)], [png(mode="L") for _ in range(n)]]


@pytest.mark.parametrize("n", [30, 100, 1000])
def test_most_of_a_class_given_away(n):
    found = measure(*xrays(n))
    assert found and found.is_shortcut and found.label == "class 0"
    assert found.label_accuracy == pytest.approx(0.91, abs=0.03) and found.chance == pytest.approx(1 / 3)
    assert replace(found.evidence, share=0.83) == Shortcut("class 0", "format", "JPEG", 0.83, 0.0)
    assert found.evidence.share == pytest.approx(0.83, abs=0.01)
    assert describe_metadata(found) == (
        "file properties alone tell class 0 from the others with a balanced accuracy of"
        f" {100 * found.label_accuracy:.0f} % (chance 50 %), by format: 83 % of class 0 have the format JPEG and 0 % of"
        " the others"
    )


def test_all_classes_given_away():
    sizes = [(640, 480), (800, 600), (1024, 1024), (512, 512)]
    found = measure(*[[stats(size=size) for _ in range(40)] for size in sizes])
    assert found and found.tells_all and found.balanced_accuracy == 1.0 and found.evidence.share == 1.0
    line = describe_metadata(found)
    assert "tell the classes apart with a balanced accuracy of 100 % (chance 25 %), by " in line and len(line) <= 200


GIVEN_AWAY = {
    "camera": ({"camera": "Nikon"}, {"camera": ""}),
    "JPEG quality": ({"quality": 30}, {"quality": 90}),
    "progressive encoding": ({"is_progressive": True}, {}),
    "EXIF data": ({"has_exif": True}, {}),
    "ICC profiles": ({"has_icc": True}, {}),
    "resolution": ({"dpi": 300.0}, {"dpi": 72.0}),
    "border": ({"border": 0.0}, {}),
    "mode": ({"mode": "L"}, {}),
}


@pytest.mark.parametrize("attribute", GIVEN_AWAY)
def test_each_property(attribute):
    """Nine in ten of one class have it and one in ten of the others: too few for the share of `find_shortcuts`."""
    has, has_not = GIVEN_AWAY[attribute]
    first = [stats(**(has if k % 10 else has_not)) for k in range(60)]
    others = [[stats(**(has_not if k % 10 else has)) for k in range(60)] for _ in range(2)]
    assert not list(find_shortcuts(["a"] * 60 + ["b"] * 120, [*first, *chain(*others)]))
    found = measure(first, *others)
    assert found and found.is_shortcut and found.label == "class 0"
    assert found.attributes[0] == found.evidence.attribute == attribute
    assert found.evidence.share == pytest.approx(0.9) and found.evidence.elsewhere == pytest.approx(0.1)


@pytest.mark.parametrize(("n_classes", "n"), [*product([2, 5, 40], [10, 30, 200])])
def test_photos_of_all_sizes_tell_nothing(n_classes, n):
    found = measure(*[[stats() for _ in range(n)] for _ in range(n_classes)])
    assert found and not found.is_shortcut
    assert abs(found.balanced_accuracy - found.chance) < 4 * found.standard_error


def test_small_classes_are_no_evidence():
    large = [[stats() for _ in range(50)] for _ in range(3)]
    found = measure(*large, [png() for _ in range(9)])
    assert found and found.label != "class 3" and not found.is_shortcut
    assert measure([stats() for _ in range(50)], [png() for _ in range(9)]) is None
    assert measure() is None


def test_images_of_one_object_are_one_piece_of_evidence():
    """Two classes of five patients, each with a camera of its own: what a patient has does not predict another's."""
    classes = [[stats(camera=f"camera {5 * c + k % 5}") for k in range(100)] for c in range(2)]
    groups = [5 * c + k % 5 for c in range(2) for k in range(100)]
    together = measure(*classes, groups=groups)
    assert together and not together.is_shortcut
    apart = measure(*classes)
    assert apart and apart.is_shortcut and "camera" in apart.attributes
    assert measure(*classes, groups=[c for c in range(2) for _ in range(100)]) is None  # a single group a class


def test_brightness_and_detail_are_the_subject():
    dark, bright = (
        [stats(brightness=level, contrast=5.0, border=level, sharpness=level / 100) for _ in range(60)]
        for level in (20.0, 230.0)
    )
    found = measure(dark, bright)
    assert found and not found.is_shortcut


def test_files_that_are_all_alike():
    assert measure([png() for _ in range(50)], [png() for _ in range(50)]) is None


def test_rare_classes_are_in_the_sample(monkeypatch):
    monkeypatch.setattr("fieldmark.audit.shortcuts.MAX_SAMPLE", 500)
    found = measure([stats() for _ in range(3000)], [stats() for _ in range(3000)], [png() for _ in range(20)])
    assert found and found.label == "class 2" and found.is_shortcut and found.evidence.share == 1.0


def test_it_takes_little_time():
    classes = [[stats(camera=f"c{k % 7}", dpi=float(RNG.integers(9))) for k in range(50)] for _ in range(100)]
    start = time.process_time()
    assert measure(*classes)
    assert time.process_time() - start < 2  # 0.5 s on an idle core


def test_a_class_that_its_files_give_away():
    jpeg, other = stats(size=(160, 120)), png(size=(160, 120))
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    assert not list(find_shortcuts(labels, [jpeg] * 60))
    (found,) = find_shortcuts(labels, [other] * 20 + [jpeg] * 40)
    assert (found.label, found.attribute, found.value, found.share, found.elsewhere) == ("a", "format", "PNG", 1.0, 0.0)
    assert not list(find_shortcuts(["a"] * 5 + ["b"] * 50, [other] * 5 + [jpeg] * 50))  # too few to say so


def test_evidence_is_among_the_shortcuts_once():
    score = measure(*xrays(50))
    assert score and list(with_evidence([], score)) == [score.evidence]
    known = Shortcut("class 0", "format", "JPEG", 0.96, 0.0)
    assert list(with_evidence([known], score)) == [known] == list(with_evidence([known], None))


def test_a_score_survives_json():
    score = measure(*xrays(50))
    assert score and MetadataScore.from_dict(score.to_dict()) == score and score.to_dict()["shortcut"] is True


def test_a_tree_asks_for_two_features_where_one_is_not_enough():
    """Class 1 is where both features are high, which no single question tells."""
    bins = np.array(list(product(range(8), range(8))) * 5, np.uint8)
    labels = ((bins[:, 0] > 3) & (bins[:, 1] > 5)).astype(int)
    tree = DecisionTree.fit(bins, labels, 2, depth=2, min_leaf=1)
    assert (tree.predict(bins) == labels).all() and (tree.importances > 0).all()
    stump = DecisionTree.fit(bins, labels, 2, depth=1, min_leaf=1)
    assert (stump.predict(bins) == labels).mean() < 1
    none = DecisionTree.fit(bins, labels, 2, depth=2, min_leaf=len(bins))
    assert len(set(none.predict(bins))) == 1 and not none.importances.any()


def test_a_tree_agrees_with_scikit_learn():
    sklearn_tree = pytest.importorskip("sklearn.tree")
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 32, (500, 6)).astype(np.uint8)
    labels = (bins[:, 0] // 11 + rng.integers(0, 2, 500)) % 3
    ours = DecisionTree.fit(bins, labels, 3, depth=3, min_leaf=5)
    theirs = sklearn_tree.DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, class_weight="balanced")
    theirs.fit(bins, labels)
    assert (ours.predict(bins) == theirs.predict(bins)).mean() > 0.99
    assert ours.importances / ours.importances.sum() == pytest.approx(theirs.feature_importances_, abs=0.01)
