"""The same photos in any container give the same table and the same bytes."""

import tarfile

import pytest
from containers import CLASSES, CONTAINERS, CONTENT, WANTED, add, folder, table

from fieldmark.photos.audit import audit
from fieldmark.photos.inputs import read


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_photos_in_any_container(tmp_path, container):
    catalog = read(CONTAINERS[container](tmp_path))
    assert table(catalog) == WANTED
    assert catalog.classes == tuple(sorted(CLASSES)) and catalog.warnings == ()
    found = audit(catalog, shorter=32)
    assert found.unreadable == () and found.duplicates == ()


@pytest.mark.parametrize("container", CONTAINERS)
def test_bad_photos_are_named_in_any_container(tmp_path, container, monkeypatch):
    good = next(iter(CONTENT))
    bad = {"train/鳥/cut.png": CONTENT[good][:-40], "train/鳥/empty.png": b"", "train/鳥/text.png": b"no photo"}
    for path, content in bad.items():
        monkeypatch.setitem(CONTENT, path, content)
    catalog = read(CONTAINERS[container](tmp_path))
    assert len(catalog.photos) == len(CONTENT)
    reasons = sorted(reason for _, reason in audit(catalog, shorter=32).unreadable)
    assert reasons == ["empty file", "not a photo (text?)", "truncated"]


def test_what_only_looks_like_another_format(tmp_path):
    """Class folders stay class folders, whatever lies beside them."""
    folder(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos" / "backup.tar", "w") as archive:
        add(archive, "x.json", b"{}")
    (tmp_path / "photos" / "labels.csv").write_text("id,breed\n1,dog\n")
    catalog = read(tmp_path / "photos")
    assert table(catalog) == WANTED
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path, content in CONTENT.items():
            add(archive, path, content)
        add(archive, "labels.json", b"{}")
    assert table(read(tmp_path / "set.tar")) == WANTED
