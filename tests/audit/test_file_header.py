"""What a file says of itself is read in one go."""

import io
from typing import Any

import pytest
from PIL import Image

from fieldmark.audit.file_header import FileHeader, read_file_header
from fieldmark.data import image as decoding


def encoded(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((60, 40)).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_jpeg_is_opened_once(quality: int, monkeypatch: pytest.MonkeyPatch):
    opened, real = list[bytes](), decoding.open_with_pillow

    def count(content: bytes) -> Any:
        opened.append(content)
        return real(content)

    monkeypatch.setattr(decoding, "open_with_pillow", count)
    exif = Image.Exif()
    exif[0x0110] = "Box"
    content = encoded("JPEG", quality=quality, progressive=True, exif=exif, dpi=(300, 300))
    assert read_file_header(content, (1, 1)) == FileHeader((60, 40), "RGB", "JPEG", "Box", quality, True, True, dpi=300)
    assert opened == [content]


def test_other_files():
    assert read_file_header(encoded("PNG"), (1, 1)) == FileHeader((60, 40), "RGB", "PNG")
    assert read_file_header(b"no image", (7, 8)) == FileHeader((7, 8))
