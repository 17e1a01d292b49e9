"""What `fieldmark teach` is given -> the images of a session, with the labels that they have already."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.readers import read_catalog
from fieldmark.data.readers.files import Folder
from fieldmark.data.splits import read_split_file
from fieldmark.inference import bundle
from fieldmark.inference.run_folder import load_catalog
from fieldmark.pipeline.teaching.images import TeachingImages, from_catalog, from_folder, merge
from fieldmark.pipeline.teaching.reader import reading_order
from fieldmark.pipeline.teaching.store import FeatureStore, open_store

SETTINGS_FILE = "session.json"
FORMAT = 1


@dataclass(frozen=True)
class SessionSettings:
    """What a session is about, as session.json holds it.

    Attributes:
        data: a dataset, a folder or an archive of images without labels, or a run.
        more: a folder or an archive of further images without labels.
        ignore_labels: whether the names of folders are no classes.
        seed: of the order of the images and of the test set.
    """

    data: str
    more: str | None = None
    ignore_labels: bool = False
    seed: int = 0
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path) -> "SessionSettings":
        """The settings of the session in `folder`.

        Raises:
            FieldmarkError: there is none, or a later version began it.
        """
        try:
            settings = cls(**io.read_json(folder / SETTINGS_FILE))
            if settings.format == FORMAT:
                return settings
        except (OSError, TypeError):
            pass
        raise FieldmarkError(f"{printable(str(folder))} is no session of this version of fieldmark teach")

    def save(self, folder: Path) -> None:
        io.write_json(folder / SETTINGS_FILE, asdict(self))

    @property
    def model(self) -> Path | None:
        """The bundle of the run whose network makes the features; None for a pretrained one."""
        folder = Path(self.data)
        return bundle.find_onnx_file(folder).parent if is_run(folder) else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds a finished run and not images."""
    return (folder / "bundle").is_dir() and (folder / "audit.json").exists()


def collect_images(settings: SessionSettings) -> TeachingImages:
    """The images of a session.

    Raises:
        FieldmarkError: they cannot be read, or there are none.
    """
    data = Path(settings.data)
    if is_run(data):
        images = _read_run(data)
    elif settings.ignore_labels:
        images = from_folder(data)
    else:
        images = _read_labelled(data)
    if settings.more is not None:
        images = merge(images, from_folder(settings.more), os.path.basename(os.path.normpath(settings.more)))
    return images


def _read_run(run: Path) -> TeachingImages:
    """The images of a run; its test images are the test split, since its network has learned from the others."""
    images, file = from_catalog(load_catalog(run)), run / "split.csv"
    rows = read_split_file(file) if file.is_file() else ()
    tests = frozenset(row.path for row in rows if row.split == "test" and row.path in images.sources)
    return replace(images, tests=images.tests | tests)


def _read_labelled(data: Path) -> TeachingImages:
    """The images of class folders, or of any folder: those that lie beside or without class folders have no label."""
    try:
        catalog = read_catalog(data)
    except FieldmarkError:
        if not (data.is_dir() or data.suffix.lower() in (".zip", ".tar", ".gz", ".tgz")):
            raise
        return from_folder(data)
    labelled = from_catalog(catalog)
    if not isinstance(catalog.files, Folder) or catalog.manifest is not None:
        return labelled
    every = {**from_folder(data).sources, **labelled.sources}
    return TeachingImages({name: every[name] for name in sorted(every)}, labelled.labels, labelled.tests)


@dataclass(frozen=True)
class OpenedSession:
    """The images of a session and the files with their features.

    Attributes:
        order: in which the images are read.
        model: the bundle whose network makes the features; None for a pretrained one.
    """

    settings: SessionSettings
    images: TeachingImages
    store: FeatureStore
    order: np.ndarray
    model: Path | None


def open_session_images(folder: Path) -> OpenedSession:
    """The images of the session in `folder`, whose session.json is there.

    Raises:
        FieldmarkError: the images are not there any more.
    """
    settings = SessionSettings.load(folder)
    images = collect_images(settings)
    names = list(images.sources)
    if len(names) < 2:
        raise FieldmarkError(f"{printable(settings.data)} has fewer than two images")
    identity = "pretrained" if settings.model is None else str(bundle.read_info(settings.model).model)
    store = open_store(folder / "features", names, [images.signature(name) for name in names], identity)
    is_labelled = np.array([name in images.labels for name in names])
    return OpenedSession(settings, images, store, reading_order(is_labelled, settings.seed), settings.model)
