"""What is wrong with a folder is found, said, and left alone."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fieldmark.audit import audit as module
from fieldmark.audit.audit import audit_catalog, dataset_fingerprint, drop_unreadable
from fieldmark.audit.report import AuditReport, Shortcut
from fieldmark.audit.warning_lines import issue_warnings
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


EMPTY: dict[str, Any] = dict.fromkeys(
    ("unreadable", "duplicates", "near_duplicates", "conflicts", "leaks", "near_leaks"), ()
)
EMPTY |= dict.fromkeys(("group_leaks", "odd", "giveaways", "warnings"), ())
EMPTY |= {"classes": {}, "given_groups": 0, "label_errors": None}
"""The JSON of an older version, which measured no file properties."""


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


def test_equal_files_are_decoded_once(tmp_path, monkeypatch):
    """But for those that are read at the same time; and every one of them if somebody wants the pixels."""
    content = io.BytesIO()
    noise(0).save(content, "PNG")
    for k in range(60):
        save(tmp_path, f"{'ab'[k % 2]}/{k}.png", content.getvalue())
    catalog, decoded = read_catalog(tmp_path), []
    monkeypatch.setattr(module, "decode", lambda *args, **how: decoded.append(1) or decode(*args, **how))
    found = audit_catalog(catalog, shorter=48, workers=2)
    assert len(decoded) < 30 and [len(paths) for paths in found.duplicates] == [60]
    pixels: list[int] = []
    assert audit_catalog(catalog, shorter=48, on_decoded=lambda i, _: pixels.append(i)) == found
    assert pixels == [*range(60)]


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


def frame(seed: int, defect: bool) -> Image.Image:
    """A photo of a fixed camera: one scene with the noise of the sensor, and a small defect somewhere."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(noise(0).resize((96, 96))) + rng.normal(0, 2, (96, 96, 3))
    if defect:
        x, y = rng.integers(10, 80, 2)
        pixels[y : y + 5, x : x + 5] = 20
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def groups_of(catalog: Catalog, numbers: tuple[int, ...]) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for photo, number in zip(catalog.photos, numbers, strict=True):
        groups.setdefault(number, set()).add(photo.path)
    return set(map(frozenset, groups.values()))


def test_frames_of_a_fixed_camera_are_grouped_by_class(tmp_path):
    """40 without and 40 with a defect, nearly equal: one family, but a group for each class, which may be divided."""
    for k in range(40):
        save(tmp_path, f"ok/{k}.png", frame(k, defect=False))
        save(tmp_path, f"defect/{k}.png", frame(100 + k, defect=True))
    catalog, found = look(tmp_path)
    (family,) = found.near_duplicates
    assert len(family) >= 75  # a few defects are so large that the frame is no near-duplicate
    groups = groups_of(catalog, found.groups)
    assert {frozenset(path for path in family if path.startswith(label)) for label in ("ok", "defect")} <= groups
    assert all(len({path.split("/")[0] for path in group}) == 1 for group in groups)
    assert len(set(found.hard_groups)) == 80
    (line,) = found.warnings
    assert line == (
        f"1 set of near-duplicates (those of one class stay in one split): {family[0]} = {family[1]} = ..."
        f" ({len(family)} in all); fieldmark check PHOTOS --out DIR shows all"
    )
    usable = drop_unreadable(catalog, found)
    assert (usable.groups, usable.hard_groups) == (found.groups, found.hard_groups)


def test_what_no_split_divides(tmp_path):
    """Identical files, copies and given groups whatever their labels; near-duplicates only within a class."""
    scene = noise(1)
    save(tmp_path, "a/1.png", scene)
    save(tmp_path, "b/same.png", (tmp_path / "a/1.png").read_bytes())
    save(tmp_path, "b/mirrored.png", ImageOps.mirror(scene))
    for k, label in ((2, "a"), (3, "b")):
        save(tmp_path, f"{label}/{k}.png", noise(k))
        for other in "ab":  # a crop is a near-duplicate, and no copy
            save(tmp_path, f"{other}/{k}-crop.png", noise(k).crop((4, 3, 156, 117)))
    save(tmp_path, "a/p1.png", noise(10))
    save(tmp_path, "b/p1.png", noise(11))
    catalog = read_catalog(tmp_path)
    patients = [replace(photo, group="p1" if "p1" in photo.path else None) for photo in catalog.photos]
    catalog = replace(catalog, photos=tuple(patients))
    found = audit_catalog(catalog, shorter=64)
    hard = {
        frozenset({"a/1.png", "b/same.png", "b/mirrored.png"}),
        frozenset({"a/p1.png", "b/p1.png"}),
        frozenset({"a/2-crop.png", "b/2-crop.png"}),  # equal files
        frozenset({"a/3-crop.png", "b/3-crop.png"}),
    }
    assert groups_of(catalog, found.hard_groups) == hard | {frozenset({"a/2.png"}), frozenset({"b/3.png"})}
    soft = {
        frozenset({"a/2.png", "a/2-crop.png", "b/2-crop.png"}),
        frozenset({"b/3.png", "a/3-crop.png", "b/3-crop.png"}),
    }
    assert groups_of(catalog, found.groups) == soft | {group for group in hard if "crop" not in str(group)}
    again = AuditReport.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.groups == again.hard_groups == ()
    assert again == replace(
        found, groups=(), hard_groups=(), file_hashes=(), catalog_warnings=(), audit_warnings=found.warnings
    )


def test_long_lists_are_short_where_a_person_reads(tmp_path):
    """500 equal files with long names, 500 that cannot be read: complete in JSON, a line each in the warnings."""
    name = "/".join(["a very long name of a folder" * 4, "and of a file" * 5])
    content = io.BytesIO()
    noise(0).save(content, "PNG")
    for k in range(500):
        save(tmp_path, f"{'ab'[k % 2]}/{name}-{k}.png", content.getvalue())
        save(tmp_path, f"{'ab'[k % 2]}/{name}-{k}.jpg", b"broken")
    for k in range(40):
        save(tmp_path, f"{'ab'[k % 2]}/{k}.png", noise(1 + k // 2 + 100 * (k % 2)))
        save(tmp_path, f"{'ab'[k % 2]}/again-{k}.png", noise(1 + k // 2 + 100 * (k % 2)))
    _, found = look(tmp_path)
    assert len(found.warnings) == 3
    for line in found.warnings:
        assert len(line) <= 200 and "\n" not in line, line
    unreadable, identical, conflicts = found.warnings
    assert unreadable.startswith("500 unreadable photos: a/") and "and 499 more; fieldmark check" in unreadable
    assert identical.startswith("41 sets of identical files: a/a very") and " = ... (500 in all)" in identical
    assert "fieldmark check PHOTOS --out DIR shows all" in identical
    assert conflicts.startswith("1 photo with conflicting labels (keep one): a/")
    assert sorted(map(len, found.to_dict()["duplicates"])) == [2] * 40 + [500]


def test_file_properties_that_tell_the_classes_apart(tmp_path):
    """Of one class 83 % are JPEGs of all sizes, all others PNGs of one size; and then none."""
    rng = np.random.default_rng(0)
    for first, label in ((100, "covid"), (200, "normal"), (300, "other")):
        for k in range(36):
            image, name = noise(first + k), f"{label}/{k}.png"
            if label == "covid" and k < 30:
                image, name = image.resize(tuple(rng.integers(90, 170, 2))), f"{label}/{k}.jpg"
            save(tmp_path, name, image)
    _, found = look(tmp_path)
    (line,) = found.warnings
    assert line.startswith("file properties alone tell covid from the others with a balanced accuracy of 9")
    assert line.endswith("% (chance 50 %), by format: 83 % of covid have the format JPEG and 0 % of the others")
    assert found.to_dict()["giveaways"] == [
        {"label": "covid", "what": "format", "value": "JPEG", "share": 30 / 36, "elsewhere": 0.0}
    ]
    assert found.to_dict()["file_properties"]["shortcut"] is True and not found.has_issues
    for file in tmp_path.glob("covid/*.jpg"):
        file.unlink()
    _, found = look(tmp_path)
    assert found.warnings == ("class imbalance: normal has 36 photos, covid has 6",)
    assert found.to_dict()["giveaways"] == [] and found.to_dict()["file_properties"] is None


def test_a_hundred_shortcuts_are_a_few_lines():
    shortcut = Shortcut("a" * 300, "camera", "b" * 300, 1.0, 0.0)
    report = replace(AuditReport.from_dict(EMPTY), shortcuts=(shortcut,) * 100)
    lines = list(issue_warnings(report))
    assert len(lines) == 4 and all(len(line) <= 200 for line in lines)
    assert lines[-1] == "97 more shortcuts of this kind: giveaways in fieldmark check PHOTOS --json"


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
