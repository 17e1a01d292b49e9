"""Attention in networks: no bit changes when it is inserted, and blocks name the width that it squeezes by."""

from functools import partial

import pytest
import torch

from fieldmark.models import SE, VARIANTS, Attention, build
from fieldmark.models.weights import load_weights

PLACES = {"blocks": ("{}", None), "first": (None, "0:{}"), "last": (None, "-1:{}"), "all": ("{}", "0:{},-2:{},-1:{}")}


@pytest.mark.parametrize("word", ["se(squeezed=3)", "cbam", "coordinate", "mask(widths=(),rescale=True,spread=True)"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
@torch.no_grad()
def test_inserted_attention_changes_no_bit(name: str, place: str, word: str):
    plain = build(name, classes=4).eval()
    inside, after = (pattern and pattern.replace("{}", word) for pattern in PLACES[place])
    gated = build(name, attention=inside, after=after, classes=4).eval()
    x = torch.randn(1, 3, 64, 48)
    before = plain(x)
    state = {
        key.removeprefix("backbone.").replace("head.fc", VARIANTS[name].head_names["fc"]): tensor
        for key, tensor in plain.state_dict().items()
    }
    assert load_weights(gated, state, VARIANTS[name], published_head=True, source="memory").inserted
    assert len(gated.added_attention) > 0
    assert torch.equal(gated.features(x), plain.features(x))
    assert torch.equal(gated(x), before)


def test_blocks_squeeze_by_the_width_that_the_paper_names():
    lite = build("efficientnet_lite0", attention=partial(SE, ratio=4)).added_attention
    widths = {name: slot.fc1 for name, slot in lite.items() if isinstance(slot, SE)}
    first = widths["backbone.blocks.1.0.attention"]  # 16 in, expanded to 96
    assert (first.in_channels, first.out_channels) == (96, 4)
    resnet = build("resnet50", attention="se").added_attention["backbone.layer1.0.attention"]
    assert isinstance(resnet, SE)
    assert (resnet.fc1.in_channels, resnet.fc1.out_channels) == (256, 16)


def test_se_resnet50_has_the_papers_count():
    # The SENet paper's own sizes, as published: 28,088,024.
    with torch.device("meta"):
        assert sum(p.numel() for p in build("resnet50", attention="se").parameters()) == 28_088_024


def test_plain_attention_lets_everything_through():
    x = torch.randn(1, 4, 2, 2)
    attention = Attention(4, 2)
    attention.start_as_identity()
    attention.set_norm_statistics(x)
    assert attention(x) is x
    assert not build("resnet18", attention="none").added_attention
