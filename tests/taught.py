"""Teaching sessions without a network: features of clusters; and images in the ways in which people have them."""

import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fieldmark.pipeline.teaching.images import TeachingImages
from fieldmark.pipeline.teaching.session import TeachingSession
from fieldmark.pipeline.teaching.sources import SessionSettings, collect_images
from fieldmark.pipeline.teaching.store import READ


@dataclass
class Pool:
    """Features in place of a `FeatureStore`; all have been read, and none is a near-duplicate of another."""

    features: np.ndarray
    groups: np.ndarray = field(init=False)
    status: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.groups = np.arange(len(self.features))
        self.status = np.full(len(self.features), READ, np.uint8)


def clusters(
    n: int, classes: int = 3, k: int = 12, spread: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of length 1, float32 (n, k), around one centre for each class, and the class numbers (n,)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    centres = np.linalg.qr(rng.normal(size=(k, k)))[0][:classes]
    return unit(centres[labels] + spread / np.sqrt(k) * rng.normal(size=(n, k))), labels


def unit(features: np.ndarray) -> np.ndarray:
    """(n, k) -> float32 (n, k), each of length 1."""
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def name(row: int) -> str:
    return f"{row:06d}.jpg"


def open_taught(
    folder: Path,
    pool: Pool,
    given: Mapping[int, str] | None = None,
    tests: Collection[int] = (),
    seed: int = 0,
) -> TeachingSession:
    """A session on these features; `given` are labels by row, `tests` the rows of the dataset's test split."""
    names = {name(row): "" for row in range(len(pool.features))}
    labels = {name(row): label for row, label in (given or {}).items()}
    return TeachingSession(folder, TeachingImages(names, labels, frozenset(map(name, tests))), pool, seed)


def teach(session: TeachingSession, truth: np.ndarray, n: int) -> list[str]:
    """Answer `n` questions with the classes of `truth`; returns the names of the images that were asked about."""
    asked = list[str]()
    for _ in range(n):
        if not (questions := session.next()):
            break
        path = questions[0].path
        session.answer(path, f"class {truth[session.row_of[path]]}")
        asked.append(path)
    return asked


def collect(data: Path, more: Path | None = None, ignore_labels: bool = False) -> TeachingImages:
    """The images of a session on `data`."""
    return collect_images(SessionSettings(str(data), None if more is None else str(more), ignore_labels))


def write(folder: Path, *names: str) -> Path:
    """Small images of these names, each of its own colour."""
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 2 * k, 3 * k)).save(folder / name)
    return folder


def zipped(folder: Path) -> Path:
    """A zip of the images of a folder, beside it."""
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return file
