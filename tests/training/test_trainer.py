"""The trainer: what is frozen stays, features are what the network says, the best weights come back."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark.audit.audit import DecodedImage
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.cache.pack import MemmapWriter
from fieldmark.data.dataset import DatasetSplits, EvalDataset
from fieldmark.models import build
from fieldmark.pipeline.finish import extract_features_and_logits
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.budget import find_learning_rates, measure_costs
from fieldmark.training.frozen_features import NpyWriter, pack_maps
from fieldmark.training.history import EpochRecord, StopTraining
from fieldmark.training.phases import Phase
from fieldmark.training.schedule import lr_factor
from fieldmark.training.trainer import Trainer

SIZE = 64


@pytest.fixture(scope="module")
def data(drawing, tmp_path_factory: pytest.TempPathFactory) -> DatasetSplits:
    """Three classes of ten photos: 18 to train on, 6 to choose by, 6 to test."""
    packer = MemmapWriter(tmp_path_factory.mktemp("pack"))
    for number in range(30):
        photo = np.asarray(drawing(number % 3, 200 + number).resize((SIZE + 9, SIZE + 9)))
        packer.add(DecodedImage(f"{number:064x}", photo, (0, 0), np.zeros((16, 16, 3))))
    labels = np.arange(30) % 3
    return DatasetSplits(packer.finish(), labels, np.arange(18), np.arange(18, 24), np.arange(24, 30))


def trainer(data: DatasetSplits, folder: Path, words: str = "", **settings) -> Trainer:
    folder.mkdir(exist_ok=True)
    usual: dict[str, Any] = {"image_size": SIZE, "train_size": SIZE, "batch": 6, "epochs": 1}
    usual |= {"exact": False, "frozen_epochs": 2, "backbone": "efficientnet_lite0"}
    recipe = Recipe(**usual | settings)
    weights = None if recipe.weights == "none" else recipe.weights
    torch.manual_seed(0)
    network = build(f"{recipe.backbone}{words}", classes=3, weights=weights)
    return Trainer(network, data, recipe, folder, Reporter())


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_frozen_part_stays_to_the_bit_and_the_rest_moves(data: DatasetSplits, tmp_path: Path):
    training = trainer(data, tmp_path, frozen_epochs=0)
    parts = training.phase_builder.frozen_features
    frozen, rest = state(parts.prefix), state(parts.trainable_backbone)
    training.train()
    assert all(
        torch.equal(frozen[name], value)
        for name, value in training.phase_builder.frozen_features.prefix.state_dict().items()
    )
    moved = {
        name
        for name, value in training.phase_builder.frozen_features.trainable_backbone.state_dict().items()
        if not torch.equal(rest[name], value)
    }
    assert moved == {
        name for name, _ in training.phase_builder.frozen_features.trainable_backbone.named_parameters()
    }  # no running statistic is among them


WHOLE = ["", "+head=bilinear(reduced=4)", "+after=-1:mask(norm=True)", "+after=1:se+head=multi_stage"]


@pytest.mark.parametrize("words", WHOLE)
def test_features_are_what_the_network_says(words: str, data: DatasetSplits, tmp_path: Path):
    training = trainer(data, tmp_path, words)
    features = torch.from_numpy(
        np.concatenate(training.phase_builder.frozen_features.compute_features(training.reporter))
    )
    photos = torch.stack([EvalDataset(data.images, np.arange(24), SIZE)[k] for k in range(24)])
    network = training.network.eval()
    with torch.inference_mode():
        logits = network(training.phase_builder.frozen_features.normalise(photos))
        _, tail = training.phase_builder.frozen_features.split_at_last_stage()
        torch.testing.assert_close(network.head(tail(features)), logits, rtol=1e-4, atol=1e-4)
        kept = torch.cat([pack_maps(maps) for maps in training.phase_builder.frozen_features.val_maps()])
        expected = pack_maps(training.phase_builder.frozen_features.compute_maps(photos[18:]))
        torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen_epochs", [0, 2])
def test_norms_in_added_attention_start_from_what_they_will_see(
    frozen_epochs: int, data: DatasetSplits, tmp_path: Path
):
    training = trainer(data, tmp_path, "+after=-2:se(norm=True),-1:mask(norm=True)", frozen_epochs=frozen_epochs)
    photos = torch.stack([EvalDataset(data.images, data.val, SIZE)[k] for k in range(6)])
    with torch.inference_mode():
        before = training.network.eval()(training.phase_builder.frozen_features.normalise(photos))
        training.phase_builder.init_attention_norms()
        after = training.network.eval()(training.phase_builder.frozen_features.normalise(photos))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)  # still the identity
    for slot in training.network.added_attention.values():
        norm = next(m for m in slot.modules() if isinstance(m, torch.nn.BatchNorm2d))
        assert norm.running_mean is not None and norm.running_mean.abs().max() > 0.01
    assert len(training.train()) == frozen_epochs + 1


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class StopsAfter:
    """A listener that ends the training after an epoch, and perhaps fails in a later one."""

    def __init__(self, epoch: int, fails_in: int = 0) -> None:
        self.epoch, self.fails_in = epoch, fails_in

    def start(self, history: Sequence[EpochRecord]) -> None:
        pass

    def log_epoch(self, record: EpochRecord) -> None:
        if record.epoch == self.epoch:
            raise StopTraining
        if record.epoch == self.fails_in:
            interrupt()


@pytest.mark.parametrize(("stops_after", "phases"), [(1, [1]), (2, [1, 2, 4])])
def test_what_a_callback_stopped_trains_on_no_further_when_resumed(
    stops_after: int, phases: list[int], data: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupted after the stop, in the refit or before the next phase, it comes to the same weights."""
    whole = trainer(data, tmp_path / "whole", exact=True, epochs=3)
    whole.listener = StopsAfter(stops_after)
    assert [record.phase for record in whole.train()] == phases
    interrupted = trainer(data, tmp_path / "run", exact=True, epochs=3)
    interrupted.listener = StopsAfter(stops_after, fails_in=3)
    if phases == [1]:
        monkeypatch.setattr(interrupted, "_start_finetuning", interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = trainer(data, tmp_path / "run", exact=True, epochs=3)
    assert [record.phase for record in resumed.train()] == phases
    for one, other in zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_best_weights_come_back(data: DatasetSplits, tmp_path: Path):
    training = trainer(data, tmp_path, epochs=3, backbone_lr=0.0)
    history = training.train()
    best = history[training.best_epoch() - 1]
    logits = torch.from_numpy(
        extract_features_and_logits(training, training.phase_builder.frozen_features.val_maps())[1]
    )
    labels = torch.from_numpy(data.labels[data.val])
    assert (logits.argmax(1) == labels).float().mean().item() == best.val_accuracy
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(best.val_loss, abs=1e-6)


def test_it_stops_when_nothing_gets_better(data: DatasetSplits, tmp_path: Path):
    history = trainer(
        data, tmp_path, frozen_epochs=0, epochs=9, patience=2, lr=0.0, backbone_lr=0.0, monitor="loss"
    ).train()
    assert [row.phase for row in history] == [2, 2, 2]  # the first is the best, two more bring nothing


def test_it_learns(data: DatasetSplits, tmp_path: Path):
    history = trainer(data, tmp_path, frozen_epochs=20, epochs=0).train()
    assert history[-1].train_loss < 0.7 * history[0].train_loss and history[-1].val_accuracy >= 0.5


def test_a_loss_that_is_no_number_ends_in_one_line(data: DatasetSplits, tmp_path: Path):
    with pytest.raises(FieldmarkError, match="lower --lr"):
        trainer(data, tmp_path, epochs=20, lr=1e30, backbone_lr=1e30).train()


def test_measuring_leaves_no_trace(data: DatasetSplits, tmp_path: Path):
    training = trainer(data, tmp_path, weights="none", backbone="resnet18", frozen_epochs=0)
    training.state.phase = 2
    before = state(training.network)
    costs = measure_costs(training, training.recipe)
    assert costs.step_s > 0 and costs.validation_s > 0
    planned = find_learning_rates(training, training.recipe, steps=8).recipe
    assert planned.lr and planned.backbone_lr and not planned.find_lr
    assert all(torch.equal(before[name], value) for name, value in training.network.state_dict().items())


def test_the_plan_is_asked_once_between_the_phases(data: DatasetSplits, tmp_path: Path):
    asked = []

    def plan(training: Trainer) -> Recipe:
        asked.append(len(training.state.history))
        return training.recipe.replace(epochs=2, steps_per_epoch=1)

    history = trainer(data, tmp_path, frozen_epochs=3).train(plan)
    assert asked == [3] and [row.phase for row in history] == [1, 1, 1, 2, 2]


def slow_trainer(data: DatasetSplits, folder: Path, seconds: float = 10.0, **settings) -> Trainer:
    """Each of its epochs is said to take so many seconds; 25 are left for the six that are planned, of four steps."""
    training = trainer(data, folder, exact=True, epochs=6, **settings)
    evaluate = training._evaluate_epoch

    def evaluate_slowly(phase: Phase, epoch: int, start: float) -> EpochRecord:
        return dataclasses.replace(evaluate(phase, epoch, start), seconds=seconds)

    training._evaluate_epoch = evaluate_slowly
    return training


def plan_six_epochs(training: Trainer) -> Recipe:
    if training.recipe.steps_per_epoch is None:
        training.limit_finetuning(25.0)
    return training.recipe.replace(steps_per_epoch=4)


@pytest.mark.parametrize(
    ("seconds", "settings", "phases", "steps"),
    [
        (10.0, {}, [1, 2, 2, 2, 4], {2: 10}),  # two and a half epochs
        (4.0, {}, [1, *[2] * 6, 4], {2: 24}),
        (30.0, {}, [1, 2, 4], {2: 4}),
        (10.0, {"unfreeze": "gradual"}, [1, 2, 2, 3, 4], {2: 5, 3: 4}),  # 12.5 s for each of the two
    ],
)
def test_fine_tuning_ends_with_its_time(
    seconds: float,
    settings: dict,
    phases: list[int],
    steps: dict[int, int],
    data: DatasetSplits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    training, rates = slow_trainer(data, tmp_path, seconds, **settings), {}
    take_step = training._train_step

    def note_rate(phase: Phase, *args: Any) -> None:
        step = training.state.step
        take_step(phase, *args)
        rates.setdefault(phase.number, {})[step] = phase.optimizer.param_groups[-1]["lr"]

    monkeypatch.setattr(training, "_train_step", note_rate)
    assert [record.phase for record in training.train(plan_six_epochs)] == phases
    tuned = {phase: list(of_step) for phase, of_step in rates.items() if phase in (2, 3)}
    assert tuned == {phase: list(range(n)) for phase, n in steps.items()}
    last, total = steps[2] - 1, max(steps[2], 6 * 4 if steps[2] == 4 else 0)  # the first epoch is not cut short
    expected = training.recipe.learning_rates[0] * lr_factor("cosine", last, total, [], "accuracy")
    assert rates[2][last] == pytest.approx(expected)  # otherwise the cosine has come down


@pytest.mark.parametrize("fails_in", [2, 3, 4])
def test_what_ended_with_its_time_ends_there_when_resumed(fails_in: int, data: DatasetSplits, tmp_path: Path):
    """Interrupted after any epoch of fine-tuning, also after the last, which was a part of one."""
    whole = slow_trainer(data, tmp_path / "whole")
    phases = [record.phase for record in whole.train(plan_six_epochs)]
    interrupted = slow_trainer(data, tmp_path / "run")
    interrupted.listener = StopsAfter(99, fails_in)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train(plan_six_epochs)
    resumed = slow_trainer(data, tmp_path / "run", steps_per_epoch=4)
    assert [record.phase for record in resumed.train(plan_six_epochs)] == phases == [1, 2, 2, 2, 4]
    for one, other in zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_without_validation_photos_the_last_epoch_counts(data: DatasetSplits, tmp_path: Path):
    bare = DatasetSplits(data.images, data.labels, data.train, data.val[:0], data.test)
    training = trainer(bare, tmp_path, frozen_epochs=1, epochs=2)
    history = training.train()
    assert training.best_epoch() == 3 and all(math.isnan(row.val_loss) for row in history)


def test_an_array_file_is_a_npy_file(tmp_path: Path):
    with NpyWriter(tmp_path / "a.npy") as file:
        file.append(torch.arange(6.0).view(3, 2))
        file.append(torch.arange(6.0, 10.0).view(2, 2))
    assert np.array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), np.arange(10.0).reshape(5, 2))


def test_a_learning_rate_a_hundred_times_too_high_is_noticed_undone_and_lowered(
    data: DatasetSplits, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = {"exact": True, "head": "multi_stage", "epochs": 4, "steps_per_epoch": 20, "schedule": "constant"}
    training = trainer(data, tmp_path, "+head=multi_stage", **settings | {"lr": 1.0, "backbone_lr": 0.5})
    with caplog.at_level("INFO", logger="fieldmark"):
        history = training.train()
    probe, *tuned = history
    assert "going on from the best weights with 0.3 x the learning rates" in caplog.text
    chance = math.log(3)
    assert [record.phase for record in tuned] == [2, 2, 2, 2, 4]
    assert tuned[-1].train_loss < chance and math.isfinite(tuned[-1].val_loss)
    assert history[training.best_epoch() - 1].val_accuracy >= probe.val_accuracy
    assert all(parameter.isfinite().all() for parameter in training.network.parameters())


def test_an_epoch_with_a_clearly_higher_loss_is_none_to_return_to(
    data: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Trainer, "_can_undo", lambda self: False)  # as within the first steps
    settings = {"exact": True, "epochs": 1, "steps_per_epoch": 20, "schedule": "constant"}
    rates = {"lr": 1.0, "backbone_lr": 0.5}
    probe, tuned, refit = trainer(data, tmp_path, "+head=multi_stage", **settings, **rates).train()
    assert tuned.train_loss > 2 * probe.train_loss
    assert refit.val_loss == pytest.approx(probe.val_loss, rel=1e-3)  # of the features before the epoch


@pytest.mark.parametrize("backbone_lr", [0.0003, 1e30])
def test_a_loss_that_is_not_finite_is_undone_too(
    data: DatasetSplits, tmp_path: Path, caplog: pytest.LogCaptureFixture, backbone_lr: float
):
    settings = {"exact": True, "epochs": 2, "steps_per_epoch": 5, "backbone_lr": backbone_lr}
    training = trainer(data, tmp_path, "+head=multi_stage", **settings)
    with caplog.at_level("INFO", logger="fieldmark"):
        history = training.train()
    assert ("going on from the best weights" in caplog.text) == (backbone_lr > 1)
    assert all(math.isfinite(record.train_loss) for record in history), history
    assert all(parameter.isfinite().all() for parameter in training.network.parameters())
