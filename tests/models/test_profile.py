"""Costs are torch's own count, for every family and attention; layers add up; sizes that are too small are named."""

import pytest
import torch
from slow import mark_slow_except
from torch.utils.flop_counter import FlopCounterMode

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import VARIANTS, build
from fieldmark.models.profile import check_image_size, count_macs, layer_table, network_table
from fieldmark.models.spec import ATTENTIONS, HEADS

# One network of each family: of each function that makes a row's backbone.
FAMILIES = sorted(
    {getattr(row.make_backbone, "func", row.make_backbone): name for name, row in reversed(VARIANTS.items())}.values()
)
GATES = sorted(set(ATTENTIONS) - {"none"})
SIZE = 112  # every network takes it


def counted(words: str) -> int:
    """Multiply-adds as torch's own counter has them, of real tensors' shapes."""
    with torch.device("meta"):
        network = build(words, classes=7).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, SIZE, SIZE))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "words",
    [
        *FAMILIES,
        *(f"resnet18+attention={gate}" for gate in GATES),
        *(f"resnet18+head={head}" for head in HEADS),
    ],
)
def test_layers_add_up_to_what_torch_counts(words: str):
    with torch.device("meta"):
        network = build(words, classes=7)
    table = layer_table(network, SIZE)
    assert sum(row.macs for row in table) == count_macs(network, SIZE) == counted(words)
    assert sum(row.params for row in table) == sum(parameter.numel() for parameter in network.parameters())
    assert table[-1].name == "head" and table[-1].shape == (7,)
    assert len(table[-2].shape) == 3


@pytest.mark.parametrize("place", ["attention=", "after=1:"])
@pytest.mark.parametrize("gate", GATES)
def test_attention_takes_what_the_network_grows_by(gate: str, place: str):
    with torch.device("meta"):
        plain, gated = build("resnet18"), build(f"resnet18+{place}{gate}")
    before, after = layer_table(plain, 64), layer_table(gated, 64)
    gates = [gate for row in after for gate in row.attention]
    assert not any(row.attention for row in before)
    assert [f"backbone.{row.name}" for row in gates] == list(gated.added_attention)
    assert {(row.kind, row.own) for row in gates} == {(gate, False)}
    for key in ("params", "macs"):
        added, total, others = (sum(getattr(row, key) for row in rows) for rows in (gates, after, before))
        assert added == total - others


def test_gates_of_the_paper_are_distinguished_from_added_ones():
    with torch.device("meta"):
        table = layer_table(build("efficientnet_b0", attention="eca", after="-1:mask"), 64)
    kinds = [(gate.kind, gate.own) for row in table for gate in row.attention]
    assert kinds == [("se", True), ("eca", False)] * 16 + [("mask", False)]


def test_frozen_in_either_phase():
    with torch.device("meta"):
        network = build("efficientnet_lite0", after="3:mask,-1:se", classes=5)
    table = {row.name: row for row in layer_table(network, 64)}
    trained = {
        phase: [n for n, row in table.items() if not getattr(row, phase)] for phase in ("frozen", "frozen_in_phase_2")
    }
    assert trained["frozen"] == ["after_act2", "head"]
    names = list(table)
    assert trained["frozen_in_phase_2"] == names[names.index("blocks.after_3") :]
    assert table["blocks.after_3"].shape == (80, 4, 4)
    with torch.device("meta"):  # what is added must train in phase 2, from the first block on
        gated = layer_table(build("efficientnet_lite0", attention="se"), 64)
    assert not any(row.frozen_in_phase_2 for row in gated)
    assert [row.name for row in gated if not row.frozen] == ["head"]


def test_a_gate_by_hand():
    plain, gated = (build("resnet18", after=after) for after in (None, "-1:se(squeezed=8)"))
    assert count_macs(gated, 64) - count_macs(plain, 64) == 2 * 512 * 8


def test_counting_leaves_the_network_as_it_is():
    network = build("resnet18", classes=2).train()
    network.backbone[1].eval()
    modes, before = [m.training for m in network.modules()], [*network.parameters()]
    layer_table(network, 33)
    assert [m.training for m in network.modules()] == modes
    assert all(a is b and a.requires_grad for a, b in zip(before, network.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_rows_of_the_zoo():
    table = network_table()
    by_name = {row.name: row for row in table}
    assert list(by_name) == list(VARIANTS)
    assert by_name["resnet50"].params == 25_557_032
    assert by_name["resnet50"].macs == 4_089_184_256  # v1.5; v1 has 3.86 G
    assert by_name["efficientnet_lite2"].input_size == 260
    assert by_name["resnet18_small"].weights is None
    for row in table:
        assert row.paper and row.macs > 0
        assert row.top1 is None or 50 < row.top1 < (row.top5 or 99) < 100


@pytest.mark.parametrize("name", mark_slow_except(("alexnet", "resnet18", "googlenet"), FAMILIES))
def test_the_smallest_size_is_that(name: str):
    with torch.device("meta"):
        network = build(name)
        check_image_size(network, network.preprocessing.size)
        try:
            check_image_size(network, 1)
        except FieldmarkError as error:
            size = int(str(error).rpartition(" ")[2].rstrip(")"))
            assert f"{name} does not accept images of 1 x 1 pixels: {size} is the smallest size that works" in str(
                error
            )
        else:
            size = 1
        check_image_size(network, size)
    real = build(name, classes=2).eval()
    with torch.no_grad():
        assert real(torch.zeros(1, 3, size, size)).shape == (1, 2)
        if size > 1:
            with pytest.raises(RuntimeError):
                real(torch.zeros(1, 3, size - 1, size - 1))


def test_sizes_that_fit_between_others_are_not_called_the_smallest(monkeypatch):
    from fieldmark.models import profile

    with torch.device("meta"):
        network = build("resnet18")
    monkeypatch.setattr(profile, "_accepts_size", lambda _, size: size % 16 == 0)
    with pytest.raises(FieldmarkError, match="112 is the next size that works"):
        check_image_size(network, 100)
    monkeypatch.setattr(profile, "_accepts_size", lambda _, size: size == 224)
    with pytest.raises(FieldmarkError, match="224 is the next size that works"):
        check_image_size(network, 256)
