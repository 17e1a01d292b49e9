"""CUB-200-2011 as it is shipped -> table of photos, with its split and its boxes.

Wah et al. 2011, "The Caltech-UCSD Birds-200-2011 dataset": images.txt, image_class_labels.txt, classes.txt,
train_test_split.txt and bounding_boxes.txt, each line a number and what belongs to it; the photos lie in images/.
"""

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Photo, printable
from fieldmark.data.image import Unreadable
from fieldmark.data.readers.files import Files
from fieldmark.data.readers.folders import Listed

_NEEDED = ("images.txt", "image_class_labels.txt", "classes.txt")
_SPLIT, _BOXES = "train_test_split.txt", "bounding_boxes.txt"


def listed(files: Files) -> Listed | None:
    """The photos that images.txt names; None where this is another set. Raises `FieldmarkError` for a damaged one."""
    folders, names = files.entries()
    if "images" not in folders or not set(_NEEDED) <= set(names):
        return None
    paths, numbers, classes = (_read(files, name) for name in _NEEDED)
    sides, boxes = (_read(files, name) if name in names else {} for name in (_SPLIT, _BOXES))
    photos = []
    for key, path in paths.items():
        try:
            x, y, w, h = map(float, boxes[key].split()) if key in boxes else (0.0, 0.0, 0.0, 0.0)
            label = classes[numbers[key]]
        except (KeyError, ValueError):
            raise FieldmarkError(
                f"{printable(str(files.root))}: the lines of photo {key} do not fit together"
            ) from None
        split = {"1": "train", "0": "test"}.get(sides.get(key, ""))
        photos.append(Photo(f"images/{path}", label, split, box=(x, y, w, h) if key in boxes else None))
    return Listed(files, photos, [])


def _read(files: Files, name: str) -> dict[str, str]:
    """Number -> the rest of its line."""
    try:
        lines = files.contents(name).decode("utf-8", "surrogateescape").splitlines()
    except Unreadable as error:
        raise FieldmarkError(f"{name} in {printable(str(files.root))} cannot be read ({error})") from None
    return {number: rest.strip() for number, _, rest in (line.strip().partition(" ") for line in lines) if rest}
