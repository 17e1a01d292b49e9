"""Names of splits as other people write them are splits, or the question is asked; they are no classes in silence."""

import pytest
from containers import touch as make

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers import read_catalog
from fieldmark.data.split_names import names_part, names_unlabelled, parse_split_name, resolve_split

NAMES = {
    "train": ("train", "Training", "TRAIN", "train2017", "training_set", "train-data", "Training Data", "trainset"),
    "val": ("val", "valid", "validation", "dev", "Validation Set", "val_images", "valset2", "验证集"),
    "test": ("test", "testing", "eval", "evaluation", "test1", "Test Images", "testdata", "测试集", "测试数据"),
    None: ("cat", "retrain", "attest", "train station", "contest", "devil", "seg_train", "latest", "set", "2017"),
}


@pytest.mark.parametrize(("name", "split"), [(name, split) for split, names in NAMES.items() for name in names])
def test_names_of_splits(name, split):
    assert resolve_split(name) == split


def test_words_of_names():
    assert parse_split_name("seg_train") == ("train", "seg")
    assert parse_split_name("TrainImages") == ("train", "")
    assert parse_split_name("训练集") == ("train", "")
    assert parse_split_name("train_val") is None
    assert parse_split_name("trainval") == ("train", "")
    assert resolve_split("eval", ["train", "eval", "test"]) == "val"
    assert names_unlabelled("unlabeled_images")
    assert not names_unlabelled("labeled")
    assert names_part("fold_3")
    assert not names_part("fold")


SPLIT = {
    "sets": ("training_set/{a,b}/1.jpg", "test_set/{a,b}/2.jpg"),
    "data": ("train_data/{a,b}/1.jpg", "val_data/{a,b}/2.jpg"),
    "blanks": ("training data/{a,b}/1.jpg", "test data/{a,b}/2.jpg"),
    "chinese": ("训练集/{a,b}/1.jpg", "测试集/{a,b}/2.jpg"),
    "digits": ("train2017/{a,b}/1.jpg", "val2017/{a,b}/2.jpg"),
    "prefix": ("seg_train/{a,b}/1.jpg", "seg_test/{a,b}/2.jpg"),
    "prefix twice": ("seg_train/seg_train/{a,b}/1.jpg", "seg_test/seg_test/{a,b}/2.jpg", "seg_pred/seg_pred/3.jpg"),
    "camel": ("trainImages/{a,b}/1.jpg", "testImages/{a,b}/2.jpg"),
    "hugging face": ("train/{a,b}/1.jpg", "evaluation/{a,b}/2.jpg"),
    "three": ("train/{a,b}/1.jpg", "eval/{a,b}/2.jpg", "test/{a,b}/2.jpg"),
    "within classes": ("a/{train,test}/1.jpg", "b/{train,test}/2.jpg"),
    "in names": ("a train/1.jpg", "a test/1.jpg", "b train/1.jpg", "b test/1.jpg"),
    "unlabelled": ("train/{a,b}/1.jpg", "unlabeled/1.jpg"),
    "flat test": ("train/{a,b}/1.jpg", "test1/1.jpg"),
    "own folder": ("train/images/{a,b}/1.jpg", "val/images/{a,b}/1.jpg"),
    "unpacked": ("chest/train/{a,b}/1.jpg", "chest/test/{a,b}/1.jpg", "chest/chest/test/{a,b}/1.jpg", "README"),
    "spelling": ("train/Glass/1.jpg", "train/metal/1.jpg", "test/glass/1.jpg", "test/metal/2.jpg"),
}
WANTED = {
    "data": {"train", "val"},
    "digits": {"train", "val"},
    "three": {"train", "val", "test"},
    "unlabelled": {"train"},
    "flat test": {"train"},
    "own folder": {"train", "val"},
}


def expand(*names):
    for name in names:
        head, brace, tail = name.partition("{")
        if not brace:
            yield name
            continue
        choices, _, tail = tail.partition("}")
        yield from (f"{head}{choice}{tail}" for choice in choices.split(","))


@pytest.mark.parametrize("case", SPLIT)
def test_splits_by_other_names(tmp_path, case):
    catalog = read_catalog(make(tmp_path, *expand(*SPLIT[case])))
    assert catalog.classes == (("Glass", "metal") if case == "spelling" else ("a", "b"))
    assert {photo.split for photo in catalog.photos} == WANTED.get(case, {"train", "test"})
    for split in WANTED.get(case, {"train", "test"}):  # all classes are in all splits
        assert {photo.label for photo in catalog.photos if photo.split == split} == set(catalog.classes)


def test_photos_without_a_label_are_named(tmp_path):
    (warning,) = read_catalog(
        make(tmp_path, *expand("train/{a,b}/1.jpg", "unlabeled/1.jpg", "unlabeled/2.jpg"))
    ).warnings
    assert warning == "2 photos in unlabeled left out: they have no label"


def test_spellings_of_a_class_in_other_splits_are_one_class(tmp_path):
    catalog = read_catalog(make(tmp_path, *expand(*SPLIT["spelling"])))
    assert catalog.warnings == ('class "glass" of the test images is taken as "Glass" of the training images',)


def test_a_folder_around_the_class_folders(tmp_path):
    """As an unpacked archive leaves it."""
    catalog = read_catalog(make(tmp_path, *expand("set/photos/{a,b}/1.jpg", "README")))
    assert catalog.classes == ("a", "b")
    assert catalog.photos[0].path == "set/photos/a/1.jpg"
    assert catalog.warnings[0] == "the class folders are those in set/photos"


def test_one_class_is_enough_to_evaluate(tmp_path):
    make(tmp_path, *expand("glass/{2023,2024}/1.jpg"))
    assert read_catalog(tmp_path, min_classes=1).classes == ("glass",)
    assert read_catalog(tmp_path).classes == ("2023", "2024")
    make(tmp_path / "set", *expand("test/{a,b}/1.jpg", "train/{a,b}/1.jpg"))
    assert read_catalog(tmp_path / "set", min_classes=1).classes == ("a", "b")


def test_unlabelled_photos_beside_classes_are_no_class(tmp_path):
    catalog = read_catalog(make(tmp_path, *expand("{a,b}/1.jpg", "unlabelled/1.jpg")))
    assert catalog.classes == ("a", "b")
    assert catalog.warnings == ("1 photo in unlabelled left out: they have no label",)


@pytest.mark.parametrize("name", ["fold_{k}", "Part {k}", "split{k}", "set-{k}", "data_{k}"])
def test_names_of_parts(tmp_path, name):
    make(tmp_path, *(f"{name.format(k=k)}/{label}/{k}.jpg" for k in (1, 2) for label in "ab"))
    assert read_catalog(tmp_path).classes == ("a", "b")


def test_parts_of_a_set(tmp_path):
    catalog = read_catalog(make(tmp_path, *expand("fold1/{a,b}/1.jpg", "fold2/{a,b}/2.jpg")))
    assert catalog.classes == ("a", "b")
    assert {photo.split for photo in catalog.photos} == {None}
    assert catalog.warnings == ("fold1, fold2 are read as parts of one set of a, b",)


def test_equal_folders_in_all_classes_are_said(tmp_path):
    (warning,) = read_catalog(make(tmp_path, *expand("2023/{ok,bad}/1.jpg", "2024/{ok,bad}/2.jpg"))).warnings
    assert "the classes are 2023, 2024, and each holds the folders bad, ok" in warning


CLASSES = [
    ("train/1.jpg", "bus/1.jpg"),
    ("train/steam/1.jpg", "bus/1.jpg"),
    ("train station/1.jpg", "bus stop/1.jpg"),
    ("valid/1.jpg", "invalid/1.jpg"),
    ("test tube/1.jpg", "flask/1.jpg"),
    ("training/1.jpg", "resting/1.jpg"),
]


@pytest.mark.parametrize("names", CLASSES)
def test_classes_whose_names_look_like_splits(tmp_path, names):
    catalog = read_catalog(make(tmp_path, *names))
    assert catalog.classes == tuple(sorted(name.split("/")[0] for name in names))


QUESTIONS = [
    (("train/1.jpg", "test1/1.jpg"), "the photos in test1, train have no labels"),
    (("train/1.jpg", "test/1.jpg"), "have no labels, .*: put them into a folder for each class, or give a table"),
    (("birds_train/1.jpg", "birds_test/1.jpg"), "have no labels"),
    (("训练集/1.jpg", "测试集/1.jpg"), "have no labels"),
    (("train/1.jpg", "unlabeled/1.jpg"), "have no labels"),
    (("cat/1.jpg", "dog/1.jpg", "test/1.jpg"), "is test a class beside cat, dog"),
    (("train/steam/1.jpg", "train/diesel/1.jpg", "bus/1.jpg"), "are the classes diesel, steam .* or bus, train"),
    (("a/train/1.jpg", "a/test/1.jpg", "b/1.jpg"), "a are divided into splits, and b are not"),
    (("images/1.jpg", "masks/1.png"), "images, masks are no classes"),
    (("train/images/1.jpg", "train/masks/1.png", "val/images/1.jpg", "val/masks/1.png"), "are no classes"),
    (("images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt"), "images, labels are no classes"),
]


@pytest.mark.parametrize(("names", "question"), QUESTIONS)
def test_what_is_not_clear_is_asked(tmp_path, names, question):
    with pytest.raises(FieldmarkError, match=question) as caught:
        read_catalog(make(tmp_path, *names))
    assert "\n" not in str(caught.value)
