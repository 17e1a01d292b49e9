"""Backbone x attention x head: everything builds with the right shapes, and a cover of all pairs takes a training step.

`make test` takes a few small networks, `make test-all` one of each family. The full product takes its training steps in
benchmarks/compose.py.
"""

from itertools import combinations, product
from typing import Any

import pytest
import torch
from slow import mark_slow_except
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.models import VARIANTS, Mask, Network, build
from fieldmark.models.spec import ATTENTIONS, HEADS
from fieldmark.models.weights import load_weights

# The smallest of each family's file; 80 pixels pass through all of them.
FAMILIES = (
    *("alexnet", "vgg11", "googlenet", "bn_inception", "inception_v3", "inception_v4", "inception_resnet_v2"),
    *("se_inception_resnet_v2", "resnet18", "seresnet50", "densenet121", "efficientnet_b0", "mobilenet_v3_small"),
    "xception",
)
SMALL = ("alexnet", "resnet18", "efficientnet_b0", "mobilenet_v3_small")
SIZE = 80
GATES = [word for word in ATTENTIONS if word != "none"]
PLACES = ("inside", "first stage", "last stage")


def combinations_with(words: list[str]) -> list[Any]:
    """(network, words to try with it): all words for the smallest of a family, one or another for its larger ones.

    What is fast is a few words of each family, and all of one.
    """
    tried = [pytest.param(name, [words[k % len(words)]], id=name) for k, name in enumerate(FAMILIES)]
    tried.append(pytest.param("resnet18", words, id="resnet18 and all"))
    for k, name in enumerate(VARIANTS):
        all_or_one = words if name in FAMILIES else [words[k % len(words)]]
        tried.append(pytest.param(name, all_or_one, marks=pytest.mark.slow, id=f"{name} in full"))
    return tried


def build_meta(name: str, **settings: Any) -> Network:
    with torch.device("meta"):
        return build(name, **settings).eval()


@pytest.mark.parametrize(("name", "words"), combinations_with(GATES))
def test_every_attention_fits_every_place(name: str, words: list[str]):
    plain = build_meta(name)
    photo = torch.empty(1, 3, 96, 96, device="meta")
    shape, stages = plain.features(photo).shape, len(plain.backbone.stages)
    for word in words:
        network = build_meta(name, attention=word, after=",".join(f"{k}:{word}" for k in range(stages)))
        assert len(network.added_attention) >= stages + 1
        met = []

        def same_shape(slot: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, met: list[str] = met) -> None:
            assert output.shape == inputs[0].shape
            met.append(type(slot).__name__)

        for slot in network.added_attention.values():
            slot.register_forward_hook(same_shape)
        assert network.features(photo).shape == shape
        assert len(met) == len(network.added_attention)


@pytest.mark.parametrize(("name", "words"), combinations_with(list(HEADS)))
def test_every_head_fits(name: str, words: list[str]):
    photo = torch.empty(2, 3, 96, 96, device="meta")
    for word in words:
        network = build_meta(name, head=word, classes=7)
        assert network(photo).shape == (2, 7)


@pytest.mark.parametrize("name", mark_slow_except(SMALL, FAMILIES))
@torch.no_grad()
def test_inserted_attention_changes_no_bit(name: str):
    torch.manual_seed(0)
    plain = build(name, classes=2).eval()
    state = {key.removeprefix("backbone."): t for key, t in plain.state_dict().items() if key.startswith("backbone.")}
    x = torch.randn(1, 3, SIZE, SIZE)
    before = plain.features(x)
    after = range(len(plain.backbone.stages))
    for word in GATES:
        with torch.device("meta"):
            gated = build(name, attention=word, after=dict.fromkeys(after, word), head="linear", classes=2)
        gated = gated.to_empty(device="cpu").eval()
        for slot in gated.added_attention.values():
            draw(slot)
        assert load_weights(gated, state, VARIANTS[name], published_head=False, source="memory").inserted
        assert torch.equal(gated.features(x), before), word


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_map_that_is_kept_stays_what_it_is(name: str):
    backbone = build(name, after="0:mask,-1:mask").eval().backbone
    x = torch.randn(1, 3, SIZE, SIZE)
    slots = [layer for layer, module in backbone.named_modules() if isinstance(module, Mask)]
    for place in (*backbone.stages, *slots):
        prefix, rest = backbone.split_after(place)
        kept = prefix(x)
        before = kept.clone()
        rest(kept)
        assert torch.equal(kept, before), place


def draw(module: nn.Module) -> None:
    """Random weights for what was made without memory."""
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.1)


def cover() -> list[tuple[str, str, str, str, int]]:
    """Every pair of two factors' values occurs in at least one row (test_the_cover_covers_all_pairs)."""
    gates, heads = [*GATES, "none"], list(HEADS)
    rows = []
    for i, name in enumerate(FAMILIES):
        for j, gate in enumerate(gates):
            place, channels = PLACES[(i + 2 * j + j // 3) % 3], (3, 1)[(i + j // 2) % 2]
            rows.append((name, gate, place, heads[(i + j) % len(heads)], channels))
    return rows


def test_the_cover_covers_all_pairs():
    rows = cover()
    factors = (FAMILIES, (*GATES, "none"), PLACES, tuple(HEADS), (1, 3))
    for (a, first), (b, second) in combinations(enumerate(factors), 2):
        assert {(row[a], row[b]) for row in rows} == set(product(first, second))


@pytest.mark.parametrize("name", mark_slow_except(SMALL, FAMILIES))
def test_the_cover_takes_a_training_step(name: str):
    for _, gate, place, head, channels in (row for row in cover() if row[0] == name):
        torch.manual_seed(1)
        stage = {"first stage": 0, "last stage": -1}
        where = {"after": f"{stage[place]}:{gate}"} if place in stage else {"attention": gate}
        # A head of AlexNet's kind is large: narrow, it does the same.
        words = f"{head}(hidden=(8,8))" if head == "classic" else head
        network = build(name, head=words, classes=3, channels=channels, **where).train()  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
        x, labels = torch.randn(2, channels, SIZE, SIZE), torch.tensor([0, 2])
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        what = (name, gate, place, head, channels)
        assert loss.isfinite(), what
        without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not without, what
        assert bool(network.added_attention) == (gate != "none")
