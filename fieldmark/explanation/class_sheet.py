"""A run's test photos -> sheet.html: of each class the surest answer, the surest mistake, the least certain; no torch.

The evidence on it is that of model.onnx for the answer.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Catalog
from fieldmark.data.image import Box, UnreadableImageError, preprocess
from fieldmark.data.thumbnails import to_data_uri
from fieldmark.explanation import overlay
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import load_catalog
from fieldmark.report import html

Row = dict[str, Any]

IMAGE_SIDES = ((60, 200), (180, 150), (np.inf, 110))
"""Up to so many photos -> pixels of a side."""
MAX_PAGE_CHARACTERS = 4_500_000
"""Characters of pictures on a page, so that it stays below 5 MB; the hardest classes come first."""


def write_class_sheet(run: str | Path, out: Path, reporter: Reporter, _: Language = ENGLISH) -> dict[str, Any]:
    """Write sheet.html, in that language, into the new folder `out`.

    -> {"files": [...], "photos": [...]}, what `explain --json` prints. Raises FieldmarkError where the run has no test
    photos, or none of them can be read.
    """
    classifier, run = Classifier(run), Path(run)
    catalog, rows = load_catalog(run), _read_predictions(run / "predictions.csv")
    boxes = {photo.path: photo.box for photo in catalog.photos} if classifier.info["preprocessing"].get("boxes") else {}
    classes = _examples_by_class(rows)
    count = sum(len(chosen) for label, chosen in classes)
    side = next(side for limit, side in IMAGE_SIDES if count <= limit)
    sections: list[dict[str, Any]] = []
    photos, characters_left = list[Row](), MAX_PAGE_CHARACTERS
    with reporter.progress_bar("explaining", "photos") as advance:
        for label, chosen in classes:
            explained = [_explain_row(classifier, catalog, row, boxes.get(row["path"]), side) for row in chosen]
            characters_left -= sum(len(picture or "") for row, picture in explained)
            if characters_left < 0:
                break
            sections.append({"label": label, "photos": [row | {"picture": picture} for row, picture in explained]})
            photos += [row for row, picture in explained]
            advance(len(photos), count)
    if all("error" in photo for photo in photos):
        raise FieldmarkError(f"no test photo of {run} can be read in {catalog.root}: {photos[0]['error']}")
    shares = {label: _count_correct(rows, label) for label, chosen in classes}
    facts = {"run": run.resolve().name, "sections": sections, "shares": shares, "tested": len(rows)}
    out.mkdir(parents=True)
    page = html.render("sheet.html.j2", facts | {"colours": overlay.CSS_COLOURS}, _)
    (out / "sheet.html").write_text(page, encoding="utf-8", errors="replace")
    return {"files": [str(out / "sheet.html")], "photos": photos}


def _read_predictions(file: Path) -> list[Row]:
    """What the run answered to its test photos."""
    try:
        rows = [{**row, "confidence": float(row["confidence"])} for row in io.read_csv(file)]
    except (ValueError, KeyError) as error:
        raise FieldmarkError(f"{file} is damaged ({error}): name photos to explain") from None
    if not rows:
        raise FieldmarkError(f"{file} holds no test photos: name photos to explain")
    return rows


def _examples_by_class(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Class -> its photos for the sheet, each with its `kind`; the class with the most wrong answers first."""
    of: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of[row["label"]].append(row)
    order = sorted(of, key=lambda label: (np.divide(*_count_correct(of[label], label)), label))
    return [(label, list(select_examples(of[label]))) for label in order]


def select_examples(rows: list[Row]) -> Iterator[Row]:
    """Of a class's photos the typical, the confused and the uncertain one, as far as there are such."""
    surest = sorted(rows, key=lambda row: (-row["confidence"], row["path"]))
    typical = next((row for row in surest if row["predicted"] == row["label"]), None)
    confused = next((row for row in surest if row["predicted"] != row["label"]), None)
    uncertain = next((row for row in reversed(surest) if row is not typical and row is not confused), None)
    for kind, row in (("typical", typical), ("confused", confused), ("uncertain", uncertain)):
        if row is not None:
            yield row | {"kind": kind}


def _count_correct(rows: list[Row], label: str) -> tuple[int, int]:
    """How many of the class's photos got the right answer, and how many there are."""
    of = [row["predicted"] == label for row in rows if row["label"] == label]
    return sum(of), len(of)


def _explain_row(
    classifier: Classifier, catalog: Catalog, row: Row, box: Box | None, side: int
) -> tuple[Row, str | None]:
    """What --json says of the photo, and the photo beside its evidence as a data URI."""
    entry = {"path": row["path"], "class": row["label"], "kind": row["kind"]}
    try:
        photo = preprocess(catalog.files.read_bytes(row["path"]), classifier.info["preprocessing"], box)
    except (UnreadableImageError, OSError) as problem:  # the file may be gone by now
        return entry | {"error": str(problem)}, None
    output = classifier.infer(photo)
    pair = Image.fromarray(np.concatenate((photo, overlay.overlay_heatmap(photo, output["evidence"])), 1))
    prediction = classifier.to_prediction(row["path"], output, 1)
    entry |= {"label": prediction.label, "confidence": prediction.confidence, "known": prediction.known}
    return entry, to_data_uri(pair, 2 * side)
