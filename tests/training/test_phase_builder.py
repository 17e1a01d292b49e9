"""What each phase trains and on what: where phase 1 is exact, what one photo does, whose tensors are whose."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fieldmark.pipeline.finish import extract_features_and_logits
from fieldmark.training.frozen_features import TRAIN_MAPS, FeaturePair


@pytest.mark.parametrize(
    ("words", "settings", "exact"),
    [
        ("", {}, True),
        ("+after=-2:se", {}, True),  # it stands in what is frozen in phase 1, and is the identity there
        ("+after=-1:se", {}, False),
        ("+after=-1:mask(norm=True)", {}, False),
        ("+head=bilinear(reduced=4)", {}, False),
        ("+head=linear(hidden=8)", {}, False),
        ("", {"exact": False}, False),
    ],
)
def test_phase_1_is_exact_where_it_is_one_linear_layer(trainer, words: str, settings: dict, exact: bool):
    training = trainer(words, frozen_epochs=2, epochs=1, **settings)
    assert training.phase_builder.has_exact_probe == exact
    history = training.train()
    assert [row.phase for row in history] == ([1, 2, 4] if exact else [1, 1, 2])
    assert all(math.isfinite(row.train_loss) for row in history)


def test_the_row_of_the_exact_head_says_what_it_is_worth(trainer):
    """And it is worth about what thirty epochs of steps are."""
    training = trainer(epochs=0, label_smoothing=0.1)
    (row,) = training.train()
    logits = torch.from_numpy(
        extract_features_and_logits(training, training.phase_builder.frozen_features.val_maps())[1]
    )
    assert row.val_loss == pytest.approx(F.cross_entropy(logits, training.phase_builder.val_labels).item(), rel=1e-4)
    assert row.val_accuracy == (logits.argmax(1) == training.phase_builder.val_labels).float().mean().item()
    stepped = trainer(epochs=0, exact=False, frozen_epochs=30, label_smoothing=0.1).train()
    assert row.train_accuracy >= stepped[-1].train_accuracy - 0.06


def test_the_whole_network_holds_what_trained(trainer):
    training = trainer(unfreeze="gradual")
    for phase in (1, 2, 3):
        training.phase_builder.enter_phase(phase)
        now = training.network.state_dict()
        whole = training.phase_builder.full_state_dict(training.trainable.state_dict())
        assert whole.keys() == now.keys() and all(torch.equal(whole[name], now[name]) for name in now)
        other = {name: tensor + 1 for name, tensor in training.trainable.state_dict().items()}
        moved = {
            name
            for name, tensor in training.phase_builder.full_state_dict(other).items()
            if not torch.equal(tensor, now[name])
        }
        assert {name for name in moved if name.startswith("head.")} == {"head.fc.weight", "head.fc.bias"}
        assert len(moved) == len(other) and (phase < 3) == ("backbone.conv_stem.weight" not in moved)


@pytest.mark.parametrize("settings", [{"batch": 1}, {"batch": 3, "accumulate": 3}, {"batch": 64}])
def test_batches_of_one_photo_and_of_more_than_there_are(trainer, settings: dict):
    training = trainer("+after=-1:mask(norm=True)", frozen_epochs=2, epochs=1, steps_per_epoch=2, **settings)
    assert [row.phase for row in training.train()] == [1, 1, 2]


def test_a_class_of_one_photo(trainer, few):
    alone = dataclasses.replace(few, train=few.train[:4], val=few.val[:0])
    for settings in ({}, {"imbalance": "sampling"}, {"imbalance": "weights", "exact": False}):
        history = trainer(data=alone, batch=2, epochs=1, frozen_epochs=2, **settings).train()
        assert history[-1].phase == (4 if settings.get("exact", True) else 2)


def test_each_phase_sees_the_photos_anew(trainer):
    seen = []
    for phase in (2, 3):
        training = trainer(unfreeze="gradual", epochs=2)
        training.phase_builder.enter_phase(3)
        seen += [
            torch.cat(
                [maps for maps, _ in training.phase_builder.build_finetune_phase(phase, training.recipe).batches(0, 3)]
            )
        ]
    training = trainer(unfreeze="gradual", epochs=2)
    training.phase_builder.enter_phase(3)
    seen += [
        torch.cat([maps for maps, _ in training.phase_builder.build_finetune_phase(3, training.recipe).batches(0, 3)])
    ]
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])


def test_what_does_not_vary_is_computed_once(trainer, monkeypatch: pytest.MonkeyPatch):
    """The same batches as from the photos, each seen once by the frozen part; where they are too many, as always."""
    training = trainer(augment="none", imbalance="sampling", precision="32")
    training.phase_builder.enter_phase(2)
    frozen, seen = training.phase_builder.frozen_features, []
    whole = frozen.compute_maps
    monkeypatch.setattr(frozen, "compute_maps", lambda photos: seen.append(len(photos)) or whole(photos))
    batches = training.phase_builder.build_finetune_phase(2, training.recipe).batches
    kept = list(batches(0, 9))
    assert sum(seen) <= len(training.data.train) + 1  # one more to know how large they are
    kept += batches(9, 12)
    monkeypatch.setattr("fieldmark.training.phase_builder.MAX_CACHED_BYTES", 0)
    anew = list(batches(0, 12))
    assert sum(seen) > 12 * 6
    for (maps, targets), (again, same) in zip(kept, anew, strict=True):
        torch.testing.assert_close(maps, again, rtol=1e-4, atol=1e-4)
        assert torch.equal(targets, same)


def test_a_resumed_phase_gets_the_same_batches(trainer):
    training = trainer(mixup=0.3, cutmix=0.3, imbalance="sampling", augment="strong")
    training.phase_builder.enter_phase(2)
    phase = training.phase_builder.build_finetune_phase(2, training.recipe)
    whole, late = list(phase.batches(0, 5)), list(phase.batches(3, 5))
    for (maps, targets), (again, same) in zip(whole[3:], late, strict=True):
        assert torch.equal(maps, again) and torch.equal(targets, same)
    assert not np.array_equal(whole[0][0], whole[1][0])


# ---- fine-tuning through the last map


def test_fine_tuning_of_a_multi_stage_head_goes_through_the_last_map(trainer):
    """It starts from the best classifier of the last map, and the weights of the other moments stay 0."""
    training = trainer("+head=multi_stage", epochs=2, ema=0.9)
    head, builder = training.network.head, training.phase_builder
    at_start: list[torch.Tensor] = []

    def plan(training):
        at_start.append(head.fc.weight.detach().clone())
        module = builder.build_finetune_phase(2, training.recipe).module
        assert module.state_dict().keys() == training.trainable.state_dict().keys()
        logits = training.compute_logits(module, builder.frozen_features.val_maps())
        whole = training.compute_logits(training.trainable, builder.frozen_features.val_maps())
        torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
        return training.recipe

    refits: list[torch.Tensor] = []
    enter = builder.enter_phase
    builder.enter_phase = lambda phase: (refits.append(head.fc.weight.detach().clone()), enter(phase))[1]
    history = training.train(plan)
    assert [row.phase for row in history] == [1, 2, 2, 4]
    others = torch.ones(head.fc.in_features, dtype=torch.bool)
    others[head.last_map_columns] = False
    for weight in (*at_start, refits[-1]):
        assert not weight[:, others].any() and weight[:, ~others].any()
    assert not torch.equal(at_start[0], refits[-1])
    assert head.fc.weight[:, others].any() == (training.best_epoch() != 3)


def test_the_last_map_alone_has_inputs_of_the_length_that_learning_rates_are_for(trainer):
    training = trainer("+head=multi_stage", epochs=0)
    builder, head = training.phase_builder, training.network.head
    features = builder.frozen_features.compute_features(training.reporter)
    builder.solve_linear_probe(features)
    builder.start_from_last_map(features)
    means = head.standardize(torch.from_numpy(features.train.copy()))[:, head.last_map_columns]
    assert means.square().sum(1).mean().item() == pytest.approx(100, rel=1e-2)


def test_the_refit_is_exact_on_the_features_of_the_tuned_network(trainer, tmp_path: Path):
    training = trainer("+head=multi_stage", epochs=1, lr=0.01)
    *_, refit = training.train()
    training.network.load_state_dict(training.phase_builder.full_state_dict(training.best_weights))
    loaded = [np.load(training.folder / f"tuned_{split}_features.npy") for split in ("train", "val")]
    frozen = training.phase_builder.frozen_features
    assert (training.folder / TRAIN_MAPS).exists()  # from which they were computed
    frozen.folder = tmp_path / "images"
    frozen.folder.mkdir()
    for kept, computed in zip(loaded, frozen.compute_features(training.reporter), strict=True):
        np.testing.assert_allclose(kept, computed, rtol=1e-3, atol=1e-3)
    again = training.phase_builder.solve_linear_probe(FeaturePair(*loaded))
    logits = training.compute_logits(again.module, again.val_batches())
    loss = F.cross_entropy(logits, training.phase_builder.val_labels).item()
    assert loss == pytest.approx(refit.val_loss, rel=1e-3)
