"""Hyperparameter search with Optuna, on the validation set.

Features of the frozen layers are computed once for all trials that share them, so that a trial of the head takes
seconds. The best recipe is then trained in full, and that run alone uses the test set.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from fieldmark.core import io, runtime
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
from fieldmark.report.results import SearchResult, Trial
from fieldmark.training import distributed, feature_cache
from fieldmark.training.history import EpochRecord
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe, standardise_inputs
from fieldmark.training.trainer import Trainer

JOURNAL, SHARED = "trials.journal", ".shared"
FINE_TUNING_SETTINGS = {"epochs", *UNFREEZE_FIELDS, *TUNING_FIELDS} - {"augment"}
"""Settings of fine-tuning alone."""
PRUNER_STARTUP_TRIALS, PRUNER_WARMUP_STEPS = 5, 3
"""Trials before the first can be pruned, and epochs before any is: there is nothing to compare it with."""


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
) -> SearchResult:
    """Run trials until `out` holds that many, then train the best recipe in `out`/best-TRIAL.

    The first trial is the original recipe, so that the best is never worse on the validation set. The same search
    started in the same folder meanwhile, on this machine or on another that sees it, shares the work; an interrupted
    one continues.

    Args:
        trials: number of trials in all.
        vary: hyperparameters and their values (`search_space.parse_search_space`); by default `HEAD_SPACE`, or
            `FULL_SPACE` with `full_training`.
        full_training: train both phases in each trial, not the head alone.

    Returns:
        The trials and the run of the best one.

    Raises:
        FieldmarkError: settings that cannot be searched.
        ModuleNotFoundError: optuna is not installed.
    """
    import optuna

    space = parse_search_space(vary or (FULL_SPACE if full_training else HEAD_SPACE))
    recipe = _check_searchable(recipe, space, full_training, reporter)
    catalog = load_recipe_catalog(photos, recipe)
    (out / SHARED).mkdir(parents=True, exist_ok=True)
    study = _open_study(out, recipe.seed, [recipe.to_dict(), *map(str, space.items()), full_training])
    runner = TrialRunner(catalog, recipe, out, reporter, full_training)
    while (claim := _claim_trial(study, space, trials, out)) is not None:
        outcome = _make_trial(runner, study, claim)
        reporter.info(f"trial {claim.trial.number}: {outcome}, {_format_hyperparameters(claim.hyperparameters)}")
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    trials_made = [_read_trial(trial) for trial in study.get_trials(states=states)]
    best = min((trial for trial in trials_made if trial.score is not None), key=_rank)
    settings = _format_hyperparameters(best.settings)
    reporter.info(f"best trial: {best.trial} ({settings}); training it in full and testing it once")
    run = _train_best(recipe.replace(**best.settings), best.trial, photos, out)
    marked = [dataclasses.replace(trial, best=trial is best) for trial in trials_made]
    return SearchResult(marked, run.folder, run.results.test)


def _rank(trial: Trial) -> tuple[float, float]:
    return -(trial.score or 0.0), trial.val_loss or 0.0


def _check_searchable(
    recipe: Recipe, space: Mapping[str, Choices | Range], full_training: bool, reporter: Reporter
) -> Recipe:
    """The recipe with its devices resolved; FieldmarkError if it, or a value of the space, cannot be searched."""
    if recipe.folds or recipe.devices * recipe.nodes > 1 or recipe.budget:
        raise FieldmarkError("search trains one trial after the other: leave --folds, --devices, --nodes, --budget out")
    recipe = distributed.resolve_devices(recipe)
    if unusable := [] if full_training else [name for name in space if name in FINE_TUNING_SETTINGS]:
        raise FieldmarkError(f"--vary {unusable[0]} affects fine-tuning alone, which trials leave out: add --whole")
    resolve_recipe(recipe, reporter.info)
    for boundary in (recipe, *boundary_recipes(recipe, space)):
        resolve_recipe(boundary, lambda _: None)
        if not full_training and (boundary.weights == "none" or not boundary.frozen_epochs):
            raise FieldmarkError("trials of the head alone need published weights and --frozen-epochs; or add --whole")
    return recipe


def _make_trial(runner: "TrialRunner", study: Any, claim: "Claim") -> str:
    """Train one trial and record its result in the study. Returns the outcome as text."""
    import optuna
    from optuna.trial import TrialState

    start, state, score = time.monotonic(), TrialState.FAIL, None
    try:
        metrics = runner.run_trial(claim.hyperparameters, claim.trial)
        for name, value in (metrics | {"seconds": time.monotonic() - start}).items():
            claim.trial.set_user_attr(name, value)
        state, score, outcome = TrialState.COMPLETE, _objective_value(metrics, runner.recipe), _format_metrics(metrics)
    except optuna.TrialPruned:
        state, outcome = TrialState.PRUNED, "pruned"
    except UntrainableRecipeError as error:
        if not claim.hyperparameters:  # the original recipe: others would hardly do better
            raise
        state, outcome = TrialState.PRUNED, f"ended early, {error}"
    finally:  # another process may wait for the lock, and then reads the state
        study.tell(claim.trial, score, state)
        claim.lock.release()
    return outcome


def _train_best(recipe: Recipe, trial: int, photos: str | Path, out: Path) -> Run:
    with exclusive_access(out):  # another process that waits for it finds it done
        recipes.write_recipe(recipe, out / "recipe.yaml")
        run = train(photos, _with_shared_split(recipe, out), out=out / f"best-{trial}", resume=True)
        _remove_leftovers(out)
    return run


def _remove_leftovers(out: Path) -> None:
    """Delete shared features and the folders of killed trials; those of running trials stay."""
    shutil.rmtree(out / SHARED, ignore_errors=True)
    for lock in out.glob("trial-*.lock"):
        with suppress(TimeoutError), FileLock(lock).acquire(blocking=False):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _with_shared_split(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the split of the trials."""
    return recipe.replace(split_file=recipe.split_file or str((out / "split.csv").resolve()))


class TrialRunner:
    """Trains trials; images are prepared once for each way to decode them, features are computed once."""

    def __init__(self, catalog: Catalog, recipe: Recipe, out: Path, reporter: Reporter, whole: bool) -> None:
        self.catalog, self.recipe, self.out, self.reporter, self.full_training = catalog, recipe, out, reporter, whole
        self.prepared_by_key = dict[str, PreparedData]()

    def run_trial(self, hyperparameters: dict[str, Any], trial: Any) -> dict[str, Any]:
        """Train with these hyperparameters; return accuracy and loss on the validation set in the best epoch."""
        try:
            recipe = self.recipe.replace(**hyperparameters | ({} if self.full_training else {"epochs": 0}))
            recipe = resolve_recipe(recipe, lambda _: None)
        except FieldmarkError as error:  # each value is valid alone, but not in this combination
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
                    raise FieldmarkError("a search needs a validation set (val/)")
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
        """The images as this recipe decodes them, in the split of the first trial."""
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
                with io.atomic_path(split) as partial:
                    shutil.copyfile(data_dir / "split.csv", partial)
        for name in ("audit.json", "split.csv"):
            shutil.copyfile(data_dir / name, folder / name)
        return self.prepared_by_key[key]

    def _share_features(self, trainer: Trainer, folder: Path) -> None:
        """Reuse the features that another trial has computed, or compute them for others."""
        recipe, builder = trainer.recipe, trainer.phase_builder
        cache = feature_cache.for_run(self.out / SHARED, builder, folder)
        if recipe.frozen_epochs and recipe.weights != "none" and not cache.restore():
            start = time.monotonic()
            builder.frozen_features.compute_features(self.reporter)
            cache.store(time.monotonic() - start)


class PruningLogger:
    """Reports the epochs of a trial to Optuna, which prunes those below the median of the others."""

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
    """The study in `out`, or a new one; FieldmarkError if it was started with other settings."""
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
        raise FieldmarkError(f"{out} was started with other settings or --vary: repeat them, or give another --out")
    study.set_user_attr("asked", requested)
    # A process that joins or continues draws other numbers.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * len(study.trials))
    return study


class Claim(NamedTuple):
    """A trial that this process is to make."""

    trial: Any
    hyperparameters: dict[str, Any]
    lock: Any
    """Held while the trial is made: a process that dies releases it."""


def _claim_trial(study: Any, space: Mapping[str, Choices | Range], trials: int, out: Path) -> Claim | None:
    """The next trial to make; None once there are enough.

    Waits while other processes make the last ones, since a trial whose process dies has to be made again.
    """
    while True:
        with exclusive_access(out):
            done, running = _count_trials(study, out)
            if len(done) + len(running) < trials:
                return _start_trial(study, space, [*done, *running], out)
        if len(done) >= trials:
            return None
        with _trial_lock(out, running[0].number):
            pass


def _start_trial(study: Any, space: Mapping[str, Choices | Range], others: Sequence[Any], out: Path) -> Claim:
    """A new trial: of the original recipe, if no other is."""
    trial = study.ask()
    lock = _trial_lock(out, trial.number)
    lock.acquire()
    has_default = any(other.user_attrs.get("settings") == {} for other in others)
    hyperparameters = {name: _suggest_value(trial, name, domain) for name, domain in space.items() if has_default}
    trial.set_user_attr("settings", hyperparameters)
    return Claim(trial, hyperparameters, lock)


def _count_trials(study: Any, out: Path) -> tuple[list[Any], list[Any]]:
    """The trials that are done, and those that a process is making now."""
    trials, running = study.get_trials(deepcopy=False), list[Any]()
    for trial in trials:
        if not trial.state.is_finished():
            try:
                with _trial_lock(out, trial.number).acquire(blocking=False):  # free: its process has died
                    pass
            except TimeoutError:
                running.append(trial)
    return [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")], running


def _trial_lock(out: Path, number: int) -> FileLock:
    return FileLock(out / f"trial-{number}.lock")


def _suggest_value(trial: Any, name: str, domain: Choices | Range) -> Any:
    if isinstance(domain, Choices):
        return trial.suggest_categorical(name, domain.values)
    if domain.is_integer:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    rounded = float(f"{trial.suggest_float(name, domain.low, domain.high, log=domain.log):.3g}")
    return min(max(rounded, domain.low), domain.high)  # rounded, it may lie outside


def _objective_value(row: dict[str, Any], recipe: Recipe) -> float:
    """The value that is maximised."""
    return row["val_accuracy"] if recipe.monitor == "accuracy" else -row["val_loss"]


def _read_trial(trial: Any) -> Trial:
    """A finished trial of Optuna; a pruned one has no metrics."""
    names = ("val_accuracy", "val_loss", "photos", "seconds", "settings")
    attributes = {name: trial.user_attrs.get(name) for name in names}
    return Trial(trial.number, trial.value if attributes["photos"] else None, **attributes)


def _format_metrics(metrics: dict[str, Any]) -> str:
    return f"{metrics['val_accuracy']:.1%}, loss {metrics['val_loss']:.3f} on {metrics['photos']} validation photos"


def _format_hyperparameters(hyperparameters: Mapping[str, Any]) -> str:
    """As on the command line."""
    return " ".join(f"{option_name(name)} {value}" for name, value in hyperparameters.items()) or "the original recipe"


@contextmanager
def exclusive_access(out: Path) -> Iterator[None]:
    """Lets one process of the search at a time into the block."""
    with FileLock(out / f"{SHARED}.lock"):
        yield
