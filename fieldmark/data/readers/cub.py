"""Reader of CUB-200-2011 as it is published, with its split and boxes.

Wah et al. 2011, "The Caltech-UCSD Birds-200-2011 dataset": images.txt, image_class_labels.txt, classes.txt,
train_test_split.txt and bounding_boxes.txt, each line a number and its value; the images are in images/.
"""

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.catalog import Photo
from fieldmark.data.readers.files import FileTree, ReaderResult, read_required

_REQUIRED_FILES = ("images.txt", "image_class_labels.txt", "classes.txt")
_SPLIT_FILE, _BOXES_FILE = "train_test_split.txt", "bounding_boxes.txt"


def list_images(files: FileTree) -> ReaderResult | None:
    """The images listed in images.txt; None if this is another dataset. Raises `FieldmarkError` if it is damaged."""
    folders, names = files.list_folder()
    if "images" not in folders or not set(_REQUIRED_FILES) <= set(names):
        return None
    paths, numbers, classes = (_read_numbered_lines(files, name) for name in _REQUIRED_FILES)
    is_train_flags, boxes = (
        _read_numbered_lines(files, name) if name in names else {} for name in (_SPLIT_FILE, _BOXES_FILE)
    )
    photos = []
    for key, path in paths.items():
        try:
            x, y, w, h = map(float, boxes[key].split()) if key in boxes else (0.0, 0.0, 0.0, 0.0)
            label = classes[numbers[key]]
        except (KeyError, ValueError):
            raise FieldmarkError(
                f"{printable(str(files.root))}: the lines of photo {key} do not fit together"
            ) from None
        split = {"1": "train", "0": "test"}.get(is_train_flags.get(key, ""))
        photos.append(Photo(f"images/{path}", label, split, box=(x, y, w, h) if key in boxes else None))
    return ReaderResult(files, photos, [])


def _read_numbered_lines(files: FileTree, name: str) -> dict[str, str]:
    """The rest of each line by the number that it begins with."""
    lines = read_required(files, name).decode("utf-8", "surrogateescape").splitlines()
    return {number: rest.strip() for number, _, rest in (line.strip().partition(" ") for line in lines) if rest}
