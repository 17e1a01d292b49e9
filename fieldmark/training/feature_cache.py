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

FEATURES = ("train_features.npy", "val_features.npy")


def lend(shared: Path, trainer: Trainer, out: Path) -> float:
    """Put what `shared` has for this trainer into the run's folder, as links. -> the seconds that it had taken."""
    place = shared / _key(trainer, out)
    told = place / "seconds.json"
    if not told.exists():
        return 0.0
    for file in place.glob("*.npy"):
        _link(file, out / "resume" / file.name)
    maps = place / f"val_maps-{_cut(trainer)}.npy"
    if len(trainer.routine.frozen.prefix) and not maps.exists():  # with the features its maps would come anew
        (out / "resume" / FEATURES[1]).unlink(missing_ok=True)
    elif maps.exists():
        _link(maps, out / "resume" / "val_maps.npy")
    return json.loads(told.read_text(encoding="utf-8"))


def keep(shared: Path, trainer: Trainer, out: Path, seconds: float) -> None:
    """Keep for others what this run has computed."""
    place, files = shared / _key(trainer, out), [out / "resume" / name for name in FEATURES]
    if not all(file.exists() for file in files):
        return
    place.mkdir(parents=True, exist_ok=True)
    maps = out / "resume" / "val_maps.npy"
    for file, name in [*((f, f.name) for f in files), (maps, f"val_maps-{_cut(trainer)}.npy")]:
        if file.exists() and not (place / name).exists():
            _link(file, place / name)
    if not (place / "seconds.json").exists():
        (place / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def _link(file: Path, place: Path) -> None:
    """These files are never written into once they are whole, so two names for one will do."""
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:  # a file system without them
        half = place.with_suffix(".half")
        shutil.copyfile(file, half)
        half.replace(place)


def _cut(trainer: Trainer) -> str:
    return str(trainer.routine.cuts[0]).replace("/", "_")


def _key(trainer: Trainer, out: Path) -> str:
    """A name for all that decides the features of phase 1."""
    routine, recipe, network = trainer.routine, trainer.recipe, trainer.network
    spec, (_, tail) = network.spec, routine.frozen.end()
    changes = [] if spec["inserted"] else [words for words in (spec["attention"], spec["after"]) if words]
    if (spec["attention"] or "").startswith(("replace(", "none")):
        changes.append(spec["attention"])
    head = network.head
    pooled = (
        "" if len(tail) or type(head).reduce is Head.reduce else f"{type(head).__name__} {getattr(head, 'pool', '')}"
    )
    audit = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    split = hashlib.sha256((out / "split.csv").read_bytes()).hexdigest()
    parts = [spec["backbone"], spec["channels"], recipe.weights, changes, pooled, routine.size, recipe.precision]
    parts += [spec["pad"], audit["fingerprint"], split, routine.exact and recipe.augment != "none", recipe.crop_boxes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
