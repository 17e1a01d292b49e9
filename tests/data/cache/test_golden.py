"""Decoding gives the pixels, dHash and thumbnail that the cache of this version holds."""

import base64
import hashlib
import io

import numpy as np
import profiles
import pytest
from PIL import Image

from fieldmark.data.cache.pack import CACHE_VERSION
from fieldmark.data.decoded import DecodedImage
from fieldmark.data.image import decode

GOLDEN = {
    2: {
        "p3": "38e55ff1fe24f7a8",
        "png": "b5463e5b8ab508d5",
        "transparent": "6622f65f07778ab7",
        "grey16": "f2ac2b5c5ccbf503",
        "palette": "04ef0feceac4024b",
        "rotated": "307c1cd3fae7884e",
        "cmyk": "c70c97b14c647759",
    },
}
"""Cache version -> image -> SHA-256 of what is decoded of it."""

# As files, since an encoder may write other bytes in its next version: 32 x 24 pixels, one with the EXIF orientation 6.
JPEG = {
    "rotated": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAV"
        "ExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAYACADASIAAhEBAxEB/8QAGQAAAgMBAAAAAAAAAAAAAAAA"
        "AAYBBAUC/8QAIBAAAgICAgIDAAAAAAAAAAAAAQIAAwQRBRITITFBUf/EABcBAAMBAAAAAAAAAAAAAAAAAAAEBQP/xAAeEQACAQUBAQEA"
        "AAAAAAAAAAABAgADBBESIQUxMv/aAAwDAQACEQMRAD8A1uVYWY7AfkQLMC08h26nW46mzt6Y+pyFxVPZtbmVNB9ELq/FNdV7mTxlLLjK"
        "CPqWjU2/iRTm466UES6l1LDYIjtrca8ku0pYYs/MzBySVQkRbz86xGIDGEJK8Ylg2Yp5rF3G0p4/IXeYbY+4z4OVY1YO4QjdL9GVPdGi"
        "rryf/9k="
    ),
    "cmyk": (
        "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJTUjI+"
        "WmFaUGBKUVJP/8AAFAgAGAAgBEMRAE0RAFkRAEsRAP/EABkAAAMBAQEAAAAAAAAAAAAAAAQGBwUCA//EACYQAAICAwACAgEEAwAAAAAA"
        "AAECAwQABRESIRNBFQYUMVEiIzL/2gAOBEMATQBZAEsAAD8ATtZERMuA6lTDYVm9cOda6VUnUk4w0dtC8wAcZStL/jAuPk22gXVFC474"
        "8xvfYxGh4+Q7zNzaD9xq28PfRmnbnVYD05K9pMsmxZgfvJz+oeSSORkY3GlsNsXYIeE4pXbcfyn3mhVkHxD3ibZQhzhNbVTLGAUOB0tN"
        "IkoPhhEliML/AKz7yiPRsRL5BT6wPR2rguKXJ53GyrXaGAdH8ZnTy35iVQsVOCixaMnx9OWbUWo5teiSH3zAtjLIyMqn3gf4q2W+R1Oe"
        "tnWzSwFypzqzqqbgyMgxUt0LkkhKqeYQnnEPFsVrmvdZCCuZUsVKJucXKsuujU+lGAa2y8syhjluvUITXYhRidFSjjbyCgHObcCpAeDK"
        "RoNbDOiFlB7ieKqfkec+83dZadHVAfWLaoJLfif7zfvaiutNiqDoH9Y2mhF+P/5HfHuMNmd/2RPfrGWvq65hUsg6cmm3jEdhgB94ibSo"
        "gsN6+8QNpsZVnYBj/Of/2Q=="
    ),
}


def file_content(name: str) -> bytes:
    if name in JPEG:
        return base64.b64decode(JPEG[name])
    y, x = np.mgrid[:24, :32]
    images = {
        "png": Image.fromarray(np.stack([8 * x, 10 * y, 4 * (x + y)], axis=2).astype(np.uint8)),
        "transparent": Image.fromarray(np.stack([8 * x, 10 * y, 4 * x, 255 - 8 * x], axis=2).astype(np.uint8)),
        "grey16": Image.fromarray((80 * x * y + 500).astype(np.uint16)),
        "palette": Image.fromarray((x + y).astype(np.uint8)),
        "p3": Image.fromarray(np.stack([8 * x, 250 - 10 * y, 4 * (x + y)], axis=2).astype(np.uint8)),
    }
    if name == "palette":
        images[name].putpalette([k * c % 256 for k in range(256) for c in (1, 5, 9)])
    file = io.BytesIO()
    images[name].save(file, "PNG", icc_profile=profiles.rgb_profile(profiles.DISPLAY_P3) if name == "p3" else None)
    return file.getvalue()


@pytest.mark.parametrize("name", ["png", "transparent", "grey16", "palette", "p3", *JPEG])
def test_decoding_is_that_of_the_cache_version(name: str):
    image = DecodedImage.from_image(decode(file_content(name), shorter=12), "")
    digest = hashlib.sha256(repr((image.pixels.shape, image.dhash)).encode())
    digest.update(image.pixels.tobytes() + image.thumbnail.tobytes())
    assert GOLDEN.get(CACHE_VERSION, {}).get(name) == digest.hexdigest()[:16], (
        f"{name} is decoded to other pixels, or has another dHash or thumbnail, than in the caches of version"
        f" {CACHE_VERSION}: raise CACHE_VERSION in fieldmark/data/cache/pack.py and add its digests to GOLDEN. If only"
        " Pillow or one of its libraries has changed, the key of the cache differs already: replace the digests."
    )
