"""A network -> how fast it is on this machine: 10 runs to warm up, 100 timed."""

import statistics
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from fieldmark.core import runtime

WARM_UP, TIMED = 10, 100


def bench(
    network: str, batch: int, image_size: int | None, training: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of one forward pass (with `training`, of a whole step) of a batch of random photos.

    Prints a line every 10 runs as the Inception-v3 benchmark does (docs/recipes.md, digits).
    """
    runtime.prepare()
    import torch

    from fieldmark.models import build
    from fieldmark.models.profile import require_size

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = build(network).to(device).to(memory_format=torch.channels_last).train(training)
    size = image_size or net.preprocessing.size
    require_size(net, size)
    photos = torch.randn(batch, net.spec["channels"], size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)

    def once() -> None:
        if training:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(photos), labels).backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                net(photos)
        if device == "cuda":
            torch.cuda.synchronize()

    durations = []
    for step in range(WARM_UP + TIMED):
        began = time.perf_counter()
        once()
        duration = time.perf_counter() - began
        if step >= WARM_UP:
            durations.append(duration)
            if (step - WARM_UP) % 10 == 0:
                say(f"{datetime.now():%H:%M:%S}: step {step - WARM_UP}, duration = {duration:.3f}")
    mean, sd = statistics.fmean(durations), statistics.stdev(durations)
    what = "Forward-backward" if training else "Forward"
    say(f"{datetime.now():%H:%M:%S}: {what} across {TIMED} steps, {mean:.3f} +/- {sd:.3f} sec / batch")
    return {
        "network": network, "batch": batch, "image_size": size, "train": training, "device": device,
        "mean_s": mean, "sd_s": sd, "images_per_s": batch / mean,
    }  # fmt: skip
