"""Page and summary of a dataset preview (`fieldmark look`)."""

from collections.abc import Iterator
from pathlib import Path

from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report import html
from fieldmark.report.results import Preview


def write_preview_page(preview: Preview, file: Path, language: Language = ENGLISH) -> None:
    """Write the page with the sample images."""
    html.write_page(file, "look.html.j2", {"preview": preview}, language)


def summary_lines(preview: Preview) -> Iterator[str]:
    """Number of images of each class, shapes, and unreadable sample images, for a terminal."""
    for name, n in preview.classes.items():
        yield f"{n:8,}  {name}"
    yield f"{preview.n_images:8,}  images"
    batch, evaluated = (" x ".join(map(str, shape)) for shape in (preview.batch, preview.evaluated))
    yield f"Training batch: {batch} (images, channels, rows, columns) and {preview.batch[0]} labels"
    yield f"Image in evaluation: {evaluated}"
    yield from (f"{image.path}: {image.error}" for image in preview.images if image.error is not None)
