"""Features of frozen layers, shared by runs that would compute the same: one run's work saves the others theirs.

Attention that is inserted into loaded weights starts as the identity, so runs that differ in it alone, or in the head,
see the same features in phase 1.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from fieldmark.models.heads import Head
from fieldmark.training.trainer import Trainer

FEATURE_FILES = ("train_features.npy", "val_features.npy")


def restore_features(cache: Path, trainer: Trainer, out: Path) -> float:
    """Put what `shared` has for this trainer into the run's folder, as links. -> the seconds that it had taken."""
    entry = cache / _cache_key(trainer, out)
    seconds_file = entry / "seconds.json"
    if not seconds_file.exists():
        return 0.0
    for file in entry.glob("*.npy"):
        _link_or_copy(file, out / "resume" / file.name)
    maps = entry / f"val_maps-{_last_frozen_layer(trainer)}.npy"
    if (
        len(trainer.phase_builder.frozen_features.prefix) and not maps.exists()
    ):  # with the features its maps would come anew
        (out / "resume" / FEATURE_FILES[1]).unlink(missing_ok=True)
    elif maps.exists():
        _link_or_copy(maps, out / "resume" / "val_maps.npy")
    return json.loads(seconds_file.read_text(encoding="utf-8"))


def store_features(cache: Path, trainer: Trainer, out: Path, seconds: float) -> None:
    """Keep for others what this run has computed."""
    entry, files = cache / _cache_key(trainer, out), [out / "resume" / name for name in FEATURE_FILES]
    if not all(file.exists() for file in files):
        return
    entry.mkdir(parents=True, exist_ok=True)
    maps = out / "resume" / "val_maps.npy"
    for file, name in [*((f, f.name) for f in files), (maps, f"val_maps-{_last_frozen_layer(trainer)}.npy")]:
        if file.exists() and not (entry / name).exists():
            _link_or_copy(file, entry / name)
    if not (entry / "seconds.json").exists():
        (entry / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def _link_or_copy(file: Path, place: Path) -> None:
    """These files are never written into once they are whole, so two names for one will do."""
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:  # a file system without them
        half = place.with_suffix(".half")
        shutil.copyfile(file, half)
        half.replace(place)


def _last_frozen_layer(trainer: Trainer) -> str:
    return str(trainer.phase_builder.last_frozen_layers[0]).replace("/", "_")


def _cache_key(trainer: Trainer, out: Path) -> str:
    """A name for all that decides the features of phase 1."""
    routine, recipe, network = trainer.phase_builder, trainer.recipe, trainer.network
    spec, (_, tail) = network.spec, routine.frozen_features.split_at_last_stage()
    changes = [] if spec.inserted else [text for text in (spec.attention, spec.after) if text]
    if spec.attention and spec.attention.startswith(("replace(", "none")):
        changes.append(spec.attention)
    head = network.head
    pooled = (
        ""
        if len(tail) or type(head).pre_pool is Head.pre_pool
        else f"{type(head).__name__} {getattr(head, 'pool', '')}"
    )
    audit = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    split = hashlib.sha256((out / "split.csv").read_bytes()).hexdigest()
    parts = [spec.backbone, spec.channels, recipe.weights, changes, pooled, routine.image_size, recipe.precision]
    parts += [
        spec.pad,
        audit["fingerprint"],
        split,
        routine.has_exact_probe and recipe.augment != "none",
        recipe.crop_boxes,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
