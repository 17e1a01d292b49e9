"""What is wrong with a folder is found, said, and left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fieldmark.audit import audit as module
from fieldmark.audit.audit import audit_catalog, dataset_fingerprint, drop_unreadable
from fieldmark.audit.report import AuditReport
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Catalog
from fieldmark.data.decoded import DecodedImage
from fieldmark.data.image import decode
from fieldmark.data.readers import read_catalog


def noise(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def save(root: Path, name: str, content: Image.Image | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)


def look(root: Path) -> tuple[Catalog, AuditReport]:
    catalog = read_catalog(root)
    return catalog, audit_catalog(catalog, shorter=64, workers=2)


def state(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()
    }


@pytest.fixture
def messy(tmp_path) -> Path:
    """Two splits, two classes, and one of every fault."""
    for k in range(6):
        save(tmp_path, f"train/a/{k}.png", noise(k))
        save(tmp_path, f"train/b/{k}.png", noise(10 + k))
    save(tmp_path, "test/a/20.png", noise(20))
    save(tmp_path, "test/b/21.png", noise(21))
    save(tmp_path, "train/a/again.png", (tmp_path / "train/a/0.png").read_bytes())
    save(tmp_path, "train/b/conflict.png", (tmp_path / "train/a/1.png").read_bytes())
    save(tmp_path, "test/a/leak.png", (tmp_path / "train/a/2.png").read_bytes())
    save(tmp_path, "test/b/鏡 'm\".jpg", ImageOps.mirror(noise(12)))
    save(tmp_path, "train/b/cut.png", (tmp_path / "train/b/0.png").read_bytes()[:300])
    save(tmp_path, "train/a/empty.jpg", b"")
    save(tmp_path, "train/a/empty2.jpg", b"")
    (tmp_path / "train/a/gone.jpg").symlink_to(tmp_path / "nowhere")
    return tmp_path


def test_every_fault_is_found(messy):
    before = state(messy)
    catalog, found = look(messy)
    assert {file.path: file.reason for file in found.unreadable} == {
        "train/a/empty.jpg": "empty file",
        "train/a/empty2.jpg": "empty file",
        "train/a/gone.jpg": "no such file",
        "train/b/cut.png": "truncated",
    }
    assert found.conflicts == (("train/a/1.png", "train/b/conflict.png"),)
    assert found.leaks == (("test/a/leak.png", "train/a/2.png"),)
    assert set(found.duplicates) == {("train/a/0.png", "train/a/again.png"), *found.conflicts, *found.leaks}
    assert found.near_duplicates == (("test/b/鏡 'm\".jpg", "train/b/2.png"),) == found.near_leaks
    assert found.has_issues
    assert state(messy) == before

    groups = {photo.path: group for photo, group in zip(catalog.photos, found.groups, strict=True)}
    assert groups["train/a/0.png"] == groups["train/a/again.png"] != groups["train/a/3.png"]
    assert groups["train/b/2.png"] == groups["test/b/鏡 'm\".jpg"]
    assert groups["train/a/empty.jpg"] != groups["train/a/empty2.jpg"]
    hashes = {photo.path: sha for photo, sha in zip(catalog.photos, found.file_hashes, strict=True)}
    assert hashes["train/a/gone.jpg"] == ""
    assert len(hashes["train/b/cut.png"]) == 64


def test_json_keeps_the_contract(messy):
    catalog, found = look(messy)
    told = json.loads(json.dumps(found.to_dict()))
    lists = {"unreadable", "duplicates", "near_duplicates", "conflicts", "leaks", "near_leaks", "warnings"}
    lists |= {"group_leaks", "odd", "giveaways"}
    assert set(told) == lists | {"classes", "photos", "given_groups", "label_errors", "file_properties"}
    assert told["classes"] == {"a": 12, "b": 10}
    assert told["photos"] == len(catalog.photos) == 22
    assert told["unreadable"][0] == {"path": "train/a/empty.jpg", "reason": "empty file"}
    assert told["label_errors"] is None and told["given_groups"] == 0
    text = " | ".join(told["warnings"])
    for part in (
        "4 unreadable photos: train/a/empty.jpg (empty file)",
        "with conflicting labels",
        "in several splits",
        "train/a/1.png = train/b/conflict.png",
    ):
        assert part in text
    assert "\n" not in text


def test_clean_photos_have_no_findings(tmp_path):
    for k in range(8):
        save(tmp_path, f"{'ab'[k % 2]}/{k}.png", noise(k))
    _, found = look(tmp_path)
    assert not found.has_issues
    assert found.warnings == ()
    assert len(set(found.groups)) == 8


def test_uneven_classes_and_single_photos_are_warned_of(tmp_path):
    for k in range(6):
        save(tmp_path, f"many/{k}.png", noise(k))
    save(tmp_path, "one/9.png", noise(9))
    _, found = look(tmp_path)
    assert not found.has_issues
    uneven, alone = found.warnings
    assert uneven == "class imbalance: many has 6 photos, one has 1"
    assert alone == "classes with one photo are trained on but not tested: one"


def test_pixels_arrive_once_in_order_in_this_thread(messy):
    catalog = read_catalog(messy)
    kept: dict[int, np.ndarray] = {}
    steps: list[tuple[int, int]] = []

    def keep(i: int, look: DecodedImage) -> None:
        kept[i] = look.pixels

    found = audit_catalog(catalog, shorter=48, on_decoded=keep, workers=3, progress=lambda *step: steps.append(step))
    unreadable = {file.path for file in found.unreadable}
    assert list(kept) == [i for i, photo in enumerate(catalog.photos) if photo.path not in unreadable]
    for i, pixels in kept.items():
        assert (pixels == np.asarray(decode(messy / catalog.photos[i].path, shorter=48, squash=True))).all()
    assert steps == [(k + 1, 22) for k in range(22)]
    assert audit_catalog(catalog, shorter=48, workers=1) == found


def test_what_is_known_is_not_decoded_and_changes_no_finding(messy, monkeypatch):
    catalog = read_catalog(messy)
    seen: dict[str, DecodedImage] = {}
    found = audit_catalog(catalog, shorter=48, on_decoded=lambda _, look: seen.setdefault(look.sha256, look))
    bad = [(messy / file.path).read_bytes() for file in found.unreadable if file.reason != "no such file"]
    decoded: list[bytes] = []
    monkeypatch.setattr(
        module, "decode", lambda content, *a, **how: decoded.append(content) or decode(content, *a, **how)
    )
    again: list[DecodedImage] = []
    assert (
        audit_catalog(catalog, shorter=48, find_cached=seen.get, on_decoded=lambda _, look: again.append(look)) == found
    )
    assert sorted(decoded) == sorted(bad) and all(look is seen[look.sha256] for look in again)


def test_usable_photos_and_their_groups(messy):
    catalog, found = look(messy)
    usable = drop_unreadable(catalog, found)
    assert usable.catalog.photos == tuple(catalog.photos[i] for i in usable.indices)
    assert usable.groups == tuple(found.groups[i] for i in usable.indices)
    assert len(usable.catalog.photos) == 18
    assert usable.catalog.classes == ("a", "b")


def test_a_class_that_cannot_be_read_is_left_out(tmp_path):
    for k in range(3):
        save(tmp_path, f"train/a/{k}.png", noise(k))
        save(tmp_path, f"train/b/{k}.png", noise(9 + k))
        save(tmp_path, f"train/c/{k}.png", b"broken")
        save(tmp_path, f"test/c/{k}.png", noise(20 + k))
    left = drop_unreadable(*look(tmp_path)).catalog
    assert left.classes == ("a", "b")
    assert {photo.label for photo in left.photos} == {"a", "b"}
    assert left.warnings == ("classes without readable photos to train on left out: c",)
    for k in range(3):
        save(tmp_path, f"train/b/{k}.png", b"broken")
    with pytest.raises(FieldmarkError, match="without its 6 unreadable photos fewer than two classes"):
        drop_unreadable(*look(tmp_path))


def test_the_fingerprint_follows_path_label_and_bytes(tmp_path):
    for k in range(4):
        save(tmp_path, f"{'ab'[k % 2]}/{k}.png", noise(k))
    first = dataset_fingerprint(*look(tmp_path))
    assert dataset_fingerprint(*look(tmp_path)) == first
    (tmp_path / "a/0.png").write_bytes((tmp_path / "a/0.png").read_bytes() + b" ")
    assert dataset_fingerprint(*look(tmp_path)) != first


def test_trashnet_has_three_conflicts_and_few_near_duplicates(trashnet):
    found = audit_catalog(read_catalog(trashnet), shorter=64)
    assert found.conflicts == found.duplicates
    assert [tuple(path.split("/")[1] for path in pair) for pair in found.conflicts] == [
        ("glass115.jpg", "metal91.jpg"),
        ("glass176.jpg", "plastic152.jpg"),
        ("glass389.jpg", "plastic332.jpg"),
    ]
    assert found.unreadable == ()
    bursts = {("paper/paper185.jpg", "paper/paper390.jpg"), ("metal/metal120.jpg", "metal/metal50.jpg")}
    assert bursts <= set(found.near_duplicates)
    assert len(found.near_duplicates) < 50
    assert max(map(len, found.near_duplicates)) <= 5


def test_birds_lie_on_both_sides_of_the_published_split(birds100):
    """Of these pairs the one is a crop of the other."""
    found = {tuple(pair) for pair in audit_catalog(read_catalog(birds100), shorter=64).near_leaks}
    assert {
        ("test/Black_capped_Vireo/0012.jpg", "train/Black_capped_Vireo/0025.jpg"),
        ("test/Green_Kingfisher/0001.jpg", "train/Green_Kingfisher/0041.jpg"),
    } <= found
    assert len(found) < 10
