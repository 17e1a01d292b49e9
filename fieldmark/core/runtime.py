"""The process and its machine: allocator, CPUs, PyTorch's settings, and their description in a report."""

import contextlib
import ctypes
import logging
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROCESS_START = time.monotonic()
"""`time.monotonic()` of the program's start, before heavy imports: a budget on the command line counts from here."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"


@cache
def tune_malloc() -> bool:
    """Tell glibc to keep large freed blocks instead of giving them back to the kernel.

    Otherwise every large activation costs page faults, and training on a CPU takes up to twice the time
    (docs/lab/network-speed.md). `FIELDMARK_MALLOC=default` leaves the allocator alone. Returns whether it was set.
    """
    if os.environ.get("FIELDMARK_MALLOC") == "default" or not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # musl has neither
        return False


def trim_malloc() -> None:
    """Return freed memory to the operating system (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def available_cpus() -> int:
    """Processors that this process may use: the CPU affinity, and the CPU quota of its control group if that is less.

    `docker run --cpus 2` sets a quota, which neither `os.cpu_count` nor the affinity shows. A fraction counts as one.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


@cache
def _cgroup_cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Processors that the control group grants (the least of it and its parents), or None without a limit."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, name in groups:
        base = root if not controllers else root / controllers
        if not controllers or "cpu" in controllers.split(","):
            own = base / name.lstrip("/")
            folders = [folder for folder in (own, *own.parents) if folder == base or base in folder.parents]
            quotas += [quota for folder in folders if (quota := _read_quota(folder)) is not None]
    return min(quotas, default=None)


def _read_quota(folder: Path) -> float | None:
    """The quota of one control group: `cpu.max` of version 2, `cpu.cfs_*_us` of version 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


@contextmanager
def torch_settings() -> Iterator[None]:
    """PyTorch set up for reproducible and fast work; the process's own settings are restored at the end.

    Sets one thread for each available CPU (`OMP_NUM_THREADS` wins), deterministic cuDNN, flushing of denormal numbers,
    filters for warnings of libraries, and restores them as well as the state of the random generators, so that training
    inside somebody's program leaves no trace. The allocator's setting (`tune_malloc`) stays: it changes no result.

    Denormals: an optimiser's averages of weights that never have a gradient fall below the smallest normal number, with
    which a processor computes twenty times as slowly (docs/lab/network-speed.md). The threads of PyTorch that compute
    take the setting over when they are started.
    """
    tune_malloc()
    import torch

    cudnn: Any = torch.backends.cudnn
    threads, fabric = torch.get_num_threads(), logging.getLogger("lightning_fabric")
    flags, flush, level = (cudnn.benchmark, cudnn.deterministic), _flushes_denormals(), fabric.level
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        for module in ("lightning_fabric", "torch", "onnxscript", "onnx_ir"):
            warnings.filterwarnings("ignore", module=module)
        torch.set_flush_denormal(True)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(available_cpus())
        cudnn.benchmark, cudnn.deterministic = False, True
        fabric.setLevel(logging.WARNING)  # it announces each of its choices
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = flags
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flush)
            fabric.setLevel(level)


@contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """These loggers report errors alone; their levels are restored at the end."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import onnxruntime here: 1.32 sends events to its makers unless ORT_DISABLE_TELEMETRY is set (its Privacy.md).

    It reads the variable when it is imported. One that the user has set is respected, and none is left behind. Where
    the program has imported onnxruntime before, its choice holds.
    """
    is_set = TELEMETRY_VARIABLE in os.environ
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")
    try:
        yield
    finally:
        if not is_set:
            os.environ.pop(TELEMETRY_VARIABLE, None)


def _flushes_denormals() -> bool:
    """Whether this thread computes denormal numbers as zeros; PyTorch has no getter."""
    import torch

    return float(torch.tensor(1e-39) * 1.0) == 0.0


def default_device() -> "torch.device":
    """The device that PyTorch computes on: the current GPU, Apple's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bf16() -> bool:
    """Whether bfloat16 is faster than 32 bits: on GPUs since Ampere, on CPUs with AVX-512 BF16 or AMX."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def describe_environment() -> dict[str, str | int]:
    """Versions of the libraries, and the hardware: what metrics.json records."""
    environment: dict[str, str | int] = {"python": platform.python_version()}
    for package in ("fieldmark", "torch", "torchvision", "lightning-fabric", "onnxruntime", "numpy", "pillow"):
        try:
            environment[package] = version(package)
        except PackageNotFoundError:
            continue
    return environment | {"machine": platform.platform(), "cpu": _cpu_model(), "threads": available_cpus()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
