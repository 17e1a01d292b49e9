"""Every setting does its work: from the command line and from YAML, alone and together with others."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from slow import mark_slow_except

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import DatasetSplits, iter_eval_batches
from fieldmark.models import build
from fieldmark.pipeline.finish import extract_features_and_logits
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.frozen_features import pack_maps
from fieldmark.training.trainer import Trainer

OTHER = {
    "quality": "good", "backbone": "resnet50", "attention": "se(ratio=8)", "after": "-1:mask", "head": "gem",
    "aux": True, "weights": "none", "image_size": 64, "train_size": 48, "start_size": 32, "pad": 4, "channels": 1,
    "standardise": True, "augment": "flip-crop", "mixup": 0.2, "cutmix": 1.0, "imbalance": "sampling", "batch": 0,
    "accumulate": 4, "exact": False, "frozen_epochs": 3, "frozen_lr": 0.5, "epochs": 7, "unfreeze": "gradual",
    "optimizer": "sgd", "lr": 0.25, "backbone_lr": 0.125, "find_lr": True, "schedule": "plateau",
    "weight_decay": 0.0, "decay_all": True, "label_smoothing": 0.0, "ema": 0.99, "monitor": "loss", "patience": 3,
    "budget": "5m", "steps_per_epoch": 9, "precision": "bf16", "compile": True, "devices": 2, "nodes": 2,
    "logger": "wandb,mlflow", "allow_leaks": True, "seed": 7, "group_by": "patient", "split_file": "split.csv",
    "test_share": 0.25,
    "folds": 5, "fold": 2, "apply": "decisions.csv", "crop_boxes": True, "lang": "zh", "positive": "sick",
    "stream": True,
}  # fmt: skip
"""Of each setting something else than its default."""


def words(settings: dict[str, Any]) -> list[str]:
    """The settings as options."""
    said = []
    for name, value in settings.items():
        option = recipes.option_name(name)
        said += [option if value else f"--no-{option[2:]}"] if isinstance(value, bool) else [option, str(value)]
    return said


@pytest.fixture
def understood(here, monkeypatch: pytest.MonkeyPatch):
    """The recipe that a command line means."""
    heard: list[Recipe] = []

    def train(photos: str, recipe: Recipe, **_: object) -> None:
        heard.append(recipe)
        raise FieldmarkError("heard")

    monkeypatch.setattr("fieldmark.pipeline.train.train", train)

    def understand(*arguments: object) -> Recipe:
        assert here("train", "photos", "--out", "run", *arguments).refusal == "heard"
        return heard.pop()

    return understand


def test_every_setting_can_be_said_on_the_command_line_and_in_a_file(understood, tmp_path: Path):
    assert set(OTHER) == set(Recipe.model_fields)
    assert understood() == Recipe()
    for name, value in OTHER.items():
        assert value != getattr(Recipe(), name)
        recipe = Recipe().replace(**{name: value})
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({name: value}))
        assert understood(*words({name: value})) == understood("--recipe", tmp_path / "one.yaml") == recipe, name
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(OTHER))
    assert understood("--recipe", tmp_path / "all.yaml") == understood(*words(OTHER)) == Recipe(**OTHER)


def test_options_win_over_the_file(understood, tmp_path: Path):
    recipes.write_recipe(Recipe(**OTHER), tmp_path / "all.yaml")
    plain = {name: value for name, value in Recipe().to_dict().items() if value is not None}
    absent = {name: value for name, value in OTHER.items() if name not in plain}
    assert understood("--recipe", tmp_path / "all.yaml", *words(plain)) == Recipe(**absent)
    classic = understood("--recipe", "classic", "--monitor", "loss", "--exact")
    assert classic == recipes.read_recipe("classic").replace(monitor="loss", exact=True)


def test_a_run_tells_once_what_is_without_effect(here, small_photos, tmp_path: Path, monkeypatch):
    def stop(self: Trainer, *_: object) -> None:
        raise FieldmarkError("stopped")

    monkeypatch.setattr(Trainer, "train", stop)
    words = ("train", small_photos, "--out", tmp_path / "run", "--resume", "--image-size", 32)
    words += ("--backbone", "resnet18", "--weights", "none", "--frozen-epochs", 3)
    line = "warning: --frozen-epochs: without effect, as --weights none trains all layers from scratch"
    assert [here(*words).err.splitlines().count(line) for _ in range(2)] == [1, 0]
    assert line in (tmp_path / "run" / "log.txt").read_text()


# ---- what they do


def weights(training: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.network.state_dict().items()}


def blind(data: DatasetSplits) -> DatasetSplits:
    """Without validation photos, the last epoch is kept."""
    return dataclasses.replace(data, val=data.val[:0])


def batches(training: Trainer, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and targets of phase 2's first steps."""
    training.phase_builder.enter_phase(2)
    found = list(training.phase_builder.build_finetune_phase(2, training.recipe).batches(0, steps))
    return torch.cat([pack_maps(maps) for maps, _ in found]), torch.cat([targets for _, targets in found])


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("sgd", "cosine"), ("sgd", "steps"), ("adamw", "plateau"), ("adam", "cosine"), ("adam", "constant")],
)
def test_every_optimiser_and_every_schedule(trainer, optimizer: str, schedule: str):
    training = trainer(optimizer=optimizer, schedule=schedule, epochs=3, patience=9, lr=1e-4)  # nothing diverges
    history = training.train()
    assert [row.phase for row in history] == [1, 2, 2, 2, 4]
    assert all(math.isfinite(row.train_loss) and 0 <= row.val_accuracy <= 1 for row in history)
    rates, highest = [row.lr for row in history[1:-1]], training.recipe.learning_rates[0]  # of an epoch's last step
    expected = [highest, highest / 100, highest / 1000] if schedule == "steps" else [highest] * 3
    assert highest > rates[0] > rates[1] > rates[2] if schedule == "cosine" else rates == pytest.approx(expected)


@pytest.mark.parametrize("mixed", mark_slow_except([{"mixup": 0.4}], [{}, {"mixup": 0.4}, {"imbalance": "weights"}]))
def test_a_batch_in_parts_makes_the_same_step(trainer, few, tmp_path: Path, mixed: dict):
    """To rounding, with frozen norms and where nothing is dropped; half a batch makes another one."""
    torch.manual_seed(5)
    torch.save(build("resnet18_small", classes=3).state_dict(), tmp_path / "weights.pth")
    usual = {"backbone": "resnet18_small", "weights": str(tmp_path / "weights.pth"), "precision": "32", "epochs": 1}
    usual |= {
        "frozen_epochs": 0,
        "steps_per_epoch": 1,
        "image_size": 32,
        "train_size": 32,
        "lr": 0.1,
        "optimizer": "sgd",
    } | mixed
    steps = []
    for batch, accumulate in ((6, 1), (6, 3), (2, 1)):
        training = trainer(data=blind(few), batch=batch, accumulate=accumulate, **usual)
        before = weights(training)
        training.train()
        steps.append(torch.cat([(after - before[name]).flatten() for name, after in weights(training).items()]))
    assert steps[0].norm() > 0.01
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-3, atol=1e-5 * float(steps[0].abs().max()))
    assert (steps[2] - steps[0]).norm() > 0.1 * steps[0].norm()


MIXED = [{"mixup": 0.5}, {"cutmix": 0.5}, {"mixup": 0.5, "cutmix": 0.5}]


@pytest.mark.parametrize("settings", mark_slow_except(MIXED[2:], MIXED))
def test_mixed_photos_have_mixed_targets_and_train(trainer, settings: dict):
    assert batches(trainer(), 4)[1].shape == (24,)
    _, targets = batches(trainer(**settings), 4)
    assert targets.shape == (24, 3) and torch.allclose(targets.sum(1), torch.ones(24))
    assert ((targets > 0.01) & (targets < 0.99)).any()
    history = trainer(**settings, optimizer="adamw", accumulate=2, imbalance="weights").train()
    assert all(0 < row.train_loss < math.inf for row in history) and len(history) == 4


def test_rare_classes_count_more_or_come_more_often(trainer, few):
    rare = dataclasses.replace(few, train=np.array([k for k in few.train if k % 3 or k < 6]))  # 2 of class 0, 6 each
    share, given = {}, {}
    for imbalance in ("none", "sampling", "weights"):
        training = trainer(data=rare, imbalance=imbalance)
        share[imbalance] = (batches(training, 70)[1] == 0).float().mean().item()
        given[imbalance] = training.phase_builder.class_weights
    assert share["none"] == share["weights"] == pytest.approx(2 / 14)  # thirty whole passes
    assert share["sampling"] == pytest.approx(1 / 3, abs=0.07)
    assert given["none"] is given["sampling"] is None
    assert given["weights"][0] == pytest.approx(3 * given["weights"][1]) == pytest.approx(3 * given["weights"][2])


def test_the_running_mean_is_what_is_judged_and_kept(trainer):
    plain, mean = (trainer(ema=ema, frozen_epochs=0, epochs=2, monitor="loss") for ema in (0.0, 0.9))
    histories = [plain.train(), mean.train()]
    assert [h.train_loss for h in histories[0]] == [h.train_loss for h in histories[1]]  # the same steps
    assert [h.val_loss for h in histories[0]] != [h.val_loss for h in histories[1]]
    logits = torch.from_numpy(extract_features_and_logits(mean, mean.phase_builder.frozen_features.val_maps())[1])
    loss = torch.nn.functional.cross_entropy(logits, mean.phase_builder.val_labels).item()
    assert loss == pytest.approx(min(h.val_loss for h in histories[1]), rel=1e-5)


def test_small_photos_first(trainer, packed, tmp_path):
    training = trainer(data=packed(tmp_path, 128), image_size=128, train_size=128, start_size=64, epochs=6)
    training.phase_builder.enter_phase(2)
    phase = training.phase_builder.build_finetune_phase(2, training.recipe)
    first = [
        next(iter(phase.batches(epoch * phase.steps_per_epoch, (epoch + 1) * phase.steps_per_epoch)))
        for epoch in range(6)
    ]
    assert [maps.shape[-1] for maps, _ in first] == [4, 4, 6, 6, 8, 8]  # a sixteenth of 64, 96 and 128


@pytest.mark.parametrize(
    ("unfreeze", "phases", "moves"),
    [("late", [1, 2, 2, 2, 4], False), ("all", [1, 2, 2, 2, 4], True), ("gradual", [1, 2, 2, 3, 4], True)],
)
def test_how_deep_it_trains(trainer, few, unfreeze: str, phases: list[int], moves: bool):
    training = trainer(data=blind(few), unfreeze=unfreeze, epochs=3, lr=1e-4)  # nothing diverges
    before = weights(training)
    assert [row.phase for row in training.train()] == phases
    moved = {name for name, tensor in weights(training).items() if not torch.equal(before[name], tensor)}
    assert any("conv_stem" in name for name in moved) == moves
    assert any("blocks.5" in name for name in moved) and any("head" in name for name in moved)
    assert not any("running" in name for name in moved)


def test_precision_is_of_the_training_alone(trainer, few):
    """Photos are judged in 32 bits whatever the training computes in; it learns nearly the same."""
    histories, first = [], []
    for precision in ("32", "bf16"):
        training = trainer(precision=precision, frozen_epochs=0, epochs=2)
        (photos,) = iter_eval_batches(few.images, few.val, 64)
        with training.fabric.autocast():
            first.append(training.phase_builder.frozen_features.compute_maps(photos).dtype)
        assert (
            extract_features_and_logits(training, training.phase_builder.frozen_features.val_maps())[1].dtype
            == np.float32
        )
        before = extract_features_and_logits(training, training.phase_builder.frozen_features.val_maps())[1]
        histories.append(training.train())
    assert first == [torch.float32, torch.bfloat16]
    again = trainer(precision="32", frozen_epochs=0)
    assert np.array_equal(before, extract_features_and_logits(again, again.phase_builder.frozen_features.val_maps())[1])
    losses = [[row.train_loss for row in history] for history in histories]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_compiled_part_learns_what_the_plain_one_does(trainer, monkeypatch: pytest.MonkeyPatch):
    """Compiled by the quickest of torch's compilers; the resumed and the kept weights keep their names."""
    compile: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **words: compile(module, **words | {"backend": "eager"}))
    settings: dict[str, Any] = {"precision": "32", "ema": 0.9, "epochs": 2}
    plain, compiled = trainer(**settings), trainer(compile=True, **settings)
    losses = [[row.train_loss for row in training.train()] for training in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert weights(plain).keys() == weights(compiled).keys()


def test_the_write_ups_routine_runs(trainer):
    classic = recipes.read_recipe("classic").to_dict() | {"image_size": 64, "train_size": 64, "epochs": 2}
    history = trainer(**classic | {"backbone": "efficientnet_lite0", "batch": 6}).train()
    assert [row.phase for row in history] == [1, 1, 1, 2, 2]
    assert [row.lr for row in history[3:]] == [1e-4, 1e-4]
