"""What a machine is made to do before torch works, and what a report says of it."""

import json
import os
import platform
import subprocess
import sys

import pytest

from fieldmark.core import runtime

# A process of its own: threads and allocator are set once in one.
PREPARED = """
import json, os, sys
import fieldmark
assert "torch" not in sys.modules and "numpy" not in sys.modules
from fieldmark.core import runtime
assert "torch" not in sys.modules
wait = os.environ.get("OMP_WAIT_POLICY")
with runtime.torch_settings():
    import torch
    print(json.dumps({"threads": torch.get_num_threads(), "kept": runtime.tune_malloc(), "wait": wait}))
"""


def prepared(**environment: str) -> dict:
    mine = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "FIELDMARK_MALLOC")
    clean = {name: value for name, value in os.environ.items() if name not in mine}
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True, env=clean | environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_prepare():
    linux = sys.platform.startswith("linux")
    assert prepared() == {"threads": runtime.available_cpus(), "kept": linux, "wait": "passive"}


GIVEN_BACK = """
from pathlib import Path
from fieldmark.core import runtime
import numpy as np
def anonymous():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) >> 10
runtime.tune_malloc()
few, passing = [], []
for _ in range(40):
    passing.append(np.ones(1 << 17))
    few.append(np.ones(1))
used = anonymous()
del passing
kept = anonymous()
runtime.trim_malloc()
assert used - kept < 5 and kept - anonymous() > 30, (used, kept, anonymous())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_given_back_when_asked():
    subprocess.run([sys.executable, "-c", GIVEN_BACK], check=True)


def test_what_the_user_set_wins():
    asked = prepared(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="active", FIELDMARK_MALLOC="default")
    assert asked == {"threads": 1, "kept": False, "wait": "active"}


def test_cores_are_those_that_may_be_used():
    assert 1 <= runtime.available_cpus() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        command = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        command += "from fieldmark.core import runtime; print(runtime.available_cpus())"
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"


def test_describe_goes_into_json():
    found = runtime.describe_environment()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() >= {
        "python",
        "fieldmark",
        "torch",
        "numpy",
        "pillow",
        "onnxruntime",
        "machine",
        "cpu",
        "threads",
    }
    assert all(value not in ("", None) for value in found.values())


def test_describe_goes_on_without_what_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    def missing(package: str) -> str:
        if package == "torch":
            raise runtime.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(runtime, "version", missing)
    assert "torch" not in runtime.describe_environment()
