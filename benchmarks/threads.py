"""What sleeping threads and the allocator setting bring: a training step, side by side, idle and beside a busy process.

    python benchmarks/threads.py

Every setting runs in a process of its own, in turn, several rounds; ratios are of medians in the same run.
"""

import os
import statistics
import subprocess
import sys

STEP = """
import os, time
from contextlib import ExitStack
from fieldmark.core import runtime
settings = ExitStack()
settings.enter_context(runtime.torch_settings())
import torch
from fieldmark.models import build
network = build("efficientnet_lite0", classes=6).to(memory_format=torch.channels_last)
photos = torch.randn(32, 3, 192, 192).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
times = []
for _ in range(6):
    began = time.perf_counter()
    optimizer.zero_grad()
    network(photos).sum().backward()
    optimizer.step()
    times.append(time.perf_counter() - began)
print(sorted(times[1:])[2])
"""
SETTINGS = {
    "as shipped": {},
    "threads spin": {"OMP_WAIT_POLICY": "active"},
    "glibc's allocator": {"FIELDMARK_MALLOC": "default"},
}
ROUNDS = 3


def step(setting: str) -> float:
    """Seconds of a step of Lite0 at 192 px, batch 32."""
    command, environment = [sys.executable, "-c", STEP], os.environ | SETTINGS[setting]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    for beside in ("idle", "beside a busy process"):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "idle" else None
        try:
            times: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
            for _ in range(ROUNDS):
                for setting in SETTINGS:
                    times[setting].append(step(setting))
        finally:
            if busy:
                busy.kill()
                busy.wait()
        shipped = statistics.median(times["as shipped"])
        for setting, values in times.items():
            ratio = statistics.median(values) / shipped
            spread = f"{min(values):.2f} to {max(values):.2f}"
            print(f"{beside:22} {setting:18} {statistics.median(values):6.2f} s a step ({spread})  {ratio:5.2f} x")


if __name__ == "__main__":
    main()
