"""Who trains together: what the machine has, what torchrun has started, and one process that stays alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import distributed
from fieldmark.training.frozen_features import FrozenFeatures


@pytest.fixture
def machine_of(monkeypatch: pytest.MonkeyPatch):
    """A machine with so many cores and GPUs."""

    def make(cores: int, gpus: int = 0) -> None:
        monkeypatch.setattr(runtime, "available_cpus", lambda: cores)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return make


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch):
    """As if torchrun had started so many processes on so many machines."""

    def start(processes: int, machines: int = 1) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        monkeypatch.setenv("GROUP_WORLD_SIZE", str(machines))

    return start


def numbers(recipe: Recipe) -> tuple[int, int]:
    return recipe.devices, recipe.nodes


def test_as_many_devices_as_the_machine_has(machine_of):
    machine_of(cores=4)
    assert numbers(distributed.resolve_devices(Recipe(devices=4))) == (4, 1)
    assert numbers(distributed.resolve_devices(Recipe(devices=0))) == (1, 1)
    with pytest.raises(FieldmarkError, match="4 processors and no GPU"):
        distributed.resolve_devices(Recipe(devices=5, batch=40))
    machine_of(cores=64, gpus=2)
    assert numbers(distributed.resolve_devices(Recipe(devices=0))) == (2, 1)
    with pytest.raises(FieldmarkError, match="has 2 GPUs"):
        distributed.resolve_devices(Recipe(devices=4))


def test_several_machines_are_started_by_torchrun():
    with pytest.raises(FieldmarkError, match="torchrun --nnodes 2"):
        distributed.resolve_devices(Recipe(nodes=2))


def test_torchrun_decides(torchrun):
    torchrun(3, 2)
    for asked in (Recipe(batch=12), Recipe(batch=12, devices=3, nodes=2), Recipe(batch=12, devices=0)):
        assert numbers(distributed.resolve_devices(asked)) == (3, 2)
    for asked in (Recipe(batch=12, devices=2), Recipe(batch=12, nodes=3)):
        with pytest.raises(FieldmarkError, match="torchrun has started 3 processes on each of 2 machines"):
            distributed.resolve_devices(asked)
    with pytest.raises(FieldmarkError, match="6 parts"):
        distributed.resolve_devices(Recipe(batch=32))


def test_restarts_need_addresses_of_their_own(torchrun, monkeypatch: pytest.MonkeyPatch):
    torchrun(2)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert numbers(distributed.resolve_devices(Recipe())) == (2, 1)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(FieldmarkError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.resolve_devices(Recipe())
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert numbers(distributed.resolve_devices(Recipe())) == (2, 1)


def test_processes_are_started_once(machine_of, torchrun):
    machine_of(cores=4)
    assert not distributed.needs_workers(Recipe()) and distributed.needs_workers(Recipe(devices=2))
    torchrun(2)
    assert not distributed.needs_workers(Recipe(devices=2))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_one_process_stays_alone_and_says_nothing(precision: str, capfd: pytest.CaptureFixture[str]):
    before = dict(os.environ)
    fabric = distributed.make_fabric(distributed.resolve_devices(Recipe(precision=precision)))
    with distributed.process_group(fabric):
        assert fabric.is_global_zero and fabric.world_size == 1
        assert not torch.distributed.is_initialized()
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


class OneOf:
    """A process of `world`; `others` hold what the others computed in the same turns."""

    def __init__(self, rank: int, world: int, others: list[list[torch.Tensor]]) -> None:
        self.global_rank, self.world_size, self.others, self.turn = rank, world, others, 0

    def all_gather(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        self.others[self.global_rank].append(parts[0])
        self.turn += 1
        return [torch.stack([own[self.turn - 1] if len(own) >= self.turn else parts[0] for own in self.others])]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("photos", [0, 1, 30, 32, 75, 192, 200])
def test_processes_take_turns_and_nothing_is_missing(world: int, photos: int):
    pack = [np.full((4, 4, 3), k, np.uint8) for k in range(photos)]
    computed: list[list[torch.Tensor]] = [[] for _ in range(world)]
    seen = torch.empty(0)
    for rank in reversed(range(world)):  # the last one has heard all the others
        frozen = object.__new__(FrozenFeatures)
        frozen.fabric, frozen.image_size = OneOf(rank, world, computed), 4  # type: ignore[assignment]
        frozen.data = type("Data", (), {"images": pack})()  # type: ignore[assignment]
        which = np.arange(photos)
        parts = frozen._map_distributed(which, lambda batch: [batch[:, 0, 0, 0].float()])
        seen = torch.cat([torch.empty(0), *(part for (part,) in parts)])
    assert seen.tolist() == list(range(photos))


@pytest.mark.parametrize("world", [2, 7])
def test_the_validation_photos_are_shared_out(world: int, few, trainer, monkeypatch: pytest.MonkeyPatch):
    frozen = trainer().phase_builder.frozen_features
    parts = []
    for rank in range(world):
        monkeypatch.setattr(Fabric, "global_rank", rank)
        monkeypatch.setattr(Fabric, "world_size", world)
        parts += frozen.val_maps(trainer().phase_builder.val_shard)
    whole = torch.cat(list(frozen.val_maps()))  # in batches of another size, so up to rounding
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    assert sum(map(len, parts)) == len(few.val)


def test_numbers_below_the_smallest_normal_one_are_zeros_in_every_thread_that_trains():
    program = """
import torch
from fieldmark.core.runtime import torch_settings

with torch_settings():
    torch.set_num_threads(4)
    halved = torch.full((1_000_000,), 1e-39) * 0.5
    print(halved.count_nonzero().item(), torch.ones(3).mul(1e-37).count_nonzero().item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "3"]
