"""DICOM images, through pydicom (the extra `dicom`): radiographs, CT, MR, ultrasound, dermoscopy.

Grey values are shown as the file says (DICOM PS3.3 C.11): the modality transform (rescale or table), then the first VOI
table, else the first window, else the whole range of values. MONOCHROME1 is inverted. Of several frames the middle one
is taken: the first of a volume is often empty. Only the tags that this needs are read, and none of their values, nor a
text of pydicom's that may quote them, goes into a reason: they may tell who the patient is.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from fieldmark.data.formats.limits import UnreadableImageError, check_pixels, ignore_library_warnings

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

MISSING = "a DICOM image, which needs another package: pip install 'fieldmark[dicom]'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pyjpegls brings further decoders"
_HEADER_TAGS = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "ManufacturerModelName")
_PIXEL_TAGS = (
    *("NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "ICCProfile"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)


class Window(NamedTuple):
    """A window of grey values (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: str

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values -> 0 (black) to 1 (white)."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -500, 500)))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return (values > self.center - 0.5).astype(float)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


class LookupTable(NamedTuple):
    """A table of grey values (DICOM PS3.3 C.11.1 and C.11.2)."""

    first: int
    """The value of the first entry; smaller ones are mapped to it, and larger ones than the last to that."""
    bits: int
    entries: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        indices = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.intp)
        return self.entries[indices].astype(float)


def read_dicom(content: bytes) -> Image.Image:
    """The image, L or RGB; with its colour profile in `info`.

    Raises:
        UnreadableImageError: pydicom is not installed, or the file holds no image, or one that cannot be decoded.
    """
    dataset = _read_dataset(content, (*_HEADER_TAGS, *_PIXEL_TAGS))
    try:
        _check_header(dataset)
        frame = (int(dataset.get("NumberOfFrames") or 1) - 1) // 2
        pixels = _decode_frame(dataset, frame)
        image = Image.fromarray(_to_uint8(dataset, pixels, frame))
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # of many types, with texts that may quote the file
        raise UnreadableImageError(f"a damaged DICOM file ({type(error).__name__})") from None
    if isinstance(profile := dataset.get("ICCProfile"), bytes):
        image.info["icc_profile"] = profile
    return image


def read_dicom_header(content: bytes) -> tuple[tuple[int, int], str, str]:
    """Width and height, Pillow's mode, and the model of the device."""
    dataset = _read_dataset(content, _HEADER_TAGS)
    is_grey = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    size = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
    return size, "L" if is_grey else "RGB", str(dataset.get("ManufacturerModelName") or "")


def _read_dataset(content: bytes, tags: tuple[str, ...]) -> "Dataset":
    try:
        import pydicom
    except ImportError:
        raise UnreadableImageError(MISSING) from None
    if _DEFLATED in content:  # pydicom would inflate it whatever its size
        raise UnreadableImageError("a deflated DICOM file, which cannot be read here: save it uncompressed")
    ignore_library_warnings()
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=[*tags], force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:  # a file without a header, whose encoding is guessed
            dataset.file_meta.TransferSyntaxUID = _guess_syntax(*dataset.original_encoding)
        return dataset
    except Exception as error:
        raise UnreadableImageError(f"a damaged DICOM file ({type(error).__name__})") from None


def _guess_syntax(is_implicit: bool | None, is_little: bool | None) -> "UID":
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _check_header(dataset: "Dataset") -> None:
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise UnreadableImageError("a DICOM file of floating-point values, which have no known scale")
    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableImageError("a DICOM file without an image (a report, a plan or an index?)")
    check_pixels(int(dataset.Columns), int(dataset.Rows))
    bits, samples = int(dataset.BitsAllocated), int(dataset.SamplesPerPixel)
    if bits > 16 or samples not in (1, 3):
        raise UnreadableImageError(f"a DICOM image of {bits} bits and {samples} channels: 8 or 16 bits can be read")


def _decode_frame(dataset: "Dataset", frame: int) -> np.ndarray:
    """The stored values of a frame, (h, w) or RGB (h, w, 3)."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise UnreadableImageError(
            f"a DICOM image compressed as {name}, which cannot be decoded here: {_DECODERS}"
        ) from None
    try:
        return pixel_array(dataset, index=frame)
    except MemoryError:
        raise
    except Exception:
        if not syntax.is_compressed:
            raise UnreadableImageError("a DICOM image that is truncated or damaged") from None
        raise UnreadableImageError(
            f"a DICOM image compressed as {name} that is damaged, or cannot be decoded here: {_DECODERS}"
        ) from None


def _to_uint8(dataset: "Dataset", pixels: np.ndarray, frame: int) -> np.ndarray:
    """Stored values -> uint8 (h, w) or (h, w, 3)."""
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        colors = apply_color_lut(pixels, dataset)[..., :3]
        return np.ascontiguousarray(colors >> 8 if colors.dtype == np.uint16 else colors).astype(np.uint8)
    if pixels.ndim == 3:
        shift = max(0, int(dataset.BitsStored) - 8)
        return np.ascontiguousarray(pixels >> shift if shift else pixels).astype(np.uint8)
    if not photometric.startswith("MONOCHROME"):
        raise UnreadableImageError("a DICOM image whose colours cannot be read")
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        raise UnreadableImageError("a DICOM image of more than 16 bits")
    return _apply_table(pixels, _grey_levels(dataset, pixels, frame))


def _grey_levels(dataset: "Dataset", pixels: np.ndarray, frame: int) -> np.ndarray:
    """The grey level of each value from the smallest to the largest, uint8 (values,)."""
    low, high = int(pixels.min()), int(pixels.max())
    to_modality = _modality_transform(dataset, frame)
    values = to_modality(np.arange(low, high + 1, dtype=float))
    if transform := _voi_transform(dataset, frame):
        white = transform(values)
    else:
        ends = to_modality(np.array(_value_range(dataset, pixels), float))
        white = np.clip((values - ends.min()) / max(np.ptp(ends), 1e-9), 0, 1)
    levels = np.rint(255 * np.nan_to_num(white)).astype(np.uint8)
    return 255 - levels if dataset.PhotometricInterpretation == "MONOCHROME1" else levels


def _apply_table(pixels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """`levels[pixels - pixels.min()]`, row by row: an index array of all pixels would take eight bytes each."""
    low, result = int(pixels.min()), np.empty(pixels.shape, np.uint8)
    for row, values in zip(result, pixels, strict=True):
        row[:] = levels[values.astype(np.intp) - low]
    return result


def _value_range(dataset: "Dataset", pixels: np.ndarray) -> tuple[int, int]:
    """The values that become black and white without a window.

    Of up to 8 bits those that can be stored; of more, which are rarely used in full, those of the image itself,
    without its padding.
    """
    bits, is_signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation"))
    if bits <= 8:
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    padding = dataset.get("PixelPaddingValue")
    kept = np.ones(pixels.shape, bool)
    if isinstance(padding, int):
        limit = dataset.get("PixelPaddingRangeLimit")
        first, last = sorted((padding, limit if isinstance(limit, int) else padding))
        kept = (pixels < first) | (pixels > last)
    values = pixels[kept] if kept.any() else pixels
    return int(values.min()), int(values.max())


def _modality_transform(dataset: "Dataset", frame: int) -> Callable[[np.ndarray], np.ndarray]:
    if table := _lookup_table(dataset, "ModalityLUTSequence"):
        return table
    slope = _number(_find(dataset, frame, "PixelValueTransformationSequence", "RescaleSlope"), 1.0)
    intercept = _number(_find(dataset, frame, "PixelValueTransformationSequence", "RescaleIntercept"), 0.0)
    return lambda values: values * slope + intercept


def _voi_transform(dataset: "Dataset", frame: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Maps values to 0..1 by the first table or window; None if there is none that is valid."""
    if table := _lookup_table(dataset, "VOILUTSequence"):
        return lambda values: table(values) / ((1 << table.bits) - 1)
    names = ("WindowCenter", "WindowWidth", "VOILUTFunction")
    center, width, function = (_find(dataset, frame, "FrameVOILUTSequence", name) for name in names)
    window = Window(_number(center, np.nan), _number(width, np.nan), str(function or "LINEAR"))
    is_valid = np.isfinite(window.center) and window.width >= (1 if window.function == "LINEAR" else 1e-9)
    return window if is_valid and np.isfinite(window.width) else None


def _find(dataset: "Dataset", frame: int, sequence: str, name: str) -> Any:
    """The value of a tag, of this frame in a multi-frame image."""
    if (value := dataset.get(name)) is not None:
        return value
    per_frame, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    groups = [per_frame[frame]] if per_frame and frame < len(per_frame) else []
    for group in (*groups, *(shared or ())):
        for item in group.get(sequence) or ():
            if (value := item.get(name)) is not None:
                return value
    return None


def _number(value: Any, default: float) -> float:
    """The number, or the first of several."""
    if isinstance(value, list | tuple) or hasattr(value, "__iter__"):
        value = next(iter(value), None)
    return default if value is None else float(value)


def _lookup_table(dataset: "Dataset", sequence: str) -> LookupTable | None:
    if not (items := dataset.get(sequence)):
        return None
    count, first, bits = map(int, items[0].LUTDescriptor)
    data = items[0].LUTData
    if isinstance(data, bytes):
        is_little = dataset.original_encoding[1] is not False
        entries = np.frombuffer(data, np.uint8 if len(data) == count else "<u2" if is_little else ">u2")
    else:
        entries = np.asarray(data)
    if first > 32767 and dataset.get("PixelRepresentation"):
        first -= 1 << 16  # a negative number that was read as an unsigned one
    return LookupTable(first, bits, entries[: count or 1 << 16])
