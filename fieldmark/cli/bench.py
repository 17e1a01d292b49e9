"""The speed of a network on this machine: 10 warm-up runs, 100 timed."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fieldmark.core import runtime
from fieldmark.core.timing import measure

WARMUP_RUNS, TIMED_RUNS = 10, 100


@dataclass(frozen=True)
class Benchmark:
    """The measured speed of a network.

    Attributes:
        image_size: pixels of a side.
        time_training: whether a run is a forward and backward pass with a step of SGD, or a forward pass alone.
        mean_seconds, sd_seconds: of a run, that is of one batch.
    """

    network: str
    batch: int
    image_size: int
    time_training: bool
    device: str
    mean_seconds: float
    sd_seconds: float

    @property
    def images_per_second(self) -> float:
        return self.batch / self.mean_seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "batch": self.batch,
            "image_size": self.image_size,
            "train": self.time_training,
            "device": self.device,
            "mean_s": self.mean_seconds,
            "sd_s": self.sd_seconds,
            "images_per_s": self.images_per_second,
        }


@runtime.torch_settings()
def benchmark_network(
    network: str, batch: int, image_size: int | None, time_training: bool, log: Callable[[str], None]
) -> Benchmark:
    """Time a network on a batch of random images of its own size or `image_size`.

    Logs a line every 10 runs as the Inception-v3 benchmark does (docs/reference/recipes.md, digits).
    """
    import torch

    from fieldmark.models import build
    from fieldmark.models.profile import check_image_size

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(network).to(device).to(memory_format=torch.channels_last).train(time_training)
    size = image_size or model.preprocessing.size
    check_image_size(model, size)
    images = torch.randn(batch, model.spec.channels, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def run() -> None:
        if time_training:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                model(images)
        if device == "cuda":
            torch.cuda.synchronize()

    def on_run(step: int, seconds: float) -> None:
        if step % 10 == 0:
            log(f"{datetime.now():%H:%M:%S}: step {step}, duration = {seconds:.3f}")

    timed = measure(run, runs=TIMED_RUNS, warmup=WARMUP_RUNS, on_run=on_run)
    label = "Forward-backward" if time_training else "Forward"
    summary = f"{timed.mean:.3f} +/- {timed.sd:.3f} sec / batch"
    log(f"{datetime.now():%H:%M:%S}: {label} across {TIMED_RUNS} steps, {summary}")
    return Benchmark(network, batch, size, time_training, device, timed.mean, timed.sd)
