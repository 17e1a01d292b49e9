"""An image of any mode -> 8-bit RGB in sRGB, on white.

Colours with an ICC profile (Display P3 of phones, Adobe RGB of cameras, CMYK, grey with a gamma) are converted to sRGB
by LittleCMS, with relative colorimetric intent and black point compensation, as image editors do: white stays white and
black black, and colours within sRGB keep their look. Profiles that are those of sRGB but for rounding change no bit.
Damaged profiles, and those of another kind of colour than the pixels, are ignored.
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from fieldmark.data.formats.limits import UnreadableImageError

MAX_PROFILE_BYTES = 4 * 2**20
"""Size of a profile beyond which it is ignored; those of printers have 2 MiB."""
SRGB_TOLERANCE = 2
"""Largest difference, of 255, of a colour from itself in sRGB for a profile that is taken for sRGB."""
_CACHED_PROFILES = 32
_GREY_MODES = frozenset(("1", "L", "LA", "La"))
_RGB_MODES = frozenset(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"))
_SPACES = {"RGB": b"RGB ", "CMYK": b"CMYK"}

Conversion = Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image) -> tuple[Image.Image, Conversion | None]:
    """8-bit RGB, on white if the image is transparent; and what converts it to sRGB, unless it is sRGB.

    RGB is better converted once it is resized, which is much less work. CMYK and grey are in sRGB already.
    """
    profile, is_grey = image.info.get("icc_profile"), image.mode in _GREY_MODES or _is_deep_grey(image.mode)
    is_rgb = image.mode in _RGB_MODES
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        profile = b""
    if _is_deep_grey(image.mode):
        image = Image.fromarray(_gray_to_uint8(np.asarray(image), image.mode))
    if is_grey and (convert_grey := _grey_conversion(profile)):
        image = convert_grey(image)
    if image.mode == "CMYK" and (convert_cmyk := _color_conversion(profile, "CMYK")):
        image = convert_cmyk(image)
    elif image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb, _color_conversion(profile, "RGB") if is_rgb else None


def _is_deep_grey(mode: str) -> bool:
    return mode.startswith("I") or mode == "F"


def _gray_to_uint8(gray: np.ndarray, mode: str) -> np.ndarray:
    """Scale grey values of 16 or 32 bits, (h, w), to uint8; Pillow's `convert` would clip them to white."""
    low, high = gray.min(), gray.max()
    if mode == "F":
        if not (low >= 0 and high <= 255):  # also true of NaN
            raise UnreadableImageError(
                f"floating-point values from {low:g} to {high:g}: only 0..1 and 0..255 have a known scale"
            )
        return np.rint(gray * 255 if high <= 1 else gray).astype(np.uint8)
    if low < 0 or high > 65535:
        raise UnreadableImageError(f"32-bit values from {low} to {high}: only 0..65535 has a known scale")
    rounded = gray.astype(np.uint32)
    rounded += 128
    rounded //= 257  # the integer nearest to gray / 257, which never lies in the middle of two
    return rounded.astype(np.uint8)


@lru_cache(_CACHED_PROFILES)
def _color_conversion(profile: bytes, mode: str) -> Conversion | None:
    """Converts images of this mode and profile to sRGB; None if that changes nothing or cannot be done."""
    if profile[16:20] != _SPACES.get(mode):
        return None
    transform = _build_transform(profile, mode, "RGB")
    if transform is None or (mode == "RGB" and _changes_nothing(transform)):
        return None

    def convert(image: Image.Image) -> Image.Image:
        try:
            return transform.apply(image)
        except (ImageCms.PyCMSError, OSError, ValueError):
            return image

    return convert


@lru_cache(_CACHED_PROFILES)
def _grey_conversion(profile: bytes) -> Conversion | None:
    """The same for grey, whose 256 levels are a table."""
    exact = ImageCms.Flags.NOOPTIMIZE  # the optimization interpolates, which misses the steep curve of dark grey
    if profile[16:20] != b"GRAY" or (transform := _build_transform(profile, "L", "RGB", exact)) is None:
        return None
    levels = Image.frombytes("L", (256, 1), bytes(range(256)))
    table = list(transform.apply(levels).getchannel("G").tobytes())
    if max(abs(level - k) for k, level in enumerate(table)) <= SRGB_TOLERANCE:
        return None

    def convert(image: Image.Image) -> Image.Image:
        if image.mode in ("LA", "La"):
            return image.convert("LA").point([*table, *range(256)])
        return image.convert("L").point(table)

    return convert


def _build_transform(
    profile: bytes, mode: str, output_mode: str, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> ImageCms.ImageCmsTransform | None:
    try:
        return ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            output_mode,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=flags | ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # Pillow raises exceptions of several types on damaged profiles, and without LittleCMS
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours all over the cube stay as they are."""
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(64, 64, 3)
    return int(np.abs(np.asarray(transform.apply(Image.fromarray(cube)), int) - cube).max()) <= SRGB_TOLERANCE
