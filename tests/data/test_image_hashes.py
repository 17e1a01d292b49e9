"""An image is recognised in another file, and another image is not, as far as its own set lets them be told apart."""

import hashlib
import io
import json
import struct

import numpy as np
import pytest
from conftest import synthetic
from PIL import Image

from fieldmark.data.decoded import thumbnail
from fieldmark.data.image_hashes import MAX_DISTANCE, TRAINED_ON_KEY, HashCollector, ImageHashes, read_trained_on


def hashes_of(images, groups=None, encode=lambda image: image.tobytes()):
    collector = HashCollector()
    for image in images:
        squashed = image.resize((64, 64))
        collector.add(hashlib.sha256(encode(image)).hexdigest(), thumbnail(squashed))
    return collector.hashes() if groups is None else collector.hashes_of_groups(groups)


def as_jpeg(image, quality, scale):
    file = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


PHOTOS = [synthetic(kind, number) for kind in range(3) for number in range(20)]


@pytest.mark.parametrize(("quality", "scale"), [(95, 1.0), (60, 0.7), (40, 1.5)])
def test_copies_are_found_and_others_are_not(quality, scale):
    known = hashes_of(PHOTOS[:40], range(40))
    assert known.contains(known).all()
    copies = hashes_of([as_jpeg(photo, quality, scale) for photo in PHOTOS])
    assert known.contains(copies)[:40].mean() == 1.0
    assert not known.contains(copies)[40:].any()
    assert not known.is_identical(copies).any()


def test_a_set_of_nearly_equal_images_judges_its_own():
    """Frames of a fixed camera differ by noise alone: another frame is no copy, but the same bytes are."""
    rng = np.random.default_rng(0)
    gains, noise = rng.standard_normal((60, 1, 1, 1)), rng.standard_normal((60, 64, 64, 3))
    frames = [Image.fromarray(np.uint8(np.clip(pixels, 0, 255))) for pixels in 120 + 5 * gains + 4 * noise]
    known = hashes_of(frames[:40], range(40))
    assert known.max_distance < MAX_DISTANCE / 2
    assert known.contains(hashes_of(frames[:40])).all()
    assert known.contains(hashes_of(frames[40:])).mean() < 0.5


def test_json_and_union_keep_them():
    one, other = hashes_of(PHOTOS[:5], range(5)), hashes_of(PHOTOS[5:9], range(4))
    again = ImageHashes.from_dict(json.loads(json.dumps(one.to_dict())))
    assert (again.content == one.content).all() and (again.signatures == one.signatures).all()
    assert again.max_distance == one.max_distance
    both = one.union(other)
    assert len(both) == 9 and both.contains(other).all() and both.contains(one).all()
    assert not both.contains(hashes_of(PHOTOS[20:30])).any()
    empty = one.select(np.zeros(0, int))
    assert not empty.contains(one).any() and empty.union(one).contains(one).all()


def test_the_header_of_weights(tmp_path):
    def write(metadata):
        header = json.dumps({"__metadata__": {"counters": json.dumps(metadata)}}).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        return tmp_path / "a.safetensors"

    one = hashes_of(PHOTOS[:5], range(5))
    found = read_trained_on(write({TRAINED_ON_KEY: one.to_dict()}))
    assert found is not None and found.contains(one).all()
    assert read_trained_on(write({"format": "pt"})) is None
    assert read_trained_on(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="damaged"):
        read_trained_on(write({TRAINED_ON_KEY: {}}))
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 100)
    assert read_trained_on(tmp_path / "b.safetensors") is None
