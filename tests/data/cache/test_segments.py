"""A segment gives back every bit that was put in, or nothing; the longest unused is thrown away first."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.audit.audit import DecodedImage
from fieldmark.audit.duplicates import THUMBNAIL_SIDE
from fieldmark.data.cache import segments
from fieldmark.data.cache.segments import SegmentIndex, SegmentWriter, evict_segments


def photo(k: int) -> DecodedImage:
    """The k-th of photos that all differ, in size too; every hundredth's hash begins alike."""
    rng = np.random.default_rng(k)
    pixels = rng.integers(0, 256, (*rng.integers(1, 30, 2), 3), dtype=np.uint8)
    sha256 = hashlib.sha256(str(k % 100).encode()).hexdigest()[:32] + hashlib.sha256(pixels.tobytes()).hexdigest()[:32]
    hashes = tuple(rng.integers(0, 2**64, 2, np.uint64).tolist())
    return DecodedImage(
        sha256, pixels, hashes, rng.integers(0, 256, (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), dtype=np.uint8)
    )


def segment(folder: Path, *numbers: int) -> Path:
    draft = SegmentWriter(folder)
    for k in numbers:
        draft.add(photo(k))
    draft.finish()
    return draft.file


def found(shelf: SegmentIndex, numbers: range) -> list[int]:
    """Which of the photos are there; those must be right in every bit."""
    there = []
    for k in numbers:
        if look := shelf.find(photo(k).sha256):
            for name in ("sha256", "pixels", "dhash", "thumbnail"):
                np.testing.assert_array_equal(getattr(look, name), getattr(photo(k), name))
            there.append(k)
    return there


@given(contents=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=6), max_size=5))
def test_what_is_put_in_is_found(contents: list[list[int]], tmp_path: Path):
    shutil.rmtree(tmp_path, ignore_errors=True)
    for number, numbers in enumerate(contents):
        segment(tmp_path / "ab"[number % 2], *numbers)
    shelf = SegmentIndex([tmp_path / "a", tmp_path / "b"])
    assert found(shelf, range(300)) == sorted({k for numbers in contents for k in numbers})
    assert {file.suffix for file in tmp_path.rglob("*.*")} <= {".seg"}


def test_pixels_may_lie_in_any_order(tmp_path: Path):
    odd = photo(3).pixels[::-1, ::2]  # strides that no file has
    draft = SegmentWriter(tmp_path)
    draft.add(DecodedImage("00" * 32, odd, (0, 0), photo(3).thumbnail))
    draft.finish()
    look = SegmentIndex([tmp_path]).find("00" * 32)
    assert look is not None and not look.pixels.flags.writeable
    np.testing.assert_array_equal(look.pixels, odd)


# ---- damage


@given(share=st.floats(0, 1, exclude_max=True))
def test_half_a_segment_is_none(share: float, tmp_path: Path):
    whole, half = segment(tmp_path, 1, 2), segment(tmp_path, 3, 4, 5)
    os.truncate(half, int(share * half.stat().st_size))
    assert found(SegmentIndex([tmp_path]), range(6)) == [1, 2]
    assert whole.exists() and not half.exists()
    whole.unlink()


@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_never_a_changed_photo(share: float, flip: int, tmp_path: Path):
    file = segment(tmp_path, 0, 1, 2)
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= flip
    file.write_bytes(content)
    there = found(SegmentIndex([tmp_path]), range(3))
    if share < sum(photo(k).pixels.size for k in range(3)) / len(content):
        assert len(there) == 2
    file.unlink(missing_ok=True)


def test_a_photo_that_is_damaged_in_one_place_is_found_in_another(tmp_path: Path):
    damaged = segment(tmp_path, 0, 1, 2)
    damaged.write_bytes(bytes(9) + damaged.read_bytes()[9:])
    segment(tmp_path, 0)
    assert found(SegmentIndex([tmp_path]), range(3)) == [0, 1, 2]


def test_what_cannot_be_opened_now_is_not_thrown_away(tmp_path: Path):
    (tmp_path / "folder.seg").mkdir()
    segment(tmp_path, 1)
    assert found(SegmentIndex([tmp_path, tmp_path / "none"]), range(3)) == [1]
    assert (tmp_path / "folder.seg").is_dir()


def test_a_segment_that_has_gone_since(tmp_path: Path):
    segment(tmp_path, 1)
    shelf = SegmentIndex([tmp_path])
    shutil.rmtree(tmp_path)
    assert found(shelf, range(3)) == []


# ---- room


def test_the_longest_unused_are_thrown_away_first(tmp_path: Path):
    files = [segment(tmp_path / "kind"[: 1 + k % 2], k) for k in range(6)]
    for k, file in enumerate(files):
        os.utime(file, (k, k))
    sizes = [file.stat().st_size for file in files]
    assert found(SegmentIndex([tmp_path / "k"]), range(1)) == [0]  # which makes it the last one used
    assert evict_segments(tmp_path, 10, sum(sizes) + 9 - sizes[1], {files[2]})
    assert [file.exists() for file in files] == [True, False, True, False, True, True]
    assert not evict_segments(tmp_path, 10, sizes[2] + 9, {files[2]})
    assert [file.exists() for file in files] == [False, False, True, False, False, False]
    assert evict_segments(tmp_path, 10, sizes[2] + 10, {files[2]})


def test_no_more_than_half_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = segment(tmp_path / "kind", 1).stat().st_size
    usage = shutil.disk_usage(tmp_path)._replace(free=held + 1000)
    monkeypatch.setattr(segments.shutil, "disk_usage", lambda _: usage)
    assert evict_segments(tmp_path, 500, 1e12, ())
    assert not evict_segments(tmp_path, 2 * held, 1e12, ())


def test_half_segments_of_the_dead_go(tmp_path: Path):
    abandoned, living = tmp_path / "kind" / "a.half", tmp_path / "kind" / "b.half"
    abandoned.parent.mkdir()
    for half, age in ((abandoned, 2 * segments.STALE_SECONDS), (living, 60)):
        half.touch()
        os.utime(half, (time.time() - age, time.time() - age))
    assert evict_segments(tmp_path, 1, 1e9, ())
    assert living.exists() and not abandoned.exists()
