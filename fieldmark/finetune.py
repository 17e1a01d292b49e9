"""Network + photos -> trained network: phase 1 trains the head on features computed once, phase 2 the later stages too.

The way of a batch in phase 2: uint8 photos -> normalise -> frozen prefix (no gradients) -> trained part -> loss.
A checkpoint is weights, optimiser, step and history; everything else is a function of them, the recipe and the seed,
so a resumed run repeats the uninterrupted one to the bit (same machine, same number of threads).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark import checkpoint
from fieldmark.dataset import Data, Normalise, Varied, draw, judged, varied
from fieldmark.network import Attention, Network
from fieldmark.progress import Reporter
from fieldmark.recipe import Recipe

SAVE_EVERY = 20.0
"""Seconds between checkpoints inside an epoch."""
MOST_EPOCHS = 30
"""More epochs than this a budget does not buy: the write-ups' routine stops there too."""

Row = dict[str, Any]
Batches = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]


@dataclass
class State:
    """Where a training stands; all of it is in the checkpoint."""

    phase: int = 1
    step: int = 0  # steps done in this phase
    loss: float = 0.0  # sums over the running epoch
    right: int = 0
    seen: int = 0
    history: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Phase:
    """What one phase trains, on which batches, and how fast."""

    number: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches  # (first step, last step) -> (input of the module, labels)
    maps: Callable[[], Iterator[Tensor]]  # the validation photos as inputs of the module
    epochs: int
    steps: int  # in an epoch
    schedule: str


class Trainer:
    """Fine-tunes `network` on `data`; `folder` keeps the checkpoint and the cached features.

    `plan(epoch_seconds)` is asked once between the phases when the recipe has a budget.
    """

    def __init__(self, network: Network, data: Data, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        self.network, self.data, self.recipe, self.folder, self.reporter = network, data, recipe, folder, reporter
        self.fabric = Fabric(accelerator="auto", devices=1)
        look = network.preprocessing
        self.size = recipe.image_size or look.size
        self.normalise = Normalise(look.mean, look.std)
        name = frozen_until(network, recipe)
        self.frozen, self.rest = network.backbone.split(name) if name else (nn.Sequential(), network.backbone)
        self.trained = nn.Sequential(self.rest, network.head)
        for module in (self.normalise, self.frozen, self.trained):
            self.fabric.to_device(module.to(memory_format=torch.channels_last))
        self.frozen.eval().requires_grad_(False)
        self.labels = torch.from_numpy(data.labels)
        self.best: dict[str, Tensor] = {}
        self.state = State()
        self.saved = time.monotonic()

    # ---- the way through the phases

    def train(self, plan: Callable[["Trainer"], Recipe] | None = None) -> list[Row]:
        """Both phases; leaves the best epoch's weights in the network. -> history, a row an epoch."""
        loaded = self._resume()
        pretrained = self.recipe.weights != "none"
        with self.reporter.part("features"):
            features = self._features() if pretrained else None
        if self.state.phase == 1:
            with self.reporter.part("phase1"):
                if features is not None and self.recipe.frozen_epochs:
                    self._run(self._phase1(features), loaded)
                self._next_phase()
                loaded = {}
        with self.reporter.part("phase2"):
            if plan is not None:
                self.recipe = plan(self)
            if self.recipe.epochs:
                self._run(self._phase2(), loaded)
        if self.best:
            self.trained.load_state_dict(self.best)
        self.network.eval()
        return self.state.history

    def _next_phase(self) -> None:
        if self.best:
            self.trained.load_state_dict(self.best)
        self.state = State(phase=2, history=self.state.history)
        self._save()

    # ---- what each phase is

    def _phase1(self, features: np.ndarray) -> Phase:
        """The head, and attention behind the last stage, on cached features of the training photos."""
        _, tail = self.rest.split(list(self.network.backbone.stages)[-1])
        module = nn.Sequential(tail, self.network.head)
        self.trained.requires_grad_(False)
        fresh = [m for m in tail.modules() if isinstance(m, Attention)] + [self.network.head]
        for part in fresh:
            part.requires_grad_(True)
        if self.state.step == 0:
            measured = torch.from_numpy(features[: min(len(self.data.train), 512)].copy())
            for part in fresh:
                if isinstance(part, Attention):
                    part.measure(self.fabric.to_device(measured))
        train = len(self.data.train)
        labels = self.labels[torch.from_numpy(self.data.train)]

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            for step in range(first, last):
                turn, place = divmod(step, steps)
                order = np.random.default_rng((self.recipe.seed, 4, turn)).permutation(train)
                which = np.sort(order[place * self.recipe.batch : (place + 1) * self.recipe.batch])
                yield torch.from_numpy(features[which]), labels[torch.from_numpy(which)]

        def maps() -> Iterator[Tensor]:
            for first in range(train, len(features), 256):
                yield torch.from_numpy(features[first : first + 256].copy())

        steps = max(1, train // self.recipe.batch)
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.recipe.frozen_lr, weight_decay=1e-2)
        return Phase(1, module, optimizer, batches, maps, self.recipe.frozen_epochs, steps, "cosine")

    def _phase2(self) -> Phase:
        """Everything behind the frozen prefix, on fresh crops of the training photos."""
        recipe, data = self.recipe, self.data
        self.trained.requires_grad_(True)
        size = recipe.train_size or max(28, round(self.size * 6 / 7 / 32) * 32)
        photos = Varied(data.pack, data.train, data.labels[data.train], size, recipe.augment, recipe.seed)

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            for photos_, labels in varied(photos, recipe.batch, first, last):
                with torch.no_grad():
                    maps = self.frozen(self.normalise(self.fabric.to_device(photos_)))
                yield maps, labels

        steps = recipe.steps_per_epoch or max(1, len(data.train) // recipe.batch)
        groups = parameter_groups(self.network, self.rest, recipe)
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
        return Phase(2, self.trained, optimizer, batches, self._validation, recipe.epochs, steps, recipe.schedule)

    # ---- the loop

    def _run(self, phase: Phase, loaded: dict[str, Tensor]) -> None:
        module, optimizer = self.fabric.setup(phase.module, phase.optimizer)
        checkpoint.restore_optimizer(optimizer.optimizer, checkpoint.part(loaded, "optimizer"))
        rates = [group["lr"] for group in optimizer.param_groups]
        state, total = self.state, phase.epochs * phase.steps
        before = sum(row["phase"] < phase.number for row in state.history)
        with self.reporter.bar(f"phase {phase.number}", "steps") as advance:
            for epoch in range(state.step // phase.steps, phase.epochs):
                if self._stops(phase):
                    break
                began, last = time.monotonic(), (epoch + 1) * phase.steps
                learning_mode(phase.module)
                rate = 0.0
                for inputs, labels in phase.batches(state.step, last):
                    inputs, labels = self.fabric.to_device(inputs), self.fabric.to_device(labels)
                    factor = rate_factor(
                        phase, state.step, total, [r for r in state.history if r["phase"] == phase.number]
                    )
                    for group, base in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = base * factor
                    rate = optimizer.param_groups[-1]["lr"]
                    draw(self.recipe.seed, 3, phase.number, state.step)  # dropout and its like
                    logits = module(inputs)
                    loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
                    optimizer.zero_grad()
                    self.fabric.backward(loss)
                    optimizer.step()
                    state.step += 1
                    state.loss += loss.item() * len(labels)
                    state.right += int((logits.argmax(1) == labels).sum())
                    state.seen += len(labels)
                    advance(state.step, total)
                    if state.step < last and time.monotonic() - self.saved > SAVE_EVERY:
                        self._save(phase.optimizer)
                val_loss, val_accuracy = self._validate(phase)
                row = {
                    "epoch": before + epoch + 1, "phase": phase.number, "lr": rate,
                    "train_loss": state.loss / state.seen, "train_accuracy": state.right / state.seen,
                    "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.monotonic() - began,
                }  # fmt: skip
                state.history.append(row)
                state.loss, state.right, state.seen = 0.0, 0, 0
                if best_epoch(state.history, self.recipe.monitor) == row["epoch"]:
                    self.best = checkpoint.snapshot(self.trained)
                if phase.number == 2 or time.monotonic() - self.saved > SAVE_EVERY:
                    self._save(phase.optimizer)
                self.reporter.say(line(row, before + phase.epochs))

    def _stops(self, phase: Phase) -> bool:
        """Early stopping, in phase 2 only: phase 1 costs next to nothing."""
        mine = sum(row["phase"] == phase.number for row in self.state.history)
        since = len(self.state.history) - self.best_epoch()
        return phase.number == 2 and min(mine, since) >= self.recipe.patience

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """Mean loss and accuracy on the validation photos; not a number where there are none."""
        if not len(self.data.val):
            return math.nan, math.nan
        logits = self.logits(phase.module, phase.maps())
        labels = self.labels[torch.from_numpy(self.data.val)]
        return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()

    def logits(self, module: nn.Module, maps: Iterable[Tensor]) -> Tensor:
        """(n, classes) on the CPU, of a module in eval mode."""
        module.eval()
        with torch.inference_mode():
            return torch.cat([module(self.fabric.to_device(x)).float().cpu() for x in maps])

    def validation_logits(self) -> np.ndarray:
        """(validation photos, classes), by the weights as they are now."""
        return self.logits(self.trained, self._validation()).numpy()

    # ---- what is computed once

    def _features(self) -> np.ndarray:
        """Reduced features of the training photos, then of the validation photos: (photos, c, h', w').

        On the way the validation photos' maps at the cut are kept, so that phase 2 judges them from there.
        """
        folder, last = self.folder, list(self.network.backbone.stages)[-1]
        found = folder / "features.npy"
        if found.exists():
            return np.load(found, mmap_mode="r", allow_pickle=False)
        middle, tail = self.rest.split(last)
        middle.eval()
        which = np.concatenate([self.data.train, self.data.val])
        train, done = len(self.data.train), 0
        features = maps = None
        with torch.inference_mode(), self.reporter.bar("features", "photos") as advance:
            for photos in judged(self.data.pack, which, self.size):
                cut = self.frozen(self.normalise(self.fabric.to_device(photos)))
                x = middle(cut)
                x = self.network.head.reduce(x) if not len(tail) else x
                if features is None or maps is None:
                    features = ArrayFile(folder / "features.half", (len(which), *x.shape[1:]))
                    maps = ArrayFile(folder / "val_maps.npy", (len(which) - train, *cut.shape[1:]))
                features.append(x)
                maps.append(cut[max(0, train - done) :])
                done += len(x)
                advance(done, len(which))
        for written in (features, maps):
            if written is not None:
                written.close()
        (folder / "features.half").replace(found)
        return np.load(found, mmap_mode="r", allow_pickle=False)

    def _validation(self) -> Iterator[Tensor]:
        """The validation photos as inputs of the trained part."""
        kept = self.folder / "val_maps.npy"
        if len(self.frozen) and kept.exists():
            maps = np.load(kept, mmap_mode="r", allow_pickle=False)
            for first in range(0, len(maps), 32):
                yield torch.from_numpy(maps[first : first + 32].copy()).to(memory_format=torch.channels_last)
        else:
            for photos in judged(self.data.pack, self.data.val, self.size):
                with torch.no_grad():
                    yield self.frozen(self.normalise(self.fabric.to_device(photos)))

    # ---- survival

    def _save(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        tensors = {f"now.{name}": value for name, value in self.trained.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if optimizer is not None:
            tensors |= {f"optimizer.{name}": value for name, value in checkpoint.optimizer_tensors(optimizer).items()}
        checkpoint.save(self.folder / "checkpoint.safetensors", tensors, dataclasses.asdict(self.state))
        self.saved = time.monotonic()

    def _resume(self) -> dict[str, Tensor]:
        """Takes up a checkpoint where there is one. -> its tensors."""
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return {}
        tensors, counters = checkpoint.load(file)
        self.state, self.best = State(**counters), checkpoint.part(tensors, "best")
        self.trained.load_state_dict(checkpoint.part(tensors, "now"))
        self.reporter.say(f"resumed in phase {self.state.phase} at step {self.state.step}")
        return tensors

    def best_epoch(self) -> int:
        """Number of the epoch whose weights the network holds; 0 where none was trained."""
        return best_epoch(self.state.history, self.recipe.monitor) if self.state.history else 0

    # ---- speed

    def epoch_costs(self) -> tuple[float, float]:
        """Seconds of a training step and of a look at the validation photos in phase 2, measured on a copy."""
        kept = checkpoint.snapshot(self.trained)
        phase = self._phase2()
        learning_mode(phase.module)
        times = []
        began = time.monotonic()
        for inputs, labels in phase.batches(0, 6):
            loss = F.cross_entropy(phase.module(inputs), self.fabric.to_device(labels))
            phase.optimizer.zero_grad()
            loss.backward()
            phase.optimizer.step()
            times.append(time.monotonic() - began)
            began = time.monotonic()
        self.trained.load_state_dict(kept)
        self.trained.zero_grad()
        few = [maps for maps, _ in zip(phase.maps(), range(6), strict=False)]
        self.logits(phase.module, few[:1])
        began = time.monotonic()
        self.logits(phase.module, few)
        photos = sum(map(len, few))
        look = (time.monotonic() - began) * len(self.data.val) / photos if photos else 0.0
        return float(np.mean(times[2:])), look


def frozen_until(network: Network, recipe: Recipe) -> str | None:
    """The last layer that stays frozen in phase 2, or None when everything trains: no attention may lie before it."""
    if recipe.weights == "none" or recipe.unfreeze == "all":
        return None
    found = None
    for name in network.backbone.stages:
        if any(
            isinstance(m, Attention) and type(m) is not Attention for m in network.backbone.split(name)[0].modules()
        ):
            return found
        found = name
        if name == network.frozen:
            return found
    return found


def parameter_groups(network: Network, rest: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """SGD's groups: backbone and new parts, each with and without decay (biases and norms have none)."""
    slots = {id(p) for m in rest.modules() if isinstance(m, Attention) for p in m.parameters()}
    old = [p for p in rest.parameters() if id(p) not in slots]
    new = [p for p in rest.parameters() if id(p) in slots] + list(network.head.parameters())
    backbone_lr = recipe.lr if recipe.weights == "none" else recipe.backbone_lr
    groups = []
    for parameters, lr in ((old, backbone_lr), (new, recipe.lr)):
        for decayed in (False, True):
            some = [p for p in parameters if (p.ndim > 1) == decayed]
            if some:
                groups.append({"params": some, "lr": lr, "weight_decay": recipe.weight_decay if decayed else 0.0})
    return groups


def learning_mode(module: nn.Module) -> None:
    """Train mode for what trains; what is frozen, batch norms with their running statistics included, stays in eval."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


def rate_factor(phase: Phase, step: int, total: int, history: list[Row]) -> float:
    """What the learning rate is multiplied with: a pure function of the step and, for `plateau`, of the history."""
    if phase.schedule == "plateau":
        drops = wait = 0
        best = -math.inf
        for row in history:
            if row["val_accuracy"] > best:
                best, wait = row["val_accuracy"], 0
            else:
                wait += 1
            if wait == 4:
                drops, wait = drops + 1, 0
        return 0.2**drops
    warm = max(1, total // 10)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, total - warm))))


def best_epoch(history: list[Row], monitor: str) -> int:
    """Number of the best epoch: by accuracy (ties: lower loss), or by loss; the last where nothing was validated."""

    def score(row: Row) -> tuple[float, ...]:
        if math.isnan(row["val_loss"]):
            return (row["epoch"],)
        return (row["val_accuracy"], -row["val_loss"]) if monitor == "accuracy" else (-row["val_loss"],)

    return max(history, key=score)["epoch"]


def line(row: Row, epochs: int) -> str:
    """An epoch as a line of the text log."""
    return (
        f"epoch: {row['epoch']}/{epochs}, train_loss: {row['train_loss']:.4f}, train_acc: {row['train_accuracy']:.4f}, "
        f"val_loss: {row['val_loss']:.4f}, val_acc: {row['val_accuracy']:.4f} ({row['seconds']:.1f} s)"
    )


class ArrayFile:
    """A float32 .npy file written row by row: on a full disk it raises, where a memory map would kill the process."""

    def __init__(self, file: Path, shape: tuple[int, ...]) -> None:
        self.file = file.open("wb")
        np.lib.format.write_array_header_1_0(self.file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def append(self, rows: Tensor) -> None:
        self.file.write(rows.cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())

    def close(self) -> None:
        self.file.close()
