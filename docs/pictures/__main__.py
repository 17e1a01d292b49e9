"""Makes every picture of README and docs from real runs, in light and in dark.

    pip install -e '.[docs]'
    python docs/pictures --work DIR [--data DATA] [NAME ...]

Trainings are made once and kept in DIR; a second call writes their pages anew and takes the pictures. The images come
with packages: the solar cells of elpv-dataset, the digits of scikit-learn, photos of scikit-image (CC0). DATA holds the
folders trashnet and birds100, of which charts are shown, and no photo. Without it their pictures are left as they are.

NAME-light.webp and NAME-dark.webp go to docs/images, and pictures.json says which commands and texts are in them:
tests/docs/test_pictures.py fails when a text is no longer in the sources. Takes Debian's chromium and fonts-noto-cjk.
"""

import argparse
import json
from pathlib import Path

from browser import chromium
from datasets import NEED_DATA
from studio import Studio
from table import PICTURES

IMAGES = Path(__file__).resolve().parents[1] / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PICTURES)}; all by default")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, which are kept there")
    parser.add_argument("--data", type=Path, help="folder with trashnet and birds100")
    args = parser.parse_args()
    if unknown := set(args.names) - set(PICTURES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    with chromium() as browser:
        studio = Studio(browser, args.work.resolve(), args.data, IMAGES)
        for name in args.names or PICTURES:
            if args.data is None and PICTURES[name].folder in NEED_DATA:
                print(f"{name}: left as it is, since it needs --data")
                continue
            _record(name, studio.take(name, PICTURES[name]))
            print(name, flush=True)


def _record(name: str, entry: dict[str, list[str]]) -> None:
    """Write the entry of a picture into pictures.json, in the order of the table."""
    file = IMAGES / "pictures.json"
    entries = json.loads(file.read_text("utf-8")) if file.exists() else {}
    entries[name] = entry
    ordered = {name: entries[name] for name in PICTURES if name in entries}
    file.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
