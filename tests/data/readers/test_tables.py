"""A manifest says path, label, split, group and box, or which of its rows does not."""

import pytest
from containers import CONTENT, WANTED, folder, rows, table

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers import read_catalog

MANIFESTS = [
    ("a,b\n1,2\n", "has the columns a, b; it needs path and label"),
    ("path,label\na.png,\n", "photo 1: path or label is missing"),
    ("path,label\na.png,x\na.png,y\n", "photo 2: a.png is listed twice"),
    ("path,label,split\na.png,x,often\n", "photo 1: split is 'often'"),
    ("path,label\nhttp://x/a.png,x\n", "is an address: get the photos first"),
    ('path,label,box\na.png,x,"1,2,3"\n', "is written as x,y,width,height"),
    ('path,label,box\na.png,x,"1,2,3,nan"\n', "holds nothing"),
]


@pytest.mark.parametrize(("text", "message"), MANIFESTS)
def test_a_wrong_manifest_names_its_row(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(FieldmarkError, match=message) as caught:
        read_catalog(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.parquet"])
def test_a_damaged_manifest_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"{nonsense")
    with pytest.raises(FieldmarkError, match="cannot be read") as caught:
        read_catalog(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_groups_by_column_and_by_pattern(tmp_path):
    folder(tmp_path)
    lines = [
        "path,label,patient,group",
        *(f"{row['path']},{row['label']},p{k % 2},g{k}" for k, row in enumerate(rows())),
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")

    def groups(group_by: str | None = None) -> set[str | None]:
        return {photo.group for photo in read_catalog(tmp_path / "list.csv", group_by=group_by).photos}

    assert groups() == {f"g{k}" for k in range(6)}
    assert groups("Patient") == {"p0", "p1"}
    assert groups(r"/(\d)\.") == {"0", "1", "2"}
    assert {photo.group for photo in read_catalog(tmp_path, group_by="鳥").photos} == {"鳥", None}
    for wrong, message in (("(", "no regular expression"), ("xyz", "matches no path")):
        with pytest.raises(FieldmarkError, match=message):
            groups(wrong)


def test_an_imagefolder_with_metadata_in_each_split(tmp_path):
    for split in ("train", "test"):
        lines = ["file_name,label"]
        for path, content in CONTENT.items():
            if path.startswith(split):
                name = path.removeprefix(split + "/").replace("/", "-")
                (tmp_path / split).mkdir(exist_ok=True)
                (tmp_path / split / name).write_bytes(content)
                lines.append(f"{name},{path.split('/')[1]}")
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    assert table(read_catalog(tmp_path)) == WANTED


def test_photos_without_a_group_are_said(tmp_path):
    (warning,) = read_catalog(folder(tmp_path), group_by="鳥").warnings
    assert warning == "3 photos not matched by --group-by: each is its own group"
