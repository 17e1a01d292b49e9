"""A checkpoint gives back every bit, is whole or absent, and never more than a refusal when it is damaged."""

import copy
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.state import load_state, save_state, snapshot
from fieldmark.training import checkpoint

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tensors(draw) -> torch.Tensor:
    """Any dtype and shape, sometimes not contiguous, with the bits of NaN and the infinities in it."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = torch.randn(shape, generator=generator, dtype=torch.float64).mul(50).to(draw(st.sampled_from(DTYPES)))
    if made.is_floating_point() and made.numel() > 2:
        made.view(-1)[:3] = torch.tensor([math.nan, math.inf, -0.0])
    return made.transpose(0, -1) if made.ndim > 1 else made


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, list[int], bytes]:
    plain = tensor.contiguous()
    return tensor.dtype, list(tensor.shape), bytes(plain.reshape(-1).view(torch.uint8).tolist())


@given(tensors=st.dictionaries(st.text(min_size=1).filter(lambda n: n != "__metadata__"), tensors(), max_size=4))
def test_round_trip_to_the_bit(tensors: dict[str, torch.Tensor], tmp_path: Path):
    save_state(tmp_path / "c.safetensors", tensors, {})
    loaded, _ = load_state(tmp_path / "c.safetensors")
    assert {name: bits(t) for name, t in loaded.items()} == {name: bits(t) for name, t in tensors.items()}
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@given(counters=st.dictionaries(st.text(), JSON, max_size=4))
def test_round_trip_of_counters(counters: dict[str, Any], tmp_path: Path):
    save_state(tmp_path / "c.safetensors", {"x": torch.zeros(1)}, counters)
    assert load_state(tmp_path / "c.safetensors")[1] == counters


def test_counters_keep_what_is_not_a_number(tmp_path: Path):
    save_state(tmp_path / "c.safetensors", {}, {"loss": math.nan})
    assert math.isnan(load_state(tmp_path / "c.safetensors")[1]["loss"])


@given(cut=st.integers(0, 600), flip=st.integers(0, 600), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read(cut: int, flip: int, value: int, tmp_path: Path):
    file = tmp_path / "c.safetensors"
    save_state(file, {f"layer.{k}": torch.ones(k, 3) for k in range(4)}, {"step": 3})
    whole = bytearray(file.read_bytes())
    whole[flip % len(whole)] = value
    cut %= len(whole)
    file.write_bytes(whole[:cut])
    with pytest.raises(FieldmarkError, match="another --out"):
        load_state(file)
    file.write_bytes(whole)
    try:
        load_state(file)
    except FieldmarkError as error:
        assert "\n" not in str(error)


def test_another_safetensors_file_is_no_checkpoint(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(FieldmarkError):
        load_state(tmp_path / "c.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors", metadata={"counters": "{"})
    with pytest.raises(FieldmarkError):
        load_state(tmp_path / "c.safetensors")


def test_a_kill_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "c.safetensors"
    save_state(file, {"x": torch.zeros(2)}, {"step": 1})

    def killed(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fieldmark.core.io.os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            save_state(file, {"x": torch.ones(2)}, {"step": 2})
    assert load_state(file)[1] == {"step": 1}
    save_state(file, {"x": torch.ones(2)}, {"step": 3})
    assert load_state(file)[1] == {"step": 3}


def test_nothing_of_it_is_a_pickle(tmp_path: Path):
    file = tmp_path / "c.safetensors"
    save_state(file, {"x": torch.zeros(2)}, {"step": 1})
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    assert set(header) == {"x", "__metadata__"}


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    ],
)
def test_an_optimizer_goes_on_to_the_same_bits(make, tmp_path: Path):
    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for k in range(first, last):
            optimizer.zero_grad()
            net(torch.arange(150.0).add(k).sin().view(2, 3, 5, 5)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 2)).to(memory_format=torch.channels_last)
    optimizer = make(net.parameters())
    steps(net, optimizer, 0, 3)
    saved = {f"net.{n}": t for n, t in snapshot(net).items()}
    saved |= {f"optimizer.{n}": t for n, t in checkpoint.optimizer_tensors(optimizer).items()}
    save_state(tmp_path / "c.safetensors", saved, {})
    steps(net, optimizer, 3, 6)

    loaded, _ = load_state(tmp_path / "c.safetensors")
    again = copy.deepcopy(net)
    again.load_state_dict(checkpoint.select_prefix(loaded, "net"))
    resumed = make(again.parameters())
    checkpoint.restore_optimizer(resumed, checkpoint.select_prefix(loaded, "optimizer"))
    steps(again, resumed, 3, 6)
    for ours, theirs in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_snapshot_is_a_copy():
    net = nn.Linear(2, 2)
    before = snapshot(net)
    with torch.no_grad():
        net.weight.add_(1)
    assert not torch.equal(before["weight"], net.weight)


def test_parts_do_not_mix():
    tensors = {name: torch.zeros(1) for name in ("now.a", "nowhere.b", "now", "best.now.c")}
    assert list(checkpoint.select_prefix(tensors, "now")) == ["a"]
    assert list(checkpoint.select_prefix(tensors, "best")) == ["now.c"]


def test_it_waits_until_a_network_disk_shows_what_was_written(tmp_path, monkeypatch):
    written = threading.Timer(0.5, lambda: ((tmp_path / "run").mkdir(), (tmp_path / "run" / "x").touch()))
    written.start()
    checkpoint.wait_for_file(tmp_path / "run" / "x")
    assert (tmp_path / "run" / "x").exists()
    monkeypatch.setattr(checkpoint, "FILE_TIMEOUT_S", 0)
    with pytest.raises(FieldmarkError, match="all machines need the same shared --out"):
        checkpoint.wait_for_file(tmp_path / "elsewhere" / "x")
