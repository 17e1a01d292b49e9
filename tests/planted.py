"""A copy of a folder of class folders with defects planted into it, and the truth about them.

python tests/planted.py ../shared/data/birds100/train OUT plants 100 near-duplicates and labels 5 % of the photos wrong.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

KINDS = ("resized", "compressed", "cropped", "brightened", "mirrored")


@dataclass(frozen=True)
class Truth:
    """`near` are pairs of paths (original, planted copy) by kind, `wrong` the mislabelled photos with their classes."""

    near: dict[str, list[tuple[str, str]]]
    wrong: dict[str, str]


def plant(photos: Path, out: Path, *, near: int = 100, wrong: int = 0, most: int | None = None, seed: int = 0) -> Truth:
    """Links to (at most `most` of) the photos of class folders, `near` changed copies and `wrong` wrong labels."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in photos.glob("*/*") if path.is_file())
    if most is not None:
        files = sorted(rng.permutation(np.array(files, object))[:most])
    chosen = [files[k] for k in rng.permutation(len(files))]
    originals, mislabelled = chosen[:near], set(chosen[near : near + wrong])
    classes = sorted({file.parent.name for file in files})
    swapped: dict[str, str] = {}
    for file in files:
        label = file.parent.name
        if file in mislabelled:
            label = str(rng.choice([name for name in classes if name != label]))
            swapped[f"{label}/{file.parent.name}-{file.name}"] = file.parent.name
            place = out / label / f"{file.parent.name}-{file.name}"
        else:
            place = out / label / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file.resolve())
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for k, file in enumerate(originals):
        kind, name = KINDS[k % len(KINDS)], f"{file.parent.name}/copy-{k:03}.jpg"
        with Image.open(file) as opened:
            image, quality = changed(opened.convert("RGB"), kind, rng)
        image.save(out / name, quality=quality)
        pairs[kind].append((f"{file.parent.name}/{file.name}", name))
    return Truth(pairs, swapped)


def changed(image: Image.Image, kind: str, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """The photo as somebody might have it a second time, and the JPEG quality to save it with."""
    if kind == "resized":
        scale = rng.uniform(0.5, 1.5)
        return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC), 90
    if kind == "compressed":
        return image, int(rng.integers(30, 96))
    if kind == "cropped":
        w, h = round(0.95 * image.width), round(0.95 * image.height)
        x, y = (int(rng.integers(0, whole - part + 1)) for whole, part in ((image.width, w), (image.height, h)))
        return image.crop((x, y, x + w, y + h)), 90
    if kind == "brightened":
        return ImageEnhance.Brightness(image).enhance(1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.2)), 90
    return ImageOps.mirror(image), 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--near", type=int, default=100)
    parser.add_argument("--wrong", type=float, default=0.05, help="share of the photos that get a wrong label")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    wrong = round(options.wrong * len(list(options.photos.glob("*/*"))))
    truth = plant(options.photos, options.out / "photos", near=options.near, wrong=wrong, seed=options.seed)
    (options.out / "truth.json").write_text(json.dumps({"near": truth.near, "wrong": truth.wrong}, ensure_ascii=False))


if __name__ == "__main__":
    main()
