"""What a step of the optimiser costs: torch's three ways, side by side, in milliseconds of one core (median of 9).

    python benchmarks/steps.py vgg11_mnist efficientnet_lite0 se_inception_resnet_v2

A network's last line is of Adam, fused, whose averages are below the smallest normal number, as those of dead weights
come to be: as the processor computes of such, and taken as zeros.
"""

import argparse
import statistics
import time

import torch

import fieldmark

KINDS = {
    "sgd": (torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-6}),
}
WAYS = {"for each tensor": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def milliseconds(optimizer: torch.optim.Optimizer) -> float:
    times = []
    for _ in range(12):
        began = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[3:])


def below_normal(network: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam whose averages have decayed since weights no longer had a gradient."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for values in optimizer.state.values():
        values["exp_avg"].fill_(1e-39)
        values["exp_avg_sq"].fill_(1e-39)
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    torch.set_num_threads(1)  # others would not hear of `set_flush_denormal` any more
    for name in parser.parse_args().networks:
        network = fieldmark.build(name, classes=10).to(memory_format=torch.channels_last)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        for kind, (make, settings) in KINDS.items():
            took = {way: milliseconds(make(network.parameters(), **settings, **how)) for way, how in WAYS.items()}
            print(f"{name}, {kind}: {', '.join(f'{ms:.1f} {way}' for way, ms in took.items())}", flush=True)
        took = {}
        for way, flush in (("below", False), ("as zeros", True)):
            torch.set_flush_denormal(False)
            optimizer = below_normal(network)
            torch.set_flush_denormal(flush)
            took[way] = milliseconds(optimizer)
        print(f"{name}, averages below the normal numbers: {took['below']:.1f}, as zeros {took['as zeros']:.1f}")


if __name__ == "__main__":
    main()
