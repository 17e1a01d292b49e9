"""HEIC and HEIF photos, through pillow-heif (the extra `heic`)."""

from typing import TYPE_CHECKING

from PIL import Image

from fieldmark.data.formats.limits import UnreadableImageError, check_pixels

if TYPE_CHECKING:
    from pillow_heif import HeifImage

MISSING = "a HEIC photo, which needs another package: pip install 'fieldmark[heic]'"
_ERRORS = (ValueError, EOFError, SyntaxError, RuntimeError, OSError, IndexError)


def read_heic(content: bytes) -> Image.Image:
    """The primary image, upright and with 8 bits a channel; with its colour profile in `info`.

    libheif turns it as the file says (irot, imir). The EXIF orientation, which repeats that, must not be applied again,
    so that `info` has none. Sequences, depth maps and other images of the file are left out.

    Raises:
        UnreadableImageError: pillow-heif is not installed, or the image is too large or damaged.
    """
    primary = _open_primary(content)
    check_pixels(*primary.size)
    try:
        image = primary.to_pillow()
    except _ERRORS as error:
        raise _unreadable(error) from error
    check_pixels(*image.size)
    image.info = {"icc_profile": profile} if (profile := primary.info.get("icc_profile")) else {}
    return image


def read_heic_header(content: bytes) -> tuple[tuple[int, int], str, bytes]:
    """Size, mode and EXIF block of the primary image."""
    primary = _open_primary(content)
    return primary.size, primary.mode, primary.info.get("exif") or b""


def _open_primary(content: bytes) -> "HeifImage":
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableImageError(MISSING) from None
    try:
        images = pillow_heif.open_heif(content, convert_hdr_to_8bit=True)  # decodes nothing yet
        return images[images.primary_index]
    except _ERRORS as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> UnreadableImageError:
    return UnreadableImageError("truncated" if "end of file" in str(error) else f"a damaged HEIC photo: {error}")
