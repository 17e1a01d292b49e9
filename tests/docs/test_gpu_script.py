"""benchmarks/gpu.py, as far as a machine without a GPU can try it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (2, 1, "")
    assert done.stdout.startswith("no GPU: ")


@pytest.mark.slow
def test_a_dry_run_checks_the_cpu_against_itself(small_photos: Path, tmp_path: Path):
    out = tmp_path / "gpu.json"
    words = ["--dry-run", "--images", small_photos, "--epochs", "2", "--out", out, "--train", "--batch", "8"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, "--image-size", "64", "--train-size", "64"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert len(result["checks"]) == 8 and all(check["holds"] for check in result["checks"])
    assert result["resumed_to_the_bit"] and all(rate > 0 for rate in result["images_per_second"].values())
