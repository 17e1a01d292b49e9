"""One encoding and one separator for a whole table, whatever program wrote it; never a wrong character in silence."""

import csv
import io

import pytest
from containers import touch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers import read_catalog
from fieldmark.data.readers.columns import KNOWN_COLUMNS
from fieldmark.data.readers.text import decode_text, split_rows

LABELS = {"玻璃": "a", "金属": "b", "纸": "c"}


def table(separator=",", end="\r\n", head=("path", "label"), labels=LABELS):
    return (
        end.join([separator.join(head), *(f"{name}/1.jpg{separator}{label}" for label, name in labels.items())]) + end
    )


ENCODINGS = ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("separator", "suffix"), [(",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv"), ("|", "csv")]
)
def test_tables_of_chinese_programs(tmp_path, encoding, separator, suffix):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    (tmp_path / f"list.{suffix}").write_bytes(table(separator).encode(encoding))
    catalog = read_catalog(tmp_path / f"list.{suffix}")
    assert set(catalog.classes) == set(LABELS)
    is_said = any("read as GBK (玻璃, 金属, 纸)" in warning for warning in catalog.warnings)
    assert is_said == encoding.startswith("gb")


def test_western_tables_of_windows(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    labels = {"Flügelhöhle": "a", "Käfer größer": "b"}
    (tmp_path / "list.csv").write_bytes(table(";", labels=labels).encode("cp1252"))
    catalog = read_catalog(tmp_path / "list.csv")
    assert set(catalog.classes) == set(labels)
    assert "not UTF-8" in catalog.warnings[0]


SPELLINGS = {
    "a byte order mark and blanks in the header": "\ufeff path , label \na/1.jpg,x\nb/1.jpg,y\n",
    "blank rows": "path,label\n\na/1.jpg,x\n,\n  ,  \nb/1.jpg,y\n,,,\n\n",
    "Excel's sep line": "sep=;\npath;label\na/1.jpg;x\nb/1.jpg;y\n",
    "quotes": 'path,label\n"a/1.jpg","x"\n"b/1.jpg",y\n',
    "capitals": "Path,LABEL\na/1.jpg,x\nb/1.jpg,y\n",
    "old Macs": "path,label\ra/1.jpg,x\rb/1.jpg,y\r",
    "backslashes": "path,label\na\\1.jpg,x\n.\\b\\1.jpg,y\n",
    "fastai": "name,label,is_valid\na/1.jpg,x,False\nb/1.jpg,y,False\n",
    "kaggle": "id,breed\na/1,x\nb/1,y\n",
    "one of each": "image_id,x,y\na/1,1,0\nb/1,0.0,1.0\n",
    "no header": "a/1.jpg,x\nb/1.jpg,y\n",
    "a list": "a/1.jpg x\nb/1.jpg y\n",
    "names of two words": "Image Path,Class Name\na/1.jpg,x\nb/1.jpg,y\n",
    "numbers and names": "path,label,label_name\na/1.jpg,0,x\nb/1.jpg,1,y\n",
    "a list with a header": "path label\na/1.jpg x\nb/1.jpg y\n",
    "an index": ",path,label\n0,a/1.jpg,x\n1,b/1.jpg,y\n",
    "capitals of Windows": "path,label\nA/1.JPG,x\nB\\1.jpg,y\n",
    "empty columns": "path,label,,\na/1.jpg,x,,\nb/1.jpg,y,,\n",
    "white space": "path,label\n a/1.jpg , x \nb/1.jpg,y\n",
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_tables_as_other_programs_write_them(tmp_path, case):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    file = tmp_path / ("list.txt" if case.startswith("a list") else "list.csv")
    file.write_bytes(SPELLINGS[case].encode())
    catalog = read_catalog(file)
    assert [(photo.path, photo.label) for photo in catalog.photos] == [("a/1.jpg", "x"), ("b/1.jpg", "y")]
    if case in ("fastai", "kaggle", "one of each", "no header"):
        assert " read as " in catalog.warnings[0]


REFUSED = [
    ("", "lists no photos"),
    ("path,label\n", "lists no photos"),
    ("path,label\na/1.jpg,x,z\n", "a row has 3 values and the header 2"),
    ("path,label,label\na/1.jpg,x,y\n", "two columns called label"),
    ("path,score\na/1.jpg,0.25\nb/1.jpg,0.5\n", "needs path and label"),
    ('path,label\na/1.jpg,"[""x"", ""y""]"\n', "has several classes for an image"),
    ("path,label\na/1.jpg,x\nb/1.jpg,y\nc/1.jpg,x|y\n", "has several classes for an image .x.y in column label"),
    ("path,tags\na/1.jpg,x\nb/1.jpg,y\nc/1.jpg,x y\n", "has several classes for an image"),
    ("id,x,y\na/1.jpg,1,1\nb/1.jpg,0,1\n", "has images of several classes"),
    ("path,label,is_valid,is_test\na/1.jpg,x,1,1\nb/1.jpg,y,0,0\n", "photo 1: it is in several splits"),
    ('path,label\n"a/1.jpg,x\nb/1.jpg,y\n' + "c/1.jpg,z\n" * 200_000, "field larger than field limit"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_tables_that_cannot_be_meant_so(tmp_path, text, message):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(FieldmarkError, match=message) as caught:
        read_catalog(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


SPLITS = {
    "is_valid": ("is_valid", {"True": "val", "False": "train", "1": "val", "0": "train"}),
    "is_test": ("is_test", {"yes": "test", "no": "train"}),
    "is_train": ("is_train", {"1": "train", "0": "test"}),
    "usage": ("Usage", {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}),
    "set": ("data set", {"train": "train", "valid": "val", "test": "test"}),
    "chinese": ("划分", {"训练集": "train", "测试集": "test"}),
    "hugging face": ("split", {"train": "train", "dev": "val", "evaluation": "test"}),
}


@pytest.mark.parametrize("case", SPLITS)
def test_columns_of_splits(tmp_path, case):
    column, values = SPLITS[case]
    lines = [f"path,label,{column}"]
    for k, value in enumerate(values):
        lines += [f"{k}{name}.jpg,{name},{value}" for name in "xy"]
        touch(tmp_path, *(f"{k}{name}.jpg" for name in "xy"))
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    catalog = read_catalog(tmp_path / "list.csv")
    assert [photo.split for photo in catalog.photos] == [split for split in values.values() for _ in "xy"]


def test_a_column_of_folds_is_not_passed_over_in_silence(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("path,label,fold\n1.jpg,x,0\n2.jpg,y,1\n")
    assert "column fold is not used" in read_catalog(tmp_path / "list.csv").warnings[0]


def test_tables_beside_folders_without_classes(tmp_path):
    """As competitions give them: labels of train/ alone, by names without folder and extension."""
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg", "test/3.jpg")
    (tmp_path / "labels.csv").write_text("id,breed\n1,x\n2,y\n")
    (tmp_path / "sample_submission.csv").write_text("id,x,y\n3,0.5,0.5\n")
    catalog = read_catalog(tmp_path)
    assert [(photo.path, photo.label) for photo in catalog.photos] == [("train/1.jpg", "x"), ("train/2.jpg", "y")]
    assert catalog.warnings == (
        "labels.csv: id is read as path, breed is read as label",
        "labels.csv: 2 photos found by file name",
        "labels.csv: 2 photos not listed left out: they have no label",
    )


@pytest.mark.parametrize("root", ["/kaggle/input/set/", "C:\\data\\", "../elsewhere/", ""])
def test_paths_of_another_machine(tmp_path, root):
    """Where file names repeat, the folders tell which is meant."""
    touch(tmp_path, *(f"img/{label}/{k}.jpg" for label in "xy" for k in range(3)))
    slash = "\\" if "\\" in root else "/"
    rows = [f"{root}{label}{slash}{k}.jpg,{label}" for label in "xy" for k in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    catalog = read_catalog(tmp_path / "list.csv")
    assert [photo.path for photo in catalog.photos] == [f"img/{label}/{k}.jpg" for label in "xy" for k in range(3)]
    assert catalog.warnings == ("list.csv: 6 photos found by file name",)


def test_tables_of_several_splits(tmp_path):
    touch(tmp_path, *(f"images/{k}.jpg" for k in range(4)))
    (tmp_path / "train.csv").write_text("image,label\n0.jpg,x\n1.jpg,y\n")
    (tmp_path / "test.csv").write_text("image,label\n2.jpg,x\n3.jpg,y\n")
    assert [photo.split for photo in read_catalog(tmp_path).photos] == ["train", "train", "test", "test"]
    (tmp_path / "other.csv").write_text("image,label\n2.jpg,x\n3.jpg,y\n")
    with pytest.raises(FieldmarkError, match="several tables that list photos"):
        read_catalog(tmp_path)


def test_a_table_that_contradicts_the_folders_is_said(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    (tmp_path / "labels.csv").write_text("path,label\na/1.jpg,x\nb/1.jpg,y\n")
    (warning,) = read_catalog(tmp_path).warnings
    assert warning == "labels.csv: the labels are those of the table, not the names of the folders"


def test_a_workbook_is_named(tmp_path):
    (tmp_path / "list.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(FieldmarkError, match="is a workbook: save the table as CSV"):
        read_catalog(tmp_path / "list.xlsx")


WORDS = st.text(
    st.characters(categories=["Lu", "Ll", "Lo", "Nd", "Po", "Zs"], exclude_characters="\u3000"), min_size=1, max_size=8
)
CHINESE = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5, codec="gb2312"), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(WORDS, CHINESE), min_size=1, max_size=6),
    separator=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_never_another_text(rows, separator, encoding, end):
    """What a program wrote comes back, or an error; never other characters."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, lineterminator=end)
    writer.writerow(["path", "label"])
    writer.writerows(rows)
    try:
        content = file.getvalue().encode(encoding)
    except UnicodeEncodeError:
        return
    try:
        decoded = decode_text(content)
    except ValueError:
        return
    found = list(split_rows(decoded.text, KNOWN_COLUMNS))
    wanted = [["path", "label"], *(list(row) for row in rows)]
    if decoded.note and found != wanted:  # a guess, which is said with the words that came out
        assert decoded.encoding not in ("utf-8", "utf-16")
        return
    assert found == wanted
