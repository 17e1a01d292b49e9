"""DICOM images are shown as their tags say, and nothing of the patient is."""

import io
import logging
import sys
import warnings
from typing import Any

import numpy as np
import profiles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from fieldmark.data.image import UnreadableImageError, decode, read_header

RAMP = np.tile(np.arange(4096, dtype=np.uint16), (4, 1))[:, ::16]
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"


def dicom(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, data: bytes | None = None, **tags: Any) -> bytes:
    """A file of these stored values, (h, w), (frames, h, w) or (h, w, 3), and tags."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(DIGITAL_X_RAY), UID("1.2.3")
    meta.TransferSyntaxUID = UID(syntax)
    is_little, is_implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    encoding = {"is_little_endian": is_little, "is_implicit_VR": is_implicit}
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128), **encoding)
    dataset.SOPClassUID, dataset.SOPInstanceUID = DIGITAL_X_RAY, "1.2.3"
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET-77"
    dataset.ManufacturerModelName = "Device 3000"
    is_color = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.SamplesPerPixel, dataset.Rows = 3 if is_color else 1, pixels.shape[0 if is_color else -2]
    dataset.Columns = pixels.shape[1 if is_color else -1]
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3 and not is_color:
        dataset.NumberOfFrames = len(pixels)
    stored = pixels.astype(pixels.dtype.newbyteorder("<" if is_little else ">")).tobytes()
    dataset.PixelData = stored if data is None else data
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(content: bytes) -> np.ndarray:
    found = np.asarray(decode(content), int)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def table(entries: list[int], first: int, bits: int, order: str = "") -> Sequence:
    """A lookup table, as numbers or, in a byte order, as words."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    words = np.array(entries, f"{order}u2").tobytes()
    item.add_new("LUTData", "OW" if order else "US", words if order else entries)
    return Sequence([item])


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """The pseudo-code of DICOM PS3.3 C.11.2.1.2.1."""
    inside = (values - (center - 0.5)) / (width - 1) + 0.5
    low, high = values <= center - 0.5 - (width - 1) / 2, values > center - 0.5 + (width - 1) / 2
    return 255 * np.where(low, 0, np.where(high, 1, inside))


V = RAMP.astype(float)
SIGMOID = 255 / (1 + np.exp(-4 * (V - 1000) / 500))
EXACT = 255 * np.clip((V - 1000) / 500 + 0.5, 0, 1)
CASES = {
    "a window": ({"WindowCenter": 1000, "WindowWidth": 500}, linear(V, 1000, 500)),
    "of several windows the first": (
        {"WindowCenter": [1000, 40], "WindowWidth": [500, 9], "WindowCenterWidthExplanation": ["A", "B"]},
        linear(V, 1000, 500),
    ),
    "an exact window": ({"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "LINEAR_EXACT"}, EXACT),
    "a sigmoid": ({"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"}, SIGMOID),
    "a window of one value": ({"WindowCenter": 1000, "WindowWidth": 1}, 255 * (V > 999.5)),
    "a window after rescaling": (
        {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 400},
        linear(2 * V - 1000, 40, 400),
    ),
    "an invalid window is none": ({"WindowCenter": 1000, "WindowWidth": 0}, 255 * V / V.max()),
    "no window": ({}, 255 * V / V.max()),
    "no window, a falling slope": ({"RescaleSlope": -1, "RescaleIntercept": 0}, 255 - 255 * V / V.max()),
    "white is low": (
        {"WindowCenter": 1000, "WindowWidth": 500, "PhotometricInterpretation": "MONOCHROME1"},
        255 - linear(V, 1000, 500),
    ),
    "a table": (
        {"VOILUTSequence": table([0, 50, 100, 255], 1000, 8), "WindowCenter": 9, "WindowWidth": 9},
        np.array([0, 50, 100, 255])[np.clip(V - 1000, 0, 3).astype(int)],
    ),
    "a table of many values of 8 bits": (
        {"VOILUTSequence": table([k // 16 for k in range(4096)], 0, 8)},
        V // 16,
    ),
    "a table of 12 bits": ({"VOILUTSequence": table([4095 - k for k in range(4096)], 0, 12)}, 255 - V * 255 / 4095),
    "a modality table": (
        {
            "ModalityLUTSequence": table([4095 - k for k in range(4096)], 0, 16),
            "WindowCenter": 1000,
            "WindowWidth": 500,
        },
        linear(4095 - V, 1000, 500),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_grey_values_are_shown_as_the_tags_say(name):
    tags, wanted = CASES[name]
    assert np.abs(grey(dicom(RAMP, BitsStored=12, **tags)) - wanted).max() <= 0.51


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_signed_values_in_any_byte_order(syntax):
    values = RAMP.astype(np.int16) - 1024
    window: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 400}
    assert np.abs(grey(dicom(values, syntax, **window)) - linear(values.astype(float), 40, 400)).max() <= 0.51
    for order in ("", ">" if syntax == ExplicitVRBigEndian else "<"):
        steps: dict[str, Any] = {"VOILUTSequence": table([0, 65535], -3, 16, order)}
        assert (grey(dicom(values, syntax, **steps)) == 255 * (values >= -2)).all()


def test_padding_does_not_count_as_a_value():
    values = RAMP.astype(np.int16)
    values[:, :32] = -2000
    found = grey(dicom(values, PixelPaddingValue=-2000))
    low, high = values[:, 32:].min(), values.max()
    assert (found[:, :32] == 0).all()
    assert np.abs(found[:, 32:] - 255 * (values[:, 32:] - float(low)) / (high - low)).max() <= 0.51


def test_eight_bits_without_a_window_stay_as_they_are():
    values = np.full((8, 8), 100, np.uint8)
    assert (grey(dicom(values)) == 100).all()
    assert (grey(dicom(values, PhotometricInterpretation="MONOCHROME1")) == 155).all()
    assert (grey(dicom(np.zeros((8, 8), np.uint16))) == 0).all()  # of one value, with nothing to compare it to


def test_of_several_frames_the_middle_one_with_its_own_window():
    frames = np.stack([np.full((8, 8), k, np.uint16) for k in (100, 200, 300, 400)])
    groups = []
    for center in (1, 200, 1, 1):
        item, group = Dataset(), Dataset()
        item.WindowCenter, item.WindowWidth, item.VOILUTFunction = center, 200, "LINEAR_EXACT"
        group.FrameVOILUTSequence = Sequence([item])
        groups.append(group)
    content = dicom(frames, PerFrameFunctionalGroupsSequence=Sequence(groups))
    assert np.abs(grey(content) - 127.5).max() <= 0.51


def test_colours():
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    assert (np.asarray(decode(dicom(rgb))) == rgb).all()
    planes = np.moveaxis(rgb, 2, 0).tobytes()
    assert (np.asarray(decode(dicom(rgb, data=planes, PlanarConfiguration=1))) == rgb).all()
    deep = dicom(rgb.astype(np.uint16) * 257)
    assert np.abs(np.asarray(decode(deep), int) - rgb).max() <= 1
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert np.abs(np.asarray(decode(dicom(ycbcr, PhotometricInterpretation="YBR_FULL")), int) - rgb).max() <= 3
    p3 = dicom(rgb, ICCProfile=profiles.rgb_profile(profiles.DISPLAY_P3))
    assert np.abs(np.asarray(decode(p3), int) - profiles.in_srgb(rgb, profiles.DISPLAY_P3)).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette(bits):
    ramp, indices = np.arange(256), np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    scale = 257 if bits == 16 else 1
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, values in (("Red", ramp), ("Green", 255 - ramp), ("Blue", ramp // 2)):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{color}PaletteColorLookupTableData"] = (values * scale).astype(f"<u{bits // 8}").tobytes()
    wanted = np.stack([indices, 255 - indices, indices // 2], axis=2)
    assert (np.asarray(decode(dicom(indices, **tags))) == wanted).all()


def test_compressed_pixels():
    buffer, smooth = io.BytesIO(), np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    assert np.abs(grey(dicom(smooth, JPEG_BASELINE, encapsulate([buffer.getvalue()]))) - smooth).max() <= 4
    runs = b"".join(bytes([257 - 64, value]) for value in range(0, 192, 4))  # a row of 64 pixels each
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    rows = np.repeat(np.arange(0, 192, 4), 64).reshape(48, 64)
    assert (grey(dicom(smooth, RLELossless, encapsulate([header + runs]))) == rows).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dicom(RAMP, JPEG_LOSSLESS, encapsulate([b"\xff\xd8"])), "JPEG Lossless.* pylibjpeg"),
        (dicom(RAMP, "1.2.840.10008.1.2.4.102", encapsulate([b"\0\0"])), "MPEG-4 AVC/H.264"),
        (dicom(RAMP, "1.2.3.4.5", encapsulate([b"\0\0"])), "unknown transfer syntax"),
        (dicom(RAMP, JPEG_BASELINE, encapsulate([b"\xff\xd8\xff"])), "JPEG Baseline.* damaged"),
        (dicom(RAMP, PixelData=None), "without an image"),
        (dicom(RAMP, data=bytes(100)), "truncated or damaged"),
        (dicom(RAMP, Rows=60_000, Columns=60_000), "60000 x 60000 pixels, more than the limit"),
        (dicom(RAMP, Rows=0), "256 x 0 pixels"),
        (dicom(np.zeros((4, 4), np.uint32)), "32 bits"),
        (dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"), "deflated"),
        (bytes(128) + b"DICM", "DICOM"),
        (dicom(RAMP)[:300], "DICOM"),
    ],
)
def test_reasons_are_for_people_and_say_nothing_of_the_patient(content, reason, caplog, capfd):
    with caplog.at_level(logging.DEBUG), pytest.raises(UnreadableImageError, match=reason) as caught:
        decode(content)
    texts, error = [], caught.value
    while error is not None and str(error) not in texts:
        texts.append(str(error))
        error = error.__cause__
    assert "secret" not in " ".join((*texts, caplog.text, *capfd.readouterr())).lower()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_may_lack_its_header(syntax):
    """As old exports do: the first tag is the first byte."""
    content = dicom(RAMP, syntax, WindowCenter=1000, WindowWidth=500)
    bare = content[content.index(b"\x08\0\x16\0") :]
    assert np.abs(grey(bare) - linear(V, 1000, 500)).max() <= 0.51
    assert read_header(bare).format == "DICOM"


def test_the_header_names_the_device():
    assert read_header(dicom(RAMP)) == ((256, 4), "L", "DICOM", "Device 3000")


def test_without_the_extra_one_reason_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'fieldmark\[dicom\]'"):
        decode(dicom(RAMP))


WHOLE = dicom(RAMP[:, :32].copy(), WindowCenter=1000, WindowWidth=500)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damage_gives_an_image_or_a_reason_and_no_warning(data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            assert decode(bytes(content[: data.draw(st.integers(133, len(content)))]), 16).mode == "RGB"
        except UnreadableImageError as error:
            assert str(error)
    assert heard == []
