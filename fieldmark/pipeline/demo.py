"""The images of the demo: 2,624 photos of solar cells, functional or defective, from the package elpv-dataset.

Deitsch et al. 2019, "Automatic classification of defective photovoltaic module cells in electroluminescence images".
A cell counts as defective when its probability of a defect in labels.csv is above 0.5.
"""

import csv
import shutil
from importlib.util import find_spec
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.io import partial_path


def copy_solar_cells(folder: Path) -> Path:
    """Copy the images into `folder`/functional and `folder`/defective, unless it exists. Returns `folder`.

    Raises:
        FieldmarkError: elpv-dataset is not installed.
    """
    package_spec = find_spec("elpv_dataset")
    if package_spec is None or package_spec.origin is None:
        raise FieldmarkError("the photos of the demo are missing: pip install 'fieldmark[demo]'")
    data = Path(package_spec.origin).parent / "data"
    if folder.exists():
        return folder
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    with (data / "labels.csv").open(encoding="utf-8") as file:
        rows = [line for line in csv.reader(file, delimiter=" ", skipinitialspace=True) if line]
    for row in rows:
        label = "defective" if float(row[1]) > 0.5 else "functional"
        (partial / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / row[0], partial / label / Path(row[0]).name)
    partial.replace(folder)
    return folder
