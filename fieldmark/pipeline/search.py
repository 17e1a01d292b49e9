"""PHOTOS + recipe -> a better recipe: trials of its settings, chosen by Optuna, judged by the validation photos alone.

What the frozen layers make of the photos is computed once for all trials that share it, so that a trial of the head
costs seconds. The best recipe is then trained as a whole, and that run alone sees the test photos.
"""

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
from fieldmark.core.errors import FieldmarkError, UntrainableRecipeError
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Catalog
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.pipeline.prepare import PreparedData, prepare_data
from fieldmark.pipeline.run import Run
from fieldmark.pipeline.search_space import FULL_SPACE, HEAD_SPACE, Choices, Range, boundary_recipes, parse_search_space
from fieldmark.pipeline.train import train
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import TUNING_FIELDS, UNFREEZE_FIELDS, Recipe, option_name
from fieldmark.training import distributed, feature_cache
from fieldmark.training.history import EpochRecord
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe, standardise_inputs
from fieldmark.training.trainer import Trainer

TrialRow = dict[str, Any]
JOURNAL, SHARED = "trials.journal", ".shared"
FINE_TUNING_SETTINGS = {"epochs", *UNFREEZE_FIELDS, *TUNING_FIELDS} - {"augment"}
"""Settings of phase 2 alone; `augment` says whether the head sees photos mirrored too."""
PRUNER_STARTUP_TRIALS, PRUNER_WARMUP_STEPS = 5, 3
"""So many trials are not cut short, and none before so many epochs: there is nothing yet to compare it with."""


@runtime.torch_settings()
def search(
    photos: str | Path,
    trials: int,
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
    vary: Sequence[str] = (),
    *,
    full_training: bool = False,
) -> tuple[list[TrialRow], Run]:
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
    recipe = distributed.resolve_devices(recipe)
    search_space = parse_search_space(vary or (FULL_SPACE if full_training else HEAD_SPACE))
    if unusable := [] if full_training else [name for name in search_space if name in FINE_TUNING_SETTINGS]:
        raise FieldmarkError(f"--vary {unusable[0]}: trials of the head alone know nothing of it; add --whole")
    resolve_recipe(recipe, reporter.info)  # refuses what cannot be
    for boundary in (recipe, *boundary_recipes(recipe, search_space)):
        resolve_recipe(boundary, lambda _: None)
        if not full_training and (boundary.weights == "none" or not boundary.frozen_epochs):
            raise FieldmarkError("trials of the head alone need published weights and --frozen-epochs; or add --whole")
    catalog = load_recipe_catalog(photos, recipe)
    (out / SHARED).mkdir(parents=True, exist_ok=True)
    study = _open_study(out, recipe.seed, [recipe.to_dict(), *map(str, search_space.items()), full_training])
    runner = TrialRunner(catalog, recipe, out, reporter, full_training)
    while (claim := _claim_trial(study, search_space, trials, out)) is not None:
        trial, hyperparameters, lock = claim
        began, state, score = time.monotonic(), TrialState.FAIL, None
        try:
            found = runner.run_trial(hyperparameters, trial)
            for name, figure in (found | {"seconds": time.monotonic() - began}).items():
                trial.set_user_attr(name, figure)
            state, score, outcome = TrialState.COMPLETE, _objective_value(found, recipe), _format_metrics(found)
        except optuna.TrialPruned:
            state, outcome = TrialState.PRUNED, "cut short"
        except UntrainableRecipeError as error:
            if not hyperparameters:  # the recipe as it stands: no other would do better
                raise
            state, outcome = TrialState.PRUNED, f"ended early, {error}"
        finally:  # another may wait for the lock, and then asks what came of it
            study.tell(trial, score, state)
            lock.release()
        reporter.info(f"trial {trial.number}: {outcome}, {_format_hyperparameters(hyperparameters)}")
    rows = [_trial_row(trial) for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))]
    best = min((row for row in rows if row["score"] is not None), key=lambda row: (-row["score"], row["val_loss"]))
    found = recipe.replace(**best["settings"])
    reporter.info(
        f"the best, trial {best['trial']}: {_format_hyperparameters(best['settings'])}; it is trained and tested now"
    )
    with exclusive_access(out):  # who waited for it finds it done
        recipes.write_recipe(found, out / "recipe.yaml")
        run = train(photos, _with_shared_split(found, out), out=out / f"best-{best['trial']}", resume=True)
        _remove_leftovers(out)
    return [row | {"best": row is best} for row in rows], run


def _remove_leftovers(out: Path) -> None:
    """Deletes what trials have shared, and what those left that were killed; who still makes one keeps its folder."""
    shutil.rmtree(out / SHARED, ignore_errors=True)
    for lock in out.glob("trial-*.lock"):
        with suppress(TimeoutError), FileLock(lock).acquire(blocking=False):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _with_shared_split(recipe: Recipe, out: Path) -> Recipe:
    """The recipe on the sides that the trials had."""
    return recipe.replace(split_file=recipe.split_file or str((out / "split.csv").resolve()))


class TrialRunner:
    """Where trials are trained: photos are prepared once for each way to decode them, features once for all of them."""

    def __init__(self, catalog: Catalog, recipe: Recipe, out: Path, reporter: Reporter, whole: bool) -> None:
        self.catalog, self.recipe, self.out, self.reporter, self.full_training = catalog, recipe, out, reporter, whole
        self.prepared_by_key = dict[str, PreparedData]()

    def run_trial(self, hyperparameters: TrialRow, trial: Any) -> TrialRow:
        """Train with these settings. -> accuracy and loss on the validation photos, of the best epoch."""
        try:
            recipe = self.recipe.replace(**hyperparameters | ({} if self.full_training else {"epochs": 0}))
            recipe = resolve_recipe(recipe, lambda _: None)
        except FieldmarkError as error:  # each may be well alone, but not all of them together
            raise UntrainableRecipeError(str(error)) from None
        folder = self.out / f"trial-{trial.number}"
        (folder / "resume").mkdir(parents=True, exist_ok=True)
        try:
            torch.manual_seed(recipe.seed)
            with exclusive_access(self.out):  # or two would compute the same
                prepared = self._prepare_for(recipe, folder)
                network = build_network(recipe, len(prepared.classes))
                standardise_inputs(network, recipe, prepared.data)
                if not len(prepared.data.val):
                    raise FieldmarkError("no photos to choose by (val/): a search needs some")
                fabric, quiet_reporter = distributed.make_fabric(recipe), Reporter(quiet=True)
                logger = PruningLogger(trial, recipe, may_end=bool(hyperparameters))
                trainer = Trainer(network, prepared.data, recipe, folder / "resume", quiet_reporter, fabric, logger)
                self._share_features(trainer, folder)
            trainer.train()
            best = next(record for record in trainer.state.history if record.epoch == trainer.best_epoch())
            metrics = {"val_accuracy": best.val_accuracy, "val_loss": best.val_loss}
            return metrics | {"photos": len(prepared.data.val)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare_for(self, recipe: Recipe, folder: Path) -> PreparedData:
        """The photos as this recipe sees them, all on the sides that the first trial gave them."""
        with torch.device("meta"):
            input_spec = make_preprocessing(build_network(recipe, 2, weights=False), recipe)
        key = f"photos-{input_spec['size']}-{input_spec['interpolation']}"
        data_dir = self.out / SHARED / key
        if key not in self.prepared_by_key or not data_dir.exists():  # another who was done has cleared it away
            (data_dir / "resume").mkdir(parents=True, exist_ok=True)
            split, catalog = self.out / "split.csv", self.catalog
            if split.exists():
                catalog = load_recipe_catalog(self.catalog.source, _with_shared_split(self.recipe, self.out))
            data_reporter = self.reporter if not split.exists() else Reporter(quiet=True)
            self.prepared_by_key[key] = prepare_data(catalog, input_spec, recipe, data_dir, data_reporter)
            if not split.exists():
                shutil.copyfile(data_dir / "split.csv", self.out / "split.half")
                (self.out / "split.half").replace(split)
        for name in ("audit.json", "split.csv"):
            shutil.copyfile(data_dir / name, folder / name)
        return self.prepared_by_key[key]

    def _share_features(self, trainer: Trainer, folder: Path) -> None:
        """Take the features of phase 1 that another trial has computed, or compute them for others."""
        recipe, builder = trainer.recipe, trainer.phase_builder
        cache = feature_cache.for_run(self.out / SHARED, builder, folder)
        if recipe.frozen_epochs and recipe.weights != "none" and not cache.restore():
            start = time.monotonic()
            builder.frozen_features.compute_features(self.reporter, lambda _: builder.mirrors_train)
            cache.store(time.monotonic() - start)


class PruningLogger:
    """A trial's epochs -> Optuna, which ends those that others have left behind."""

    def __init__(self, trial: Any, recipe: Recipe, may_end: bool) -> None:
        self.trial, self.recipe, self.may_prune = trial, recipe, may_end

    def start(self, history: Sequence[EpochRecord]) -> None:
        """A trial is never resumed."""

    def log_epoch(self, record: EpochRecord) -> None:
        import optuna

        self.trial.report(_objective_value(record.to_dict(), self.recipe), record.epoch)
        if self.may_prune and self.trial.should_prune():
            raise optuna.TrialPruned


def _open_study(out: Path, seed: int, requested: list[Any]) -> Any:
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
        pruner=optuna.pruners.MedianPruner(n_startup_trials=PRUNER_STARTUP_TRIALS, n_warmup_steps=PRUNER_WARMUP_STEPS),
    )
    if study.user_attrs.get("asked", requested) != requested:
        raise FieldmarkError(f"{out} was begun with other settings or other --vary: repeat them, or give another --out")
    study.set_user_attr("asked", requested)
    # Whoever joins or goes on draws other numbers.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * len(study.trials))
    return study


def _claim_trial(
    study: Any, search_space: Mapping[str, Choices | Range], trials: int, out: Path
) -> tuple[Any, TrialRow, Any] | None:
    """A trial to make, its settings and the lock that says that it is being made; None once there are enough.

    Where others make the last ones, it waits: whoever dies lets go of his lock, and there is one to make again.
    """

    def lock(number: int) -> Any:
        return FileLock(out / f"trial-{number}.lock")

    while True:
        with exclusive_access(out):
            all_trials, others = study.get_trials(deepcopy=False), list[Any]()
            for other in all_trials:
                if not other.state.is_finished():
                    try:
                        with lock(other.number).acquire(blocking=False):  # nobody's: whoever began it is gone
                            pass
                    except TimeoutError:
                        others.append(other)
            done = [one for one in all_trials if one.state.name in ("COMPLETE", "PRUNED")]
            if len(done) + len(others) < trials:
                trial = study.ask()
                (own_lock := lock(trial.number)).acquire()
                has_default = not any(one.user_attrs.get("settings") == {} for one in (*done, *others))
                hyperparameters = (
                    {} if has_default else {name: _suggest_value(trial, name, of) for name, of in search_space.items()}
                )
                trial.set_user_attr("settings", hyperparameters)
                return trial, hyperparameters, own_lock
        if len(done) >= trials:
            return None
        with lock(others[0].number):
            pass


def _suggest_value(trial: Any, name: str, domain: Choices | Range) -> Any:
    if isinstance(domain, Choices):
        return trial.suggest_categorical(name, domain.values)
    if domain.is_integer:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    rounded = float(f"{trial.suggest_float(name, domain.low, domain.high, log=domain.log):.3g}")
    return min(max(rounded, domain.low), domain.high)  # rounded, it may lie outside


def _objective_value(row: TrialRow, recipe: Recipe) -> float:
    """What is to be high."""
    return row["val_accuracy"] if recipe.monitor == "accuracy" else -row["val_loss"]


def _trial_row(trial: Any) -> TrialRow:
    """A trial for people and for --json."""
    attributes = {
        name: trial.user_attrs.get(name) for name in ("val_accuracy", "val_loss", "photos", "seconds", "settings")
    }
    return {"trial": trial.number, "score": trial.value if attributes["photos"] else None, **attributes}


def _format_metrics(metrics: TrialRow) -> str:
    return f"{metrics['val_accuracy']:.1%}, loss {metrics['val_loss']:.3f} on {metrics['photos']} validation photos"


def _format_hyperparameters(hyperparameters: TrialRow) -> str:
    """As on the command line."""
    return (
        " ".join(f"{option_name(name)} {value}" for name, value in hyperparameters.items()) or "the recipe as it stands"
    )


@contextmanager
def exclusive_access(out: Path) -> Iterator[None]:
    """One process of the search at a time."""
    with FileLock(out / f"{SHARED}.lock"):
        yield
