"""This machine -> ready for torch: allocator, threads, quiet libraries; and what a report says of it."""

import atexit
import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROCESS_START = time.monotonic()
"""When the program began, before anything heavy is imported: a budget on the command line counts from here."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@cache
def tune_malloc() -> bool:
    """Tell glibc to keep large freed blocks instead of giving them back to the kernel.

    Every large activation would otherwise cost page faults: training on a CPU takes up to twice the time
    (docs/performance.md). `FIELDMARK_MALLOC=default` leaves the allocator alone. -> whether it was set.
    """
    if os.environ.get("FIELDMARK_MALLOC") == "default" or not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # musl has neither
        return False


def trim_malloc() -> None:
    """What a passing need for much memory has left goes back to the kernel (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_torch() -> None:
    """Before torch works: the allocator, as many threads as cores, and no chatter of libraries."""
    tune_malloc()
    atexit.register(gc.freeze)  # or Python looks through all that torch has made, for two seconds, before it ends
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True  # the same bits every time
    for module in ("lightning_fabric", "torch", "onnxscript", "onnx_ir"):
        warnings.filterwarnings("ignore", module=module)


def describe_environment() -> dict[str, str | int]:
    """Versions and hardware, for the record."""
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
