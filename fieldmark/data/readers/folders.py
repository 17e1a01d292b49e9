"""Reader of class folders, and of train/, val/ and test/ with class folders in them (`layout.find_layout`)."""

from collections.abc import Iterator

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Photo, has_image_extension, trainable_classes
from fieldmark.data.readers.files import FileTree, ReaderResult, select_images
from fieldmark.data.readers.layout import Layout, find_layout

_LAYOUT_HINT = (
    "put the photos of each class into a folder named after it, as in {folder}/cat/1.jpg and {folder}/dog/2.jpg"
)


def list_images(files: FileTree, min_classes: int = 2) -> ReaderResult:
    """The images of class folders: a class is a folder with images in it or in its subfolders.

    Whatever else is left out is named in the warnings, except hidden files and those of operating systems.

    Raises:
        FieldmarkError: there are no class folders.
    """
    folders, top = files.list_folder()
    if not folders:
        raise FieldmarkError(_no_class_folders_message(files, top))
    layout = find_layout(files, min_classes)
    loose_files, photos, empty = list(top), list[Photo](), set[str]()
    for folder in layout.classes:
        paths = list(files.walk(folder.path))
        images = dict.fromkeys(select_images(files, paths))
        photos += [Photo(path, folder.label, folder.split) for path in images]
        loose_files += [path for path in paths if path not in images]
        if not images and folder.split in (None, "train"):
            empty.add(folder.label)
    for parent in filter(None, layout.parents):
        loose_files += files.list_folder(parent)[1]
    empty -= {photo.label for photo in photos}
    warnings = [*layout.warnings, *_unlabelled_warnings(files, layout)]
    warnings += _skipped_warnings(loose_files, layout.others, sorted(empty))
    return ReaderResult(files, photos, warnings)


def _unlabelled_warnings(files: FileTree, layout: Layout) -> Iterator[str]:
    for folder in layout.unlabelled:
        n = sum(map(has_image_extension, files.walk(folder)))
        yield f"{pluralize(n, 'photo')} in {printable(folder)} left out: they have no label"


def too_few_classes_error(files: FileTree, photos: list[Photo]) -> FieldmarkError:
    """The error for a dataset with fewer classes than needed: the reason, and what to do."""
    name, trainable = printable(str(files.root)), trainable_classes(photos)
    if not trainable:
        return FieldmarkError(f"{name} holds folders without photos: " + _LAYOUT_HINT.format(folder=name))
    (only,) = trainable
    inner = files.list_folder(only)[0] if only in files.list_folder()[0] else []
    if len(inner) > 1:
        inside = printable(str(files.root / only))
        return FieldmarkError(
            f"{name} holds photos in one folder only: give {inside} if the folders in it are the classes"
        )
    description = f"photos of one class only ({printable(only)}), and a classifier needs two: "
    return FieldmarkError(f"{name} holds {description}" + _LAYOUT_HINT.format(folder=name))


def _skipped_warnings(loose: list[str], other_folders: list[str], empty: list[str]) -> Iterator[str]:
    others = sorted(path.rpartition("/")[2] for path in loose if not has_image_extension(path))
    if n_images_outside := len(loose) - len(others):
        yield f"{pluralize(n_images_outside, 'photo')} outside the class folders left out"
    if others:
        yield f"{pluralize(len(others), 'file')} without a photo's extension left out: {summarize_names(others)}"
    if other_folders:
        yield f"folders beside those of the splits left out: {summarize_names(other_folders)}"
    if empty:
        yield f"class folders without photos left out: {summarize_names(empty)}"


def _no_class_folders_message(files: FileTree, top: list[str]) -> str:
    name = printable(str(files.root))
    description = "photos but no class folders" if any(map(has_image_extension, top)) else "no photos"
    return f"{name} holds {description}: " + _LAYOUT_HINT.format(folder=name)
