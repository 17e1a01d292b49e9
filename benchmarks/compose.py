"""The full product of backbone x attention x place x head: one training step each, on two small photos.

    python benchmarks/compose.py                        # some 8,600 networks: hours
    python benchmarks/compose.py --from 4200            # goes on where it was stopped
    python benchmarks/compose.py --every 97             # a sample of them all
    python benchmarks/compose.py --like resnet --to 20  # the first 20 of the networks with this in their name

A failure is an exception, a loss that is not finite, or a parameter without a finite gradient; each is printed with its
number, and the end says how many there were. The tests take a cover of all pairs (tests/models/test_compose.py).
"""

import argparse
import sys
import time
from functools import cache
from itertools import product

import torch
from torch.nn import functional as F

from fieldmark.core import runtime
from fieldmark.models import VARIANTS, build
from fieldmark.models.profile import layer_table, min_image_size
from fieldmark.models.spec import ATTENTIONS, HEADS

PLACES = {"inside": "attention={}", "first stage": "after=0:{}", "last stage": "after=-1:{}"}
PUBLISHED = "published"  # the head that the network has by itself
CLASSES = 3
SAID = 100  # steps between two words of how far it is


def combinations(like: str) -> list[str]:
    """Every network in words, always in the same order."""
    found = []
    for name, gate, place, head in product(VARIANTS, ATTENTIONS, PLACES, (PUBLISHED, *HEADS)):
        if like in name and (gate != "none" or place == "inside"):
            where = PLACES[place].format(gate)
            found.append(f"{name}+{where}" + ("" if head == PUBLISHED else f"+head={head}"))
    return found


@cache
def size_of(name: str) -> int:
    """Pixels of the smallest photos whose last map is 2 x 2.

    On smaller ones the norms of two photos see two values, and the gradients of a hundred such norms explode.
    """
    with torch.device("meta"):
        network = build(name)
    size = min_image_size(network)
    while min(layer_table(network, size)[-2].shape[1:]) < 2:
        size += 1
    return size


def step(words: str) -> str | None:
    """One training step on two photos. -> what went wrong."""
    torch.manual_seed(0)
    size = size_of(words.partition("+")[0])
    try:
        network = build(words, classes=CLASSES).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
        loss = F.cross_entropy(network(torch.randn(2, 3, size, size)), torch.tensor([0, CLASSES - 1]))
        loss.backward()
        optimizer.step()
    except Exception as error:  # whatever it is: the others come all the same
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]} (at {size} px)"
    if not loss.isfinite():
        return f"a loss of {loss.item()} (at {size} px)"
    wrong = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return f"no finite gradient: {' '.join(wrong[:3])} and {len(wrong)} in all (at {size} px)" if wrong else None


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument("--to", dest="last", type=int, metavar="N", help="number after the last")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth alone: a sample across families")
    parser.add_argument("--like", default="", metavar="WORD", help="networks with this in their name alone")
    options = parser.parse_args()
    words = combinations(options.like)
    chosen = range(len(words))[options.first : options.last : options.every]
    began, failures = time.monotonic(), 0
    for done, number in enumerate(chosen):
        if done % SAID == 0:
            print(f"{number} of {len(words)}, {time.monotonic() - began:.0f} s: {words[number]}", flush=True)
        if problem := step(words[number]):
            failures += 1
            print(f"  {number} {words[number]}: {problem}", flush=True)
    print(f"{len(chosen)} networks took a step in {time.monotonic() - began:.0f} s; {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
