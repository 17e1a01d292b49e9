"""Every picture: the commands behind it, and which part of which page it shows."""

from dataclasses import dataclass

SOLAR, REPORT = "solar", "run/report.html"
CELL = "solar-cells/defective/cell0404.png"
TRAIN = "fieldmark train solar-cells --out run --epochs 0"
CHECK = "fieldmark check cells --out found"
COMPARE = (
    "fieldmark compare some-cells --out runs --network efficientnet_lite0 --network efficientnet_lite1"
    " --network efficientnet_lite2 --seeds 1 --epochs 0"
)
SMALL = "--backbone efficientnet_lite0 --image-size 96 --augment none"
DIGITS = f"fieldmark train digits --out run {SMALL} --epochs 4"
WASTE = "fieldmark train trashnet --out run --epochs 0"
BIRDS = "fieldmark train birds100 --out run --epochs 0"
SPECIES = "fieldmark train species --out run --recipe species"
AGAIN = "fieldmark report run"
SHEET = "fieldmark explain run --out sheet"


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        folder: where the commands run, below the work directory.
        kept: commands that run once; what they write is kept.
        again: commands that write the page anew each time. {runs} are the runs of a comparison.
        page: the page, below the folder; "terminal", "serve", "teach" and "way" are none of a command.
        start, end: the first and the last element that are shown, as CSS selectors.
        limit: height at most, in CSS pixels.
        photos: what the page of `fieldmark serve` gets, below the folder.
        answers: how many a simulated person has given on the page of `fieldmark teach`.
    """

    folder: str
    kept: tuple[str, ...]
    again: tuple[str, ...] = (AGAIN,)
    page: str = REPORT
    start: str = "header"
    end: str = "main"
    limit: int = 800
    photos: tuple[str, ...] = ()
    answers: int | None = None


def _section(folder: str, command: str, heading: str, end: str = "") -> Picture:
    """A section of a report, from its heading to `end`, by default all of it."""
    start = f"section:has(> #{heading})"
    return Picture(folder, (command,), start=start, end=f"{start} > {end}" if end else start)


PICTURES = {
    "way": Picture(SOLAR, (TRAIN,), page="way", photos=(CELL,)),
    "terminal": Picture(SOLAR, (TRAIN,), (CHECK,), "terminal", start="main", limit=1200),
    "report": Picture(SOLAR, (TRAIN,)),
    "report-confusion": _section(SOLAR, TRAIN, "confusion", ".beside"),
    "report-calibration": _section(SOLAR, TRAIN, "trust", ".curves"),
    "look": Picture(SOLAR, (), ("fieldmark look solar-cells --out looked",), "looked/look.html"),
    "check": Picture(SOLAR, (), (CHECK,), "found/check.html", limit=1100),
    "explain": Picture(SOLAR, (TRAIN,), (f"fieldmark explain run {CELL} --out why",), "why/explain.html"),
    "sheet": Picture(SOLAR, (TRAIN,), (SHEET,), "sheet/sheet.html"),
    "compare": Picture(
        SOLAR, (COMPARE,), ("fieldmark compare {runs} --out compared",), "compared/compare.html", limit=900
    ),
    "serve": Picture(SOLAR, (TRAIN,), (), "serve", end="#cards", limit=1400, photos=("chelsea.png", CELL)),
    "teach-groups": Picture("teach", (), (), "teach", limit=900, answers=0),
    "teach": Picture("teach", (), (), "teach", limit=900, answers=203),
    "digits-look": Picture("digits", (), (f"fieldmark look digits --out looked {SMALL}",), "looked/look.html"),
    "digits-sheet": Picture("digits", (DIGITS,), (SHEET,), "sheet/sheet.html"),
    "digits-curves": _section("digits", DIGITS, "training", ".curves"),
    "waste-next": Picture("waste", (WASTE,)),
    "waste-confusion": _section("waste", WASTE, "confusion", ".beside"),
    "birds-pairs": _section("birds", BIRDS, "confusion", ".columns"),
    "species-curves": _section("species", SPECIES, "training", ".curves"),
    "way-zh": Picture(SOLAR, (TRAIN,), (f"{AGAIN} --lang zh",), "way", photos=(CELL,)),
}
