"""A network -> how fast it is on this machine: 10 runs to warm up, 100 timed."""

import statistics
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from fieldmark.core import runtime

WARMUP_RUNS, TIMED_RUNS = 10, 100


@runtime.torch_settings()
def benchmark_network(
    network: str, batch: int, image_size: int | None, time_training: bool, log: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of one forward pass (with `training`, of a whole step) of a batch of random photos.

    Prints a line every 10 runs as the Inception-v3 benchmark does (docs/recipes.md, digits).
    """
    import torch

    from fieldmark.models import build
    from fieldmark.models.profile import check_image_size

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(network).to(device).to(memory_format=torch.channels_last).train(time_training)
    size = image_size or model.preprocessing.size
    check_image_size(model, size)
    photos = torch.randn(batch, model.spec.channels, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def run_step() -> None:
        if time_training:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(photos), labels).backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                model(photos)
        if device == "cuda":
            torch.cuda.synchronize()

    durations = []
    for step in range(WARMUP_RUNS + TIMED_RUNS):
        start = time.perf_counter()
        run_step()
        duration = time.perf_counter() - start
        if step >= WARMUP_RUNS:
            durations.append(duration)
            if (step - WARMUP_RUNS) % 10 == 0:
                log(f"{datetime.now():%H:%M:%S}: step {step - WARMUP_RUNS}, duration = {duration:.3f}")
    mean, sd = statistics.fmean(durations), statistics.stdev(durations)
    label = "Forward-backward" if time_training else "Forward"
    log(f"{datetime.now():%H:%M:%S}: {label} across {TIMED_RUNS} steps, {mean:.3f} +/- {sd:.3f} sec / batch")
    return {
        "network": network, "batch": batch, "image_size": size, "train": time_training, "device": device,
        "mean_s": mean, "sd_s": sd, "images_per_s": batch / mean,
    }  # fmt: skip
