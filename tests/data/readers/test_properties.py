"""Whatever the folders are called and however they are nested: the classes come out, or one line that asks."""

import shutil
import string
from pathlib import Path

from containers import touch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers import read_catalog
from fieldmark.data.split_names import class_key

STYLES = {
    "plain": {"train": "train", "val": "val", "test": "test"},
    "upper": {"train": "TRAIN", "val": "VALID", "test": "TEST"},
    "sets": {"train": "training_set", "val": "validation_set", "test": "test_set"},
    "camel": {"train": "TrainImages", "val": "ValImages", "test": "TestImages"},
    "years": {"train": "train2017", "val": "val2017", "test": "test2017"},
    "prefix": {"train": "chest-train", "val": "chest-val", "test": "chest-test"},
    "suffix": {"train": "train (1)", "val": "val (1)", "test": "test (1)"},
    "chinese": {"train": "训练集", "val": "验证集", "test": "测试数据"},
    "hugging face": {"train": "training", "val": "dev", "test": "evaluation"},
}
CLASSES = ["cat", "dog", "great tit", "玻璃", "train station", "Test Tube", "a1", "2017", "valve", "bus-stop", "0", "1"]
LITTER = ["README.md", "docs/index.html", ".git/config", "labels.txt", "Thumbs.db", "__MACOSX/x/1.jpg"]


@st.composite
def layouts(draw):
    """Paths of a dataset, and what a person would say it is: the classes, and the splits that it comes with."""
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True))
    names = STYLES[draw(st.sampled_from(sorted(STYLES)))]
    splits = draw(st.sampled_from([(), ("train", "test"), ("train", "val"), ("train", "val", "test")]))
    inner = draw(st.sampled_from(["", "more/", "a/b/"]))
    n = draw(st.integers(1, 2))
    match draw(st.sampled_from(["split first", "class first"])) if splits else "classes":
        case "split first":
            folders = {f"{names[split]}/{label}": (label, split) for split in splits for label in classes}
        case "class first":
            folders = {f"{label}/{names[split]}": (label, split) for split in splits for label in classes}
        case _:
            folders = {label: (label, None) for label in classes}
    photos = {f"{folder}/{inner}{k}.jpg": meant for folder, meant in folders.items() for k in range(n)}
    extra = draw(st.lists(st.sampled_from(LITTER), unique=True, max_size=3))
    if splits and draw(st.booleans()):
        extra.append("unlabeled/1.jpg")
    return photos, extra


@settings(max_examples=200)
@given(layouts())
def test_what_a_person_means_or_one_question(tmp_path_factory, layout):
    photos, extra = layout
    root = touch(tmp_path_factory.mktemp("layout"), *photos, *extra)
    try:
        catalog = read_catalog(root)
    except FieldmarkError as error:
        assert "\n" not in str(error) and len(str(error)) < 600 + 2 * len(str(root))
        assert any(word in str(error) for word in ("give", "put", "rename", "Rename", "divide"))  # says what to do
        return
    finally:
        shutil.rmtree(root)
    found = {photo.path: (class_key(photo.label), photo.split) for photo in catalog.photos}
    meant = {path: (class_key(label), split) for path, (label, split) in photos.items()}
    assert found == meant  # so that no classifier learns to tell train from test, and no photo is left out


TEXT = st.text(string.ascii_letters + string.digits + " _-é玻璃", min_size=1, max_size=8).filter(lambda s: s.strip())
COLUMNS = [("path", "label"), ("image", "class"), ("filename", "category"), ("id", "breed"), ("img_path", "target")]


@settings(max_examples=150)
@given(
    labels=st.lists(TEXT, min_size=2, max_size=6),
    columns=st.sampled_from(COLUMNS),
    separator=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]),
    has_index=st.booleans(),
    is_quoted=st.booleans(),
)
def test_tables_say_what_they_say(tmp_path_factory, labels, columns, separator, encoding, has_index, is_quoted):
    root: Path = touch(tmp_path_factory.mktemp("table"), *(f"{k}.jpg" for k in range(len(labels))))
    quote = '"' if is_quoted else ""
    lines = [separator.join([*([""] if has_index else []), *columns])]
    for k, label in enumerate(labels):
        lines.append(
            separator.join([*([str(k)] if has_index else []), f"{quote}{k}.jpg{quote}", f"{quote}{label}{quote}"])
        )
    (root / "list.csv").write_bytes("\r\n".join(lines).encode(encoding))
    try:
        catalog = read_catalog(root / "list.csv")
    except FieldmarkError as error:
        assert "\n" not in str(error)
        return
    finally:
        shutil.rmtree(root)
    found = {photo.path: photo.label for photo in catalog.photos}
    wanted = {f"{k}.jpg": label.strip() for k, label in enumerate(labels)}
    is_guess = any("not UTF-8" in warning for warning in catalog.warnings)
    assert found == wanted or is_guess
