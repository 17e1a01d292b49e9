"""PHOTOS + recipe -> a better recipe: trials of its settings, chosen by Optuna, judged by the validation photos alone.

What the frozen layers make of the photos is computed once for all trials that share it, so that a trial of the head
costs seconds. The best recipe is then trained as a whole, and that run alone sees the test photos.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError, Untrainable
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import chosen
from fieldmark.pipeline.prepare import Table, prepare
from fieldmark.pipeline.search_space import HEAD, WHOLE, Choices, Range, extremes, space
from fieldmark.pipeline.train import Run, train
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.idle import DEPTH, SECOND
from fieldmark.recipes.recipe import Recipe, option
from fieldmark.training import distributed
from fieldmark.training.feature_cache import keep, lend
from fieldmark.training.model_factory import named, network_of, preprocessing, standardise
from fieldmark.training.trainer import Trainer

Row = dict[str, Any]
JOURNAL, SHARED = "trials.journal", ".shared"
LATE = {"epochs", *DEPTH, *SECOND} - {"augment"}
"""Settings of phase 2 alone; `augment` says whether the head sees photos mirrored too."""
STARTUP, WARMUP = 5, 3
"""So many trials are not cut short, and none before so many epochs: there is nothing yet to compare it with."""


def search(
    photos: str | Path,
    trials: int,
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
    vary: Sequence[str] = (),
    *,
    whole: bool = False,
) -> tuple[list[Row], Run]:
    """Try settings until `out` holds so many trials, then train the best recipe in `out`/best-TRIAL.

    The first trial is the recipe as it stands, so that the best is never worse by the photos that choose. A trial
    trains the head alone (phase 1), with `whole` both phases. The settings and their values are those of `vary` (see
    `space`), else `HEAD` or `WHOLE`. Whoever starts the same search in the same folder meanwhile, on this machine or
    another that sees it, shares the work; what is interrupted goes on.

    Returns:
        the trials, a row each (`trial, score, val_accuracy, val_loss, photos, seconds, settings, best`; one that was
        cut short has no figures), and the run of the best one.

    Raises:
        FieldmarkError: settings that cannot be searched.
        ModuleNotFoundError: optuna is not installed.
    """
    import optuna
    from optuna.trial import TrialState

    if recipe.folds or recipe.devices * recipe.nodes > 1 or recipe.budget:
        raise FieldmarkError("search trains one trial after the other: leave --folds, --devices, --nodes, --budget out")
    recipe = distributed.settled(recipe)
    varied = space(vary or (WHOLE if whole else HEAD))
    if in_vain := [] if whole else [name for name in varied if name in LATE]:
        raise FieldmarkError(f"--vary {in_vain[0]}: trials of the head alone know nothing of it; add --whole")
    named(recipe, reporter.say)  # refuses what cannot be
    for tried in (recipe, *extremes(recipe, varied)):
        named(tried, lambda _: None)
        if not whole and (tried.weights == "none" or not tried.frozen_epochs):
            raise FieldmarkError("trials of the head alone need published weights and --frozen-epochs; or add --whole")
    runtime.prepare()
    catalog = chosen(photos, recipe)
    (out / SHARED).mkdir(parents=True, exist_ok=True)
    study = _study(out, recipe.seed, [dataclasses.asdict(recipe), *map(str, varied.items()), whole])
    bench = Bench(catalog, recipe, out, reporter, whole)
    while (claimed := _claimed(study, varied, trials, out)) is not None:
        trial, settings, lock = claimed
        began, state, score = time.monotonic(), TrialState.FAIL, None
        try:
            found = bench.judged(settings, trial)
            for name, figure in (found | {"seconds": time.monotonic() - began}).items():
                trial.set_user_attr(name, figure)
            state, score, said = TrialState.COMPLETE, _score(found, recipe), _told(found)
        except optuna.TrialPruned:
            state, said = TrialState.PRUNED, "cut short"
        except Untrainable as error:
            if not settings:  # the recipe as it stands: no other would do better
                raise
            state, said = TrialState.PRUNED, f"ended early, {error}"
        finally:  # another may wait for the lock, and then asks what came of it
            study.tell(trial, score, state)
            lock.release()
        reporter.say(f"trial {trial.number}: {said}, {_spelt(settings)}")
    rows = [_row(trial) for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))]
    best = min((row for row in rows if row["score"] is not None), key=lambda row: (-row["score"], row["val_loss"]))
    found = dataclasses.replace(recipe, **best["settings"])
    reporter.say(f"the best, trial {best['trial']}: {_spelt(best['settings'])}; it is trained and tested now")
    with alone(out):  # who waited for it finds it done
        recipes.write(found, out / "recipe.half")
        (out / "recipe.half").replace(out / "recipe.yaml")
        run = train(photos, _split_of(found, out), out=out / f"best-{best['trial']}", resume=True)
        _clear(out)
    return [row | {"best": row is best} for row in rows], run


def _clear(out: Path) -> None:
    """Deletes what trials have shared, and what those left that were killed; who still makes one keeps its folder."""
    shutil.rmtree(out / SHARED, ignore_errors=True)
    for lock in out.glob("trial-*.lock"):
        with suppress(TimeoutError), FileLock(lock).acquire(blocking=False):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _split_of(recipe: Recipe, out: Path) -> Recipe:
    """The recipe on the sides that the trials had."""
    return dataclasses.replace(recipe, split_file=recipe.split_file or str((out / "split.csv").resolve()))


class Bench:
    """Where trials are trained: photos are prepared once for each way to decode them, features once for all of them."""

    def __init__(self, catalog: Catalog, recipe: Recipe, out: Path, reporter: Reporter, whole: bool) -> None:
        self.catalog, self.recipe, self.out, self.reporter, self.whole = catalog, recipe, out, reporter, whole
        self.tables = dict[str, Table]()

    def judged(self, settings: Row, trial: Any) -> Row:
        """Train with these settings. -> accuracy and loss on the validation photos, of the best epoch."""
        try:
            recipe = dataclasses.replace(self.recipe, **settings | ({} if self.whole else {"epochs": 0}))
            recipe = named(recipe, lambda _: None)
        except FieldmarkError as error:  # each may be well alone, but not all of them together
            raise Untrainable(str(error)) from None
        folder = self.out / f"trial-{trial.number}"
        (folder / "resume").mkdir(parents=True, exist_ok=True)
        try:
            torch.manual_seed(recipe.seed)
            with alone(self.out):  # or two would compute the same
                table = self._prepared(recipe, folder)
                network = network_of(recipe, len(table.classes))
                standardise(network, recipe, table.data)
                if not len(table.data.val):
                    raise FieldmarkError("no photos to choose by (val/): a search needs some")
                fabric, quiet = distributed.fabric(recipe), Reporter(quiet=True)
                watch: Any = Watch(trial, recipe, may_end=bool(settings))
                trainer = Trainer(network, table.data, recipe, folder / "resume", quiet, fabric, watch)
                self._share(trainer, folder)
            trainer.train()
            best = next(row for row in trainer.state.history if row["epoch"] == trainer.best_epoch())
            return {name: best[name] for name in ("val_accuracy", "val_loss")} | {"photos": len(table.data.val)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepared(self, recipe: Recipe, folder: Path) -> Table:
        """The photos as this recipe sees them, all on the sides that the first trial gave them."""
        with torch.device("meta"):
            looks = preprocessing(network_of(recipe, 2, weights=False), recipe)
        key = f"photos-{looks['size']}-{looks['interpolation']}"
        home = self.out / SHARED / key
        if key not in self.tables or not home.exists():  # another who was done has cleared it away
            (home / "resume").mkdir(parents=True, exist_ok=True)
            split, catalog = self.out / "split.csv", self.catalog
            if split.exists():
                catalog = chosen(self.catalog.source, _split_of(self.recipe, self.out))
            says = self.reporter if not split.exists() else Reporter(quiet=True)
            self.tables[key] = prepare(catalog, looks, recipe, home, says)
            if not split.exists():
                shutil.copyfile(home / "split.csv", self.out / "split.half")
                (self.out / "split.half").replace(split)
        for name in ("audit.json", "split.csv"):
            shutil.copyfile(home / name, folder / name)
        return self.tables[key]

    def _share(self, trainer: Trainer, folder: Path) -> None:
        """Take the features of phase 1 that another trial has computed, or compute them for others."""
        recipe, shared, routine = trainer.recipe, self.out / SHARED, trainer.routine
        if recipe.frozen_epochs and recipe.weights != "none" and not lend(shared, trainer, folder):
            began, flips = time.monotonic(), routine.exact and recipe.augment != "none"
            routine.frozen.features(self.reporter, lambda _: flips)
            keep(shared, trainer, folder, time.monotonic() - began)


class Watch:
    """A trial's epochs -> Optuna, which ends those that others have left behind."""

    def __init__(self, trial: Any, recipe: Recipe, may_end: bool) -> None:
        self.trial, self.recipe, self.may_end = trial, recipe, may_end

    def begin(self, history: list[Row]) -> None:
        """As a tracker of a training that is never resumed."""

    def epoch(self, row: Row) -> None:
        import optuna

        self.trial.report(_score(row, self.recipe), row["epoch"])
        if self.may_end and self.trial.should_prune():
            raise optuna.TrialPruned


def _study(out: Path, seed: int, asked: list[Any]) -> Any:
    """The search that lies in `out`, or a new one. Raises FieldmarkError where that one asks for other things."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    study = optuna.create_study(
        storage=storage,
        study_name="fieldmark",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP),
    )
    if study.user_attrs.get("asked", asked) != asked:
        raise FieldmarkError(f"{out} was begun with other settings or other --vary: repeat them, or give another --out")
    study.set_user_attr("asked", asked)
    # Whoever joins or goes on draws other numbers.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * len(study.trials))
    return study


def _claimed(study: Any, varied: Mapping[str, Choices | Range], trials: int, out: Path) -> tuple[Any, Row, Any] | None:
    """A trial to make, its settings and the lock that says that it is being made; None once there are enough.

    Where others make the last ones, it waits: whoever dies lets go of his lock, and there is one to make again.
    """

    def lock(number: int) -> Any:
        return FileLock(out / f"trial-{number}.lock")

    while True:
        with alone(out):
            begun, others = study.get_trials(deepcopy=False), list[Any]()
            for one in begun:
                if not one.state.is_finished():
                    try:
                        with lock(one.number).acquire(blocking=False):  # nobody's: whoever began it is gone
                            pass
                    except TimeoutError:
                        others.append(one)
            done = [one for one in begun if one.state.name in ("COMPLETE", "PRUNED")]
            if len(done) + len(others) < trials:
                trial = study.ask()
                (own := lock(trial.number)).acquire()
                plain = not any(one.user_attrs.get("settings") == {} for one in (*done, *others))
                settings = {} if plain else {name: _suggested(trial, name, of) for name, of in varied.items()}
                trial.set_user_attr("settings", settings)
                return trial, settings, own
        if len(done) >= trials:
            return None
        with lock(others[0].number):
            pass


def _suggested(trial: Any, name: str, of: Choices | Range) -> Any:
    if isinstance(of, Choices):
        return trial.suggest_categorical(name, of.values)
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(of.high), log=of.log)
    plain = float(f"{trial.suggest_float(name, of.low, of.high, log=of.log):.3g}")
    return min(max(plain, of.low), of.high)  # rounded, it may lie outside


def _score(row: Row, recipe: Recipe) -> float:
    """What is to be high."""
    return row["val_accuracy"] if recipe.monitor == "accuracy" else -row["val_loss"]


def _row(trial: Any) -> Row:
    """A trial for people and for --json."""
    told = {name: trial.user_attrs.get(name) for name in ("val_accuracy", "val_loss", "photos", "seconds", "settings")}
    return {"trial": trial.number, "score": trial.value if told["photos"] else None, **told}


def _told(found: Row) -> str:
    return f"{found['val_accuracy']:.1%}, loss {found['val_loss']:.3f} on {found['photos']} validation photos"


def _spelt(settings: Row) -> str:
    """As on the command line."""
    return " ".join(f"{option(name)} {value}" for name, value in settings.items()) or "the recipe as it stands"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """One process of the search at a time."""
    with FileLock(out / f"{SHARED}.lock"):
        yield
