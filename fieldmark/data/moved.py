"""Images that lie elsewhere than a run has left them, found by their content."""

from collections.abc import Iterator, Mapping

from fieldmark.core import runtime
from fieldmark.core.parallel import ordered_map
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.decoded import content_hash
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.image_hashes import content_key
from fieldmark.data.readers.files import FileTree, FolderListing

_COMPARED_IMAGES = 16  # of the same paths; if their content is that of the run, the others are taken to be too


class MovedFiles:
    """A file tree that reads some paths from other places."""

    def __init__(self, files: FileTree, moved: Mapping[str, str]) -> None:
        self.files, self.root, self.note, self.moved = files, files.root, files.note, dict(moved)

    def list_folder(self, folder: str = "") -> FolderListing:
        return self.files.list_folder(folder)

    def walk(self, folder: str = "") -> Iterator[str]:
        return self.files.walk(folder)

    def read_bytes(self, path: str) -> bytes:
        return self.files.read_bytes(self.moved.get(path, path))


def find_moved(catalog: Catalog, content: Mapping[str, int]) -> dict[str, str]:
    """Where the images of a run are in another catalog: path in the run -> path there; without those that are gone.

    Args:
        content: the `content_key` of each image of the run, by its path there.
    """
    photos = {photo.path: photo for photo in catalog.photos}
    same = [path for path in content if path in photos]
    step = max(1, len(same) // _COMPARED_IMAGES)
    if same and all(content[path] in _keys(catalog, photos[path]) for path in same[::step]):
        found = {path: path for path in same}
    else:
        found = {}
    missing = content.keys() - found.keys()
    if not missing:
        return found
    rest = [photo for photo in catalog.photos if photo.path not in found]
    keys = ordered_map(lambda photo: _keys(catalog, photo), rest, runtime.available_cpus())
    place = {key: photo.path for photo, of_photo in zip(rest, keys, strict=True) for key in of_photo}
    return found | {path: place[content[path]] for path in missing if content[path] in place}


def _keys(catalog: Catalog, photo: Photo) -> set[int]:
    """Under which a run may know the image: a run with `crop_boxes` hashes the bounding box as well."""
    try:
        content = catalog.read_bytes(photo)
    except UnreadableImageError:
        return set()
    return {content_key(content_hash(content, box)) for box in (None, photo.box)}
