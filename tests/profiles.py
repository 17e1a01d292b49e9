"""ICC profiles, written by hand: of RGB and grey by primaries and gamma, and of CMYK by a table."""

import struct
from collections.abc import Callable, Mapping

import numpy as np
from PIL import ImageCms

D50 = (0.9642, 1.0, 0.8249)
# Columns of the matrices from linear RGB to XYZ, adapted to D50: red, green, blue.
DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def srgb_to_linear(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def rgb_profile(primaries: tuple, gamma: float | None = None) -> bytes:
    """A profile of these primaries, with sRGB's curve or a gamma."""
    tags: dict[bytes, bytes] = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, primaries), strict=True))
    return _profile(b"RGB ", {**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))})


def grey_profile(gamma: float | None) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def cmyk_profile(lab: Callable[[float, float, float, float], tuple[float, float, float]]) -> bytes:
    """The Lab colours of all sixteen combinations of full inks; those between are interpolated."""
    inks = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = bytes(round(v) for ink in inks for v in _lab8(*lab(*ink)))
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table + identity * 3
    tags = {b"A2B0": lut, b"A2B1": lut}
    return _profile(b"CMYK", tags, connection=b"Lab ", kind=b"prtr")


def srgb_profile() -> bytes:
    """LittleCMS's own."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def in_srgb(rgb: np.ndarray, primaries: tuple, gamma: float | None = None) -> np.ndarray:
    """Colours (..., 3) of 0..255 in these primaries -> the same in sRGB, by the formula."""
    values = np.asarray(rgb, float) / 255
    linear = srgb_to_linear(values) if gamma is None else values**gamma
    return 255 * linear_to_srgb(linear @ np.array(primaries) @ np.linalg.inv(np.array(SRGB)))


def _lab8(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    return lightness * 255 / 100, a + 128, b + 128


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    points = np.rint(65535 * srgb_to_linear(np.linspace(0, 1, 1024))).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(points)) + points.tobytes()


def _profile(space: bytes, tags: Mapping[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    description = b"test"
    texts = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + description + b"\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(D50),
    }
    tags = {**texts, **tags}
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(data), len(value))
        data += value
    size = at + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", *(round(value * 65536) for value in D50)) + bytes(48)
    return header[:128] + struct.pack(">I", len(tags)) + table + data
