"""What a decode keeps to: the box of a photo, and a bound on its work."""

import io

import numpy as np
import pytest
from containers import png
from PIL import Image

from fieldmark.data.image import UnreadableImageError, decode


def test_a_box_is_what_it_would_be_alone(tmp_path):
    content, box = png(3, (160, 120)), (20.0, 30.0, 64.0, 48.0)
    whole = decode(content)
    part = whole.crop((20, 30, 84, 78))
    assert np.array_equal(np.asarray(decode(content, box=box)), np.asarray(part))
    assert decode(content, 32, box=box).size == (43, 32)
    with pytest.raises(UnreadableImageError, match="outside"):
        decode(content, box=(500.0, 0.0, 10.0, 10.0))


def test_a_box_of_a_large_jpeg_keeps_its_detail():
    """A reduced decode must still have as many pixels in the box as are asked for."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (100, 150, 3)).astype(np.uint8)).resize((1500, 1000))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=95)
    box = (600.0, 400.0, 300.0, 200.0)
    found = np.asarray(decode(packed.getvalue(), 100, box=box), np.float32)
    wanted = np.asarray(image.crop((600, 400, 900, 600)).resize((150, 100), Image.Resampling.BICUBIC), np.float32)
    assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 4


def test_a_jpeg_of_endless_scans_is_refused_at_once():
    """The scans of a progressive JPEG can be repeated at will, and each costs as much as the first."""
    image = Image.effect_noise((2000, 1500), 80).convert("RGB")
    packed = io.BytesIO()
    image.save(packed, "JPEG", progressive=True, quality=30)
    content = packed.getvalue()
    assert decode(content, 64).size == (85, 64)
    last = content.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImageError, match="times over its 3,000,000 pixels"):
        decode(content[:-2] + content[last:-2] * 2000 + b"\xff\xd9", 64)
