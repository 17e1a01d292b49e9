"""The first bytes of a file -> what it is."""

import re

from PIL import features

SIGNATURE_BYTES = 132
"""Bytes from the start of a file that tell what it is: DICOM has its mark at 128."""
RAW_ADVICE = "export it as JPEG, with darktable, RawTherapee or the camera's software"
_HEVC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"mif1", b"mif2", b"msf1"))

# Patterns of the first bytes of images that are read, apart from HEIC, AVIF and DICOM, and of those that are named.
_READABLE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|P[1-6]\s+[\d#]|\xff\x4f\xff\x51"
    rb"|\0\0\0\x0cjP  |BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_RAW = re.compile(
    rb"II\*\0\x10\0\0\0CR\x02|....ftypcrx |FUJIFILM|IIU\0|IIR[OS]|MMOR|II\x1a\0\0\0HEAP|\0MR[MI]|FOVb", re.DOTALL
)
_JPEG_XL = re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")
# A tag of group 2 or 8, and its type or, without one, a short length.
_BARE_DICOM = re.compile(rb"[\x02\x08]\0[\0-\x20]\0(UL|CS|UI|DA|TM|LO|SH|[\x02-\x40]\0\0\0)")
# Pattern of the first bytes of a file that cannot be decoded -> the reason.
_UNREADABLE_SIGNATURES = (
    (_RAW.pattern, f"a camera's raw file, which is no finished picture: {RAW_ADVICE}"),
    (_JPEG_XL.pattern, "a JPEG XL photo, which cannot be read here: save it as JPEG or PNG"),
    (_READABLE.pattern + rb"|\x89PNG|GIF8", "truncated or damaged in its first bytes"),
    (rb"....ftyp(hei|hev|mif|msf)", "a damaged HEIC photo"),
    (rb"....ftypavi[fs]", "an AVIF photo, which this Pillow was built without: save it as JPEG"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI", "not a photo (video?)"),
    (rb"8BPS", "a Photoshop file: save it as JPEG or PNG"),
    (rb"v/1\x01|#\?RADIANCE|#\?RGBE", "a high-dynamic-range image, which cannot be read here: save it as JPEG or PNG"),
    (rb"SIMPLE  =", "a FITS file, whose values have no known scale: save it as PNG"),
    (rb"\x93NUMPY", "an array of numpy: save it as PNG"),
    (rb"version https://git-lfs", "not a photo, but a pointer of Git LFS to one: git lfs pull gets it"),
    (rb"\s*(\xef\xbb\xbf)?\s*<(?i:!doctype html|html|head|body)", "not a photo (a web page?)"),
    (rb"\s*(\xef\xbb\xbf)?\s*<(?i:\?xml|svg|!--|!doctype svg)", "not a photo (SVG or XML?)"),
    (rb"%PDF|%!PS", "not a photo (PDF or PostScript?)"),
    (rb"PK\x03\x04", "not a photo (zip?)"),
    (rb"\x1f\x8b", "not a photo (gzip?)"),
    (rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z", "not a photo (text?)"),
)


def looks_like_image(first_bytes: bytes) -> bool:
    """Whether a file that begins with these bytes (`SIGNATURE_BYTES` of them) is an image, whatever its name.

    True also of camera raw files and of formats that need an extra, so that they are reported and not passed over.
    """
    return (
        any(pattern.match(first_bytes) for pattern in (_READABLE, _RAW, _JPEG_XL))
        or is_heic(first_bytes)
        or is_dicom(first_bytes)
        or bool(_brands(first_bytes) & _AVIF_BRANDS)
    )


def is_dicom(content: bytes) -> bool:
    """Whether it is a DICOM file, with its mark, or one of those that begin with their first tag."""
    return content[128:132] == b"DICM" or bool(_BARE_DICOM.match(content))


def is_heic(content: bytes) -> bool:
    """Whether it is a HEIF file of another codec than AV1; those of AV1 are AVIF, which Pillow reads."""
    brands = _brands(content)
    return bool(brands & _HEVC_BRANDS) or bool(brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS)


def is_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8\xff")


def is_tiff(content: bytes) -> bool:
    return content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"))


def is_raw(content: bytes) -> bool:
    """Whether it is a camera's raw file that has a signature of its own; others are TIFFs (tiff.py)."""
    return bool(_RAW.match(content[:SIGNATURE_BYTES]))


def describe_unidentified(content: bytes) -> str:
    """The reason why a file that no decoder accepts cannot be read."""
    signatures = _UNREADABLE_SIGNATURES
    if features.check("avif"):
        signatures = ((rb"....ftypavi[fs]", "damaged"), *signatures)
    return next((name for first, name in signatures if re.match(first, content[:512], re.DOTALL)), "not a photo")


def _brands(content: bytes) -> set[bytes]:
    """The major and the compatible brands of a file of the ISO base media format; empty for any other."""
    if content[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(content[:4], "big"), 256, len(content))
    return {content[8:12], *(content[at : at + 4] for at in range(16, end - 3, 4))}
