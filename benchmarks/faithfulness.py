"""Which map points at what the network looks at: deletion and insertion of every method, beside maps that know nothing.

    python benchmarks/faithfulness.py RUN                       # 200 of the run's test photos
    python benchmarks/faithfulness.py RUN PHOTOS --photos 500   # of another folder
    python benchmarks/faithfulness.py RUN --methods evidence grad_cam

Each photo's map is that of the class the network answers. A row shows the mean over the photos +- its standard error:
the areas (fieldmark/explanation/faithfulness.py), insertion less deletion, how much better the method is than a random
map and than a centred Gaussian (photo by photo; positive is better), and the seconds that a map takes.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark.core import runtime
from fieldmark.data.catalog import Photo
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.readers import read_catalog
from fieldmark.data.splits import read_split_file
from fieldmark.explanation import faithfulness
from fieldmark.explanation.attribution import METHODS, hookable_copy, to_network_input
from fieldmark.inference import bundle
from fieldmark.inference.run_folder import load_catalog

BASELINES = ("random", "centred")
CENTRE_SIGMA = 1 / 4
"""Standard deviation of the centred Gaussian, as a share of the map's side; the order of pixels is the same for all."""


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos_in", type=Path, nargs="?", metavar="PHOTOS")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    areas, seconds = measure(options.run, options.photos_in, options.photos, options.methods)
    print(f"{len(areas['random'])} photos, {faithfulness.N_STEPS} steps")
    columns = ("deletion", "insertion", "ins. - del.", "over random", "over centred", "s a map")
    print(f"{'map':22}" + "".join(f"{column:>16}" for column in columns))
    gains = {name: area[:, 1] - area[:, 0] for name, area in areas.items()}
    for name, area in areas.items():
        over = [told(gains[name] - gains[other]) if other != name else "-" for other in BASELINES]
        took = f"{np.mean(seconds[name]):.3f}" if name in seconds else "-"
        cells = [told(area[:, 0]), told(area[:, 1]), told(gains[name]), *over, took]
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells))
    for name in options.methods:
        for other in BASELINES:
            less, more = (told(sign * (areas[name] - areas[other])[:, k]) for k, sign in ((0, -1), (1, 1)))
            print(f"{name} against {other}: deletion lower by {less}, insertion higher by {more}")


def measure(
    run: Path, photos: Path | None, most: int, methods: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Method or baseline -> areas (photos, 2), and the seconds that each of its maps took."""
    network, info = hookable_copy(bundle.load_network(run)), bundle.read_info(run)
    look, areas, seconds = info.preprocessing, defaultdict(list), defaultdict(list)
    for number, pixels in enumerate(chosen(run, photos, most, look)):
        x, hidden = to_network_input(pixels, look), to_network_input(faithfulness.blur_image(pixels), look)
        with torch.inference_mode():
            features = network.features(x)
            target = int(network.head(features).argmax())
        shape, maps = features.shape[2:], {}
        for name in methods:
            began = time.perf_counter()
            maps[name] = METHODS[name].function(network, x, target)
            seconds[name].append(time.perf_counter() - began)
        maps |= {"random": faithfulness.random_map(shape, number), "centred": centred_map(shape)}
        found = faithfulness.deletion_insertion(network, x, hidden, list(maps.values()), target, info.temperature)
        for name, area in zip(maps, found, strict=True):
            areas[name].append(area)
    return {name: np.array(found) for name, found in areas.items()}, seconds


def chosen(run: Path, photos: Path | None, most: int, look: Mapping[str, Any]):
    """The pixels of that many of the photos, drawn at random, always the same."""
    catalog = read_catalog(photos, min_classes=1) if photos else load_catalog(run)
    tested = (
        {photo.path for photo in read_split_file(run / "split.csv") if photo.split == "test"} if not photos else None
    )
    judged: list[Photo] = [photo for photo in catalog.photos if tested is None or photo.path in tested]
    for k in np.random.default_rng(0).permutation(len(judged))[:most]:
        try:
            yield preprocess(catalog.read_bytes(judged[k]), look, judged[k].box if look.get("boxes") else None)
        except UnreadableImageError as problem:
            print(f"{judged[k].path}: {problem}")


def centred_map(shape: Sequence[int]) -> np.ndarray:
    """A Gaussian in the middle (h, w): the centre bias of photographs."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / CENTRE_SIGMA for n in shape)
    return np.exp(-(rows[:, None] ** 2 + columns**2) / 2).astype(np.float32)


def told(values: np.ndarray) -> str:
    """Mean +- standard error."""
    return f"{values.mean():.3f} +- {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
