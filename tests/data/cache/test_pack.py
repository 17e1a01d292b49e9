"""The store gives back every bit or nothing, whatever became of its files and whoever else was writing to them."""

import copy
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.audit.audit import DecodedImage
from fieldmark.audit.duplicates import THUMBNAIL_SIDE
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.cache import pack as store
from fieldmark.data.cache import segments
from fieldmark.data.cache.pack import MemmapImages, MemmapWriter
from fieldmark.data.cache.segments import CachedImage, SegmentIndex, SegmentWriter

KIND = "24-bicubic-0"


def photo(k: int) -> DecodedImage:
    """The k-th of photos that all differ, in size too."""
    rng = np.random.default_rng(k)
    pixels = rng.integers(0, 256, (*rng.integers(1, 30, 2), 3), dtype=np.uint8)
    hashes = tuple(rng.integers(0, 2**64, 2, np.uint64).tolist())
    thumbnail = rng.integers(0, 256, (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), dtype=np.uint8)
    return DecodedImage(hashlib.sha256(pixels.tobytes()).hexdigest(), pixels, hashes, thumbnail)


def packed(folder: Path, numbers: list[int]) -> tuple[MemmapImages, int]:
    """A run's pack of these photos, as the audit would make it, and how many of them nobody had decoded."""
    decoded = 0
    with MemmapWriter(folder, KIND, notify=pytest.fail) as packer:
        for k in numbers:
            look = packer.find_cached(photo(k).sha256) or photo(k)
            decoded += not isinstance(look, CachedImage)
            packer.add(look)
        pack = packer.finish()
    holds(pack, numbers)
    return pack, decoded


def holds(pack: MemmapImages, numbers: list[int]) -> None:
    assert len(pack) == len(numbers)
    for i in reversed(range(len(pack))):
        np.testing.assert_array_equal(pack[i], photo(numbers[i]).pixels, strict=True)


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of each test is its own, and a segment holds three photos. -> where segments lie."""
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(segments, "MAX_SEGMENT_IMAGES", 3)
    return tmp_path / "cache" / "photos" / KIND


# ---- what goes in comes out


@given(runs=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=4))
def test_every_bit_comes_back_and_nothing_is_decoded_twice(runs: list[list[int]], tmp_path: Path):
    shutil.rmtree(tmp_path, ignore_errors=True)
    seen: set[int] = set()
    for number, numbers in enumerate(runs):
        pack, decoded = packed(tmp_path / str(number), numbers)
        assert decoded == len([k for k in numbers if k not in seen])
        holds(MemmapImages(tmp_path / str(number)), numbers)
        holds(copy.copy(pack), numbers)  # as another process gets it
        seen |= set(numbers)


def test_pixels_are_views_of_files(tmp_path: Path):
    pack, _ = packed(tmp_path / "run", [1, 2])
    assert pack[0].base is not None and not pack[0].flags.writeable


def test_a_pack_of_no_kind_is_the_folders_alone(tmp_path: Path, cached: Path):
    packer = MemmapWriter(tmp_path / "run")
    packer.add(photo(1))
    packer.finish()
    assert not cached.parent.exists()
    store.delete_record(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_an_unfinished_pack_does_not_exist(tmp_path: Path):
    assert not MemmapImages.is_complete(tmp_path) and not store.has_record(tmp_path)
    packed(tmp_path, [0, 1, 2, 3])
    assert MemmapImages.is_complete(tmp_path) and store.has_record(tmp_path)
    packer = MemmapWriter(tmp_path, KIND)
    assert not MemmapImages.is_complete(tmp_path) and not store.has_record(tmp_path)
    with packer:
        packer.add(photo(9))
    assert not MemmapImages.is_complete(tmp_path)
    assert packed(tmp_path, [9, 3])[1] == 0  # but what was decoded is kept
    (tmp_path / "pack.npz").write_bytes(b"")
    assert not MemmapImages.is_complete(tmp_path)


def test_a_run_leaves_the_cache_behind_and_nothing_else(tmp_path: Path):
    packed(tmp_path / "run", [0, 1])
    store.delete_record(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert packed(tmp_path / "again", [1, 0])[1] == 0


# ---- several at once, and one at the wrong moment

WRITER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_pack as t
t.segments.MAX_SEGMENT_IMAGES = 3
Path({ready!r}, str(os.getpid())).touch()
while len(os.listdir({ready!r})) < {writers}:
    time.sleep(0.001)
with t.MemmapWriter(Path({out!r}), t.KIND) as packer:
    for k in {numbers}:
        packer.add(packer.find_cached(t.photo(k).sha256) or t.photo(k))
        if k == {killed}:
            os.kill(os.getpid(), signal.SIGKILL)
    packer.finish()
"""


def writer(out: Path, ready: Path, numbers: list[int], writers: int = 1, killed: int = -1) -> subprocess.Popen:
    ready.mkdir(exist_ok=True)
    words = {"tests": str(Path(__file__).parent), "ready": str(ready), "out": str(out)}
    code = WRITER.format(**words, numbers=numbers, writers=writers, killed=killed)
    return subprocess.Popen([sys.executable, "-c", code])


def test_two_processes_write_at_once(tmp_path: Path):
    orders = [list(range(40)), list(range(45, 5, -1))]
    runs = [tmp_path / "a", tmp_path / "b"]
    writing = [writer(run, tmp_path / "ready", order, 2) for run, order in zip(runs, orders, strict=True)]
    assert [process.wait(60) for process in writing] == [0, 0]
    for run, order in zip(runs, orders, strict=True):
        assert MemmapImages.is_complete(run)
        holds(MemmapImages(run), order)
    assert packed(tmp_path / "c", list(range(46)))[1] == 0


def test_threads_write_at_once(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: packed(tmp_path / str(k), list(range(k, k + 20))), range(4)))
    assert packed(tmp_path / "c", list(range(23)))[1] == 0


def test_a_kill_loses_the_unfinished_segment_alone(tmp_path: Path, cached: Path):
    process = writer(tmp_path / "run", tmp_path / "ready", list(range(20)), killed=7)
    assert process.wait(60) == -signal.SIGKILL
    assert [file.suffix for file in sorted(cached.iterdir(), key=lambda file: file.suffix)] == [".half", ".seg", ".seg"]
    assert not MemmapImages.is_complete(tmp_path / "run")
    assert packed(tmp_path / "run", list(range(20)))[1] == 14


# ---- the limit


def test_what_the_run_needs_is_never_thrown_away(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch):
    packed(tmp_path / "one", [0, 1, 2])
    packed(tmp_path / "two", [3, 4, 5])
    monkeypatch.setenv("FIELDMARK_CACHE_GB", "1e-9")
    with MemmapWriter(tmp_path / "run", KIND, lambda _: None) as packer:
        for k in (0, 10):
            packer.add(packer.find_cached(photo(k).sha256) or photo(k))
        holds(packer.finish(), [0, 10])
    assert [k for k in range(12) if SegmentIndex([cached]).find(photo(k).sha256)] == [0, 1, 2]


def test_what_finds_no_room_stays_with_the_run(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch):
    """The run works, the limit holds, and the next run finds what did fit."""
    told: list[str] = []
    size = 3 * 30 * 30 * 3 + 4000
    monkeypatch.setattr(store, "MAX_SEGMENT_BYTES", size)
    monkeypatch.setenv("FIELDMARK_CACHE_GB", str(2 * size / 1e9))
    with MemmapWriter(tmp_path / "run", KIND, told.append) as packer:
        for k in range(20):
            packer.add(photo(k))
        pack = packer.finish()
    holds(pack, list(range(20)))
    assert sum(file.stat().st_size for file in cached.iterdir()) <= 2 * size
    (line,) = told
    assert line.startswith(f"the image cache {cached.parent} is full") and str(tmp_path / "run") in line
    shutil.move(tmp_path / "run", tmp_path / "moved")
    holds(MemmapImages(tmp_path / "moved"), list(range(20)))
    store.delete_record(tmp_path / "moved")
    assert list((tmp_path / "moved").iterdir()) == []
    assert 0 < sum(SegmentIndex([cached]).find(photo(k).sha256) is not None for k in range(20)) < 20


def test_no_cache_at_all(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FIELDMARK_CACHE_GB", "0")
    packed(tmp_path / "run", [0, 1])
    assert not cached.exists() and store.cache_folder() is None
    monkeypatch.setenv("FIELDMARK_CACHE_GB", "much")
    with pytest.raises(FieldmarkError, match=r"FIELDMARK_CACHE_GB is 'much'.*a number of gigabytes"):
        store.cache_folder()


# ---- what else can go wrong


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "file"))
    told: list[str] = []
    with MemmapWriter(tmp_path / "run", KIND, told.append) as packer:
        for k in range(5):
            packer.add(photo(k))
        holds(packer.finish(), list(range(5)))
    assert [line.split(":")[0] for line in told] == [
        f"the image cache {tmp_path}/file/photos cannot be written (Not a directory)"
    ]


@pytest.mark.parametrize("full_at", range(1, 12))
@pytest.mark.parametrize("for_good", [True, False])
def test_a_disk_that_gets_full(
    full_at: int, for_good: bool, tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
):
    """That of the cache: the run goes on in its own folder. Its own too: an error, and what was whole stays."""
    put, calls, disks = SegmentWriter._append, [], [cached]

    def putting(draft: SegmentWriter, data: memoryview) -> None:
        if draft.temporary_file.parent in disks:
            calls.append(draft)
            if len(calls) == full_at or (for_good and len(calls) > full_at):
                put(draft, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(draft, data)

    monkeypatch.setattr(SegmentWriter, "_append", putting)
    told: list[str] = []
    with MemmapWriter(tmp_path / "run", KIND, told.append) as packer:
        for k in range(8):
            packer.add(photo(k))
        holds(packer.finish(), list(range(8)))
    assert len(told) == 1
    assert not list(tmp_path.rglob("*.half"))

    calls.clear()
    disks[:] = [tmp_path / "other" / "photos" / KIND]
    monkeypatch.setenv("FIELDMARK_CACHE_GB", "0")
    with pytest.raises(OSError, match="No space"), MemmapWriter(tmp_path / "other", KIND, told.append) as packer:
        for k in range(100, 108):
            packer.add(photo(k))
        packer.finish()
    assert not list(tmp_path.rglob("*.half")) and not MemmapImages.is_complete(tmp_path / "other")
    monkeypatch.setattr(SegmentWriter, "_append", put)
    before = full_at - 1  # four calls write a segment: three photos and what tells of them
    kept = before // 4 * 3 if for_good else before - before // 4
    assert packed(tmp_path / "other", list(range(100, 108)))[1] == 8 - kept


def test_a_segment_that_is_taken_away_under_a_run(tmp_path: Path, cached: Path):
    packed(tmp_path / "run", [0, 1, 2, 3])
    packer = MemmapWriter(tmp_path / "other", KIND)
    looks = [packer.find_cached(photo(k).sha256) for k in range(4)]
    before = MemmapImages(tmp_path / "run")
    shutil.rmtree(cached)
    for look in looks:
        assert look is not None
        packer.add(look)
    for pack in (before, packer.finish(), MemmapImages(tmp_path / "other")):
        holds(pack, [0, 1, 2, 3])
    assert not MemmapImages.is_complete(tmp_path / "run")


def test_what_lies_scattered_is_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for k in range(12):
        packed(tmp_path / str(k), [k])
    monkeypatch.setattr(segments, "MAX_MAPPED_SEGMENTS", 2)
    pack, decoded = packed(tmp_path / "run", list(range(12)))
    assert decoded == 0 and len(pack.segments) == 2 + 4
    assert len(packed(tmp_path / "again", list(range(12)))[0].segments) <= 2 + 4


def test_a_kind_is_a_way_to_decode(monkeypatch: pytest.MonkeyPatch):
    kinds = {
        store.decoding_key(256, "bicubic"),
        store.decoding_key(256, "bilinear"),
        store.decoding_key(224, "bicubic"),
    }
    monkeypatch.setattr(store, "CACHE_VERSION", store.CACHE_VERSION + 1)
    kinds.add(store.decoding_key(256, "bicubic"))
    monkeypatch.setattr(store.features, "version", lambda name: f"another {name}")
    assert len(kinds | {store.decoding_key(256, "bicubic")}) == 5


def test_what_lies_in_the_cache_is_nothing_to_other_machines(tmp_path: Path, cached: Path, monkeypatch):
    packed(tmp_path / "run", [1, 2])
    assert MemmapImages.is_complete(tmp_path / "run") and not MemmapImages.is_complete(
        tmp_path / "run", in_run_folder=True
    )
    monkeypatch.setenv("FIELDMARK_CACHE_GB", "0")
    packed(tmp_path / "other", [1, 2])
    assert MemmapImages.is_complete(tmp_path / "other", in_run_folder=True)
