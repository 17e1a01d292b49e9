"""A library leaves its process as it was: PyTorch's settings, random generators, warning filters."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny import write_model

from fieldmark.core import runtime


def state() -> tuple:
    cudnn = torch.backends.cudnn
    tiny = float(torch.tensor(1e-39) * 1.0)
    level = logging.getLogger("lightning_fabric").level
    return (
        torch.get_num_threads(),
        cudnn.benchmark,
        cudnn.deterministic,
        tiny,
        level,
        tuple(warnings.filters),
        torch.get_rng_state().tolist(),
    )


def test_settings_are_restored_after_an_error_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "available_cpus", lambda: 3)
    before = state()
    with pytest.raises(ValueError), runtime.torch_settings():
        torch.manual_seed(7)
        assert torch.get_num_threads() == 3
        assert torch.backends.cudnn.deterministic
        assert float(torch.tensor(1e-39) * 1.0) == 0.0
        raise ValueError
    assert state() == before


IMPORTED = """
import logging, os, socket, sys, warnings
filters, level = list(warnings.filters), logging.root.manager.disable
import torch
filters = list(warnings.filters)
def state():
    cudnn = torch.backends.cudnn
    return (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic, float(torch.tensor(1e-39) * 1.0),
            socket.getdefaulttimeout(), logging.root.manager.disable, torch.get_rng_state().tolist())
before = state()
import fieldmark
fieldmark.build, fieldmark.train, fieldmark.load, fieldmark.Recipe
from fieldmark.training import distributed
assert state() == before, "an import changed the process"
mine = [f for f in warnings.filters if f not in filters and "fieldmark" in str(f)]
assert not mine, mine
"""


def test_an_import_changes_nothing():
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)


@pytest.mark.parametrize(
    ("files", "line", "quota"),
    [
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"a/cpu.max": "150000 100000"}, "0::/a", 1.5),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 2.0),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, "0::/a/b", 2.0),
        (
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "50000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/d",
            0.5,
        ),
        (
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "-1", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/d",
            None,
        ),
        ({"a/cpu.max": "nonsense"}, "0::/a", None),
        ({}, "0::/gone", None),
    ],
)
def test_a_cpu_quota_of_a_container_is_read(files: dict[str, str], line: str, quota: float | None, tmp_path: Path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    (tmp_path / "membership").write_text(line + "\n")
    assert runtime._cgroup_cpu_quota(tmp_path, tmp_path / "membership") == quota


@pytest.mark.parametrize(("quota", "cpus"), [(None, 8), (2.0, 2), (0.5, 1), (1.5, 2), (64.0, 8)])
def test_a_quota_counts_as_cpus(quota: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "_cgroup_cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert runtime.available_cpus() == cpus


def test_onnxruntime_reports_nothing_to_its_makers(tmp_path: Path):
    """With telemetry it keeps the identifier of the device in the home folder."""
    model = write_model(tmp_path / "model.onnx")
    program = f"""
import os, fieldmark, numpy
before = dict(os.environ)
fieldmark.load({str(model)!r}).predict(numpy.zeros((32, 32, 3), numpy.uint8))
assert dict(os.environ) == before
"""
    (home := tmp_path / "home").mkdir()
    hidden = (runtime.TELEMETRY_VARIABLE, "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert list(home.rglob("deviceid")) == []


def test_a_choice_about_telemetry_is_respected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(runtime.TELEMETRY_VARIABLE, "0")
    with runtime.without_telemetry():
        assert os.environ[runtime.TELEMETRY_VARIABLE] == "0"
    assert os.environ[runtime.TELEMETRY_VARIABLE] == "0"
