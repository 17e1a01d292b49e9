"""Words and constructors: every constructor reads back from its words, and no word crashes."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import (
    CBAM,
    ECA,
    ELA,
    GCT,
    SE,
    Attention,
    AttentionPool,
    Bilinear,
    ClassicHead,
    CoordinateAttention,
    GeM,
    LinearHead,
    Mask,
    SelfProduct,
    build,
    rebuild,
)
from fieldmark.models.layers import ACTIVATIONS
from fieldmark.models.spec import (
    format_after,
    format_constructor,
    parse_after,
    parse_attention,
    parse_head,
    parse_network,
)


def configured(constructor: type, **settings: st.SearchStrategy) -> st.SearchStrategy:
    """The constructor with some of its settings given."""
    given = st.fixed_dictionaries({}, optional=settings)
    return given.map(lambda keywords: partial(constructor, **keywords) if keywords else constructor)


COUNT, RATE, ODD = st.integers(1, 64), st.floats(0, 1), st.integers(0, 7).map(lambda half: 2 * half + 1)
ATTENTION = st.one_of(
    st.just(Attention),
    configured(SE, ratio=COUNT, squeezed=st.none() | COUNT, norm=st.booleans()),
    configured(CBAM, ratio=COUNT, kernel=ODD, norm=st.booleans()),
    configured(ECA, kernel=st.none() | ODD, norm=st.booleans()),
    configured(CoordinateAttention, ratio=COUNT, norm=st.booleans()),
    configured(ELA, kernel=ODD, groups=COUNT, norm=st.booleans()),
    configured(GCT, norm=st.booleans()),
    configured(
        Mask,
        norm=st.booleans(),
        dropout=RATE,
        widths=st.lists(COUNT, max_size=3).map(tuple),
        rescale=st.booleans(),
        spread=st.booleans(),
    ),
)
TAIL = {
    "hidden": st.none() | COUNT,
    "dropout": RATE,
    "hidden_dropout": st.none() | RATE,
    "activation": st.sampled_from(list(ACTIVATIONS)),
}
HEAD = st.one_of(
    *(configured(head, **TAIL) for head in (LinearHead, GeM, AttentionPool, SelfProduct)),
    configured(Bilinear, reduced=st.none() | COUNT, compact=st.none() | COUNT, **TAIL),
    configured(
        ClassicHead,
        pool=st.integers(1, 8),
        hidden=st.lists(COUNT, max_size=3).map(tuple),
        dropout=RATE,
        dropout_first=st.booleans(),
    ),
)


def same(a: object, b: object) -> bool:
    if isinstance(a, partial) and isinstance(b, partial):
        return a.func is b.func and a.keywords == b.keywords
    return a is b


@settings(max_examples=60, deadline=None)
@given(attention=ATTENTION, head=HEAD, after=st.dictionaries(st.integers(-9, 9), ATTENTION, max_size=3))
def test_words_read_back(attention, head, after):
    assert same(parse_attention(format_constructor(attention)), attention)
    assert same(parse_head(format_constructor(head)), head)
    back = parse_after(format_after(after))
    assert list(back) == list(after) and all(same(back[stage], after[stage]) for stage in after)
    options = f"attention={format_constructor(attention)}+head={format_constructor(head)}+after={format_after(after)}"
    words = f"resnet50+{options}"
    assert parse_network(words) == {
        "backbone": "resnet50",
        "attention": format_constructor(attention),
        "head": format_constructor(head),
        "after": format_after(after),
    }


@settings(max_examples=300, deadline=None)
@given(words=st.text(st.sampled_from("semaskratio=816(),:-+[]{}*'.\\ \n\x00é"), max_size=30))
@example("se(**{})")
@example("{**x}")
@example("se(1)")
@example("()()")
@example("-1:mask,-1:se")
@example("1.0:se")
@example("(" * 500)
@example("__import__('os').system('true')")
def test_any_words_are_read_or_refused(words: str):
    for parse in (parse_attention, parse_head, parse_after, parse_network):
        try:
            parse(words)
        except FieldmarkError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"backbone": "resnet5"}, "no network 'resnet5': did you mean resnet50"),
        ({"backbone": "efficientnet_lite0", "attention": "es"}, "choose from none, se, .*, mask"),
        ({"backbone": "resnet18", "attention": "se(rato=8)"}, "no argument of attention se 'rato': did you mean ratio"),
        ({"backbone": "resnet18", "attention": "se(ratio=0)"}, "ratio=0"),
        ({"backbone": "resnet18", "attention": "se(squeezed=0)"}, "cannot build"),
        ({"backbone": "resnet18", "attention": "se(ratio='a')"}, "cannot build"),
        ({"backbone": "resnet18", "attention": "se(ratio=open)"}, "a value is a number"),
        ({"backbone": "resnet18", "attention": "se(8)"}, "write NAME or NAME"),
        ({"backbone": "resnet18", "head": "bilinear(reduced=-3)"}, "cannot build"),
        ({"backbone": "resnet18", "head": "linear(hidden=0)"}, "cannot build"),
        ({"backbone": "resnet18", "head": "linear(dropout=2)"}, "cannot build"),
        ({"backbone": "resnet18", "head": "se"}, "no head 'se': .*choose from linear, multi_stage, classic"),
        ({"backbone": "resnet18", "after": "se"}, "write STAGE:ATTENTION"),
        ({"backbone": "resnet18", "after": "9:se"}, "0 to 3"),
        ({"backbone": "resnet18", "after": "-1:mask,-1:se"}, "each once"),
        ({"backbone": "resnet18", "after": "1.0:se"}, "stages are integers"),
        ({"backbone": "resnet18+heads=linear"}, "any of attention, after, head"),
        ({"backbone": "resnet18+head=linear", "head": "linear"}, "set twice"),
        ({"backbone": "resnet18", "classes": 0}, "classes=0"),
        ({"backbone": "resnet18", "channels": 0}, "channels=0"),
    ],
)
def test_what_is_wrong_is_said(words: dict, says: str):
    with pytest.raises(FieldmarkError, match=says):
        build(**words)


WORDS = [
    {"backbone": "efficientnet_lite0"},
    {"backbone": "efficientnet_lite0", "attention": "se(ratio=8)", "classes": 3, "channels": 1},
    {"backbone": "resnet18", "after": {-1: partial(Mask, widths=(4, 2)), 1: SE}, "head": Bilinear, "classes": 2},
    {"backbone": "resnet18+attention=mask+after=-1:se+head=linear(hidden=5)", "classes": 2},
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("inserted", [False, True])
def test_a_network_is_rebuilt_from_its_spec(words: dict, inserted: bool):
    network = build(**words)
    if inserted:
        network.spec = replace(network.spec, inserted=True)
        for slot in network.added_attention.values():
            slot.start_as_identity()
    again = rebuild(json.loads(json.dumps(network.spec.to_dict())))
    again.load_state_dict(network.state_dict())
    assert again.spec == network.spec
    assert again.preprocessing == network.preprocessing
    assert len(again.preprocessing.mean) == network.spec.channels
    x = torch.randn(1, network.spec.channels, 40, 40)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network.eval()(x))


def test_a_constructor_that_is_not_ours_works_but_has_no_word():
    class Halve(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    network = build("resnet18", after={-1: Halve}, classes=2)
    assert list(network.added_attention) == ["backbone.after_layer4"]
    with pytest.raises(FieldmarkError, match="Halve"):
        rebuild(network.spec)
