"""The images that the runs are made of: each function fills one folder of the work directory, once."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from teach import copy_cells

from fieldmark.pipeline.demo import copy_solar_cells

SPECIES = ("Blue_Grosbeak", "Indigo_Bunting", "Lazuli_Bunting", "Painted_Bunting")


def solar(folder: Path, _data: Path | None) -> None:
    """The solar cells of the demo, a small part of them with planted issues, and photos of something else."""
    from skimage import data

    cells = copy_solar_cells(folder / "solar-cells")
    for name in ("coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    for label in ("functional", "defective"):
        some = sorted((cells / label).iterdir())[::4]
        _copy(some, folder / "some-cells" / label)
        _copy(some[:60], folder / "cells" / label)
    _plant_issues(folder / "cells")


def digits(folder: Path, _data: Path | None) -> None:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 28 x 28 as MNIST's are."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for index, (row, label) in enumerate(zip(pixels, labels, strict=True)):
        file = folder / "digits" / str(label) / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((row.reshape(8, 8) * 255 / 16).astype("uint8"))
        grey.resize((28, 28), Image.Resampling.BICUBIC).save(file)


def waste(folder: Path, data: Path | None) -> None:
    _link(folder / "trashnet", data, "trashnet")


def birds(folder: Path, data: Path | None) -> None:
    _link(folder / "birds100", data, "birds100")


def species(folder: Path, data: Path | None) -> None:
    """Four of the 100 species, the photos of training and test together."""
    assert data
    for name in SPECIES:
        found = [file for part in ("train", "test") for file in (data / "birds100" / part / name).iterdir()]
        _copy(found, folder / "species" / name)


def teach(folder: Path, _data: Path | None) -> None:
    """The solar cells in one folder, without their classes."""
    copy_cells(folder / "cells")


FOLDERS: dict[str, Callable[[Path, Path | None], None]] = {
    make.__name__: make for make in (solar, digits, waste, birds, species, teach)
}
NEED_DATA = {"waste", "birds", "species"}


def _plant_issues(cells: Path) -> None:
    """A copy in its class and one in the other, a brightened copy, and three wrong labels, drawn with a fixed seed."""
    draw = random.Random(0)
    good, bad = (sorted((cells / label).iterdir()) for label in ("functional", "defective"))
    shutil.copyfile(bad[0], cells / "defective" / "again.png")
    shutil.copyfile(bad[5], cells / "functional" / "copy.png")  # the same image under two classes
    Image.open(bad[8]).point([min(255, level + 25) for level in range(256)]).save(cells / "defective" / "brighter.png")
    for file in draw.sample(good[10:], 3):
        file.rename(cells / "defective" / file.name)


def _copy(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _link(link: Path, data: Path | None, name: str) -> None:
    assert data
    link.symlink_to((data / name).resolve(), target_is_directory=True)
