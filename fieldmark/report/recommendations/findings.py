"""`Findings`: the files of a finished run with types, for what the report concludes from them."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fieldmark.audit.report import AuditReport, RunAudit
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import finite_float
from fieldmark.core.io import read_csv, read_json
from fieldmark.evaluation.calibration import MIN_IMAGES as MIN_CALIBRATION_IMAGES
from fieldmark.evaluation.results import Metrics
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe, option_name
from fieldmark.report.examples import fold_folders
from fieldmark.report.run_metrics import RunMetrics
from fieldmark.training.history import EpochRecord

NEEDED_BUDGET = re.compile(r"--budget (\d+s) would be enough")
"""In log.txt, if a budget was too short for fine-tuning (`training.budget`)."""
CATALOG_FIELDS = ("group_by", "split_file", "apply")
"""Settings of a recipe that select the images; `fieldmark check` has them too."""


@dataclass(frozen=True)
class Findings:
    """What the files of a run say; None or empty where one is missing, or of another version.

    Attributes:
        run: folder of the run, as commands name it.
        photos: folder of the images.
        splits: path of each image -> train, val or test.
        labels: path of each image -> its class.
        has_test: whether there is a test set, also if its metrics are those of another version.
        needed_budget: a budget that is long enough for fine-tuning, if that of the run was too short.
    """

    run: str = "RUN"
    photos: str = "PHOTOS"
    metrics: RunMetrics = field(default_factory=RunMetrics)
    audit: AuditReport | None = None
    history: Sequence[EpochRecord] = ()
    recipe: Recipe = field(default_factory=Recipe)
    splits: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    has_test: bool = True
    needed_budget: str | None = None

    @property
    def test(self) -> Metrics | None:
        return self.metrics.test

    @property
    def n_validation(self) -> int | None:
        """Validation images, of a cross-validation those of the fold with the fewest; None if it is unknown."""
        folds = [fold.validation.n for fold in self.metrics.folds if fold.validation]
        validation = self.metrics.validation
        return min(folds) if folds else validation.n if validation else None

    @property
    def rejects(self) -> bool:
        """Whether temperature and OOD threshold were fitted; without a threshold, no image is rejected."""
        return self.n_validation is None or self.n_validation >= MIN_CALIBRATION_IMAGES

    @property
    def finetuning(self) -> list[EpochRecord]:
        """The epochs of fine-tuning, without the refit of the head."""
        return [record for record in self.history if record.is_finetuning]

    @property
    def kept_epoch(self) -> EpochRecord | None:
        """The epoch whose weights were kept."""
        return next((record for record in self.history if record.epoch == self.metrics.best_epoch), None)

    @property
    def next_run(self) -> str:
        """A folder for the next run."""
        return f"{self.run}-2"

    def count_images(self, split: str) -> Counter[str]:
        """Number of images of each class in a split."""
        return Counter(self.labels[path] for path, own in self.splits.items() if own == split)

    def check_command(self) -> str:
        """The command that lists all issues of the images."""
        chosen = [(name, getattr(self.recipe, name)) for name in CATALOG_FIELDS]
        options = [word for name, value in chosen if value for word in (option_name(name), str(value))]
        options += ["--crop-boxes"] if self.recipe.crop_boxes else []
        return shlex.join(["fieldmark", "check", self.photos, *options, "--out", f"{self.run}-check"])

    def train_command(self, **settings: Any) -> str:
        """The command that repeats the run with other settings, into a new folder; None removes a setting."""
        words = shlex.split(self.metrics.command or "")
        if words[:2] != ["fieldmark", "train"]:  # the demo
            words = ["fieldmark", "train", self.photos, "--recipe", str(Path(self.run) / "recipe.yaml")]
        changed = {"out": self.next_run, "resume": None, "json": None, **settings}
        added = [word for name, value in changed.items() if value is not None for word in (option_name(name), value)]
        return shlex.join([*_without_options(words, set(changed)), *map(str, added)])


def _without_options(words: list[str], names: set[str]) -> list[str]:
    """A command without these options and their values."""
    flags, kept, is_value = {"--resume", "--json"}, list[str](), False
    options = set(map(option_name, names))
    for word in words:
        if is_value:
            is_value = False
        elif word.partition("=")[0] not in options:
            kept.append(word)
        else:
            is_value = word not in flags and "=" not in word
    return kept


def load_findings(run: Path) -> Findings:
    """Read the files of a run; of a cross-validation, those of the first fold where there are none of all."""
    first = fold_folders(run)[0]
    metrics = _load_metrics(run)
    if first != run:
        of_first = _load_metrics(first)
        metrics = replace(metrics, command=of_first.command, learning_curve=of_first.learning_curve)
    audit, photos = _load_audit(first)
    rows = read_csv(run / "split.csv")
    return Findings(
        run=_folder_in_commands(run, metrics),
        photos=photos,
        metrics=metrics,
        audit=audit,
        history=read_history(run / "history.csv"),
        recipe=_load_recipe(run / "recipe.yaml"),
        splits={row["path"]: row["split"] for row in rows},
        labels={row["path"]: row["label"] for row in rows},
        has_test=bool(read_json(run / "metrics.json").get("test")),
        needed_budget=_read_needed_budget(run / "log.txt"),
    )


def read_history(file: Path) -> list[EpochRecord]:
    """The epochs of history.csv; a blank cell is NaN."""
    rows = [row for row in read_csv(file) if finite_float(row.get("epoch")) is not None]
    names = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
    return [
        EpochRecord(int(row["epoch"]), int(row.get("phase") or 2), **{name: _number(row.get(name)) for name in names})
        for row in rows
    ]


def _number(cell: Any) -> float:
    value = finite_float(cell)
    return math.nan if value is None else value


def _load_metrics(run: Path) -> RunMetrics:
    try:
        return RunMetrics.load(run)
    except FieldmarkError:
        return RunMetrics()


def _load_audit(run: Path) -> tuple[AuditReport | None, str]:
    """The audit of a run, and the folder of its images."""
    try:
        audit = RunAudit.load(run)
    except (OSError, FieldmarkError, AttributeError, KeyError, TypeError):
        return None, "PHOTOS"
    return audit.report, audit.folder


def _load_recipe(file: Path) -> Recipe:
    try:
        return recipes.read_recipe(file)
    except FieldmarkError:
        return Recipe()


def _folder_in_commands(run: Path, metrics: RunMetrics) -> str:
    """The folder as the user wrote it."""
    return str(Path(metrics.bundle).parent) if metrics.bundle and not metrics.folds else str(run)


def _read_needed_budget(log: Path) -> str | None:
    if not log.is_file():
        return None
    found = NEEDED_BUDGET.findall(log.read_text(encoding="utf-8", errors="replace"))
    return found[-1] if found else None
