"""The exported file is judged, and where it differs from the network, a run says so."""

import json

import pytest

from fieldmark.core.progress import Reporter
from fieldmark.evaluation.evaluate import evaluate
from fieldmark.exporters.onnx import TOLERANCE, ExportCheck
from fieldmark.pipeline.finish import check_export_agreement


@pytest.mark.parametrize(
    ("difference", "agreement", "says"),
    [
        (0.0, 1.0, None),
        (TOLERANCE, 1.0, None),
        (0.0, None, None),  # no photo to compare on
        (0.003, 1.0, "by up to 3.0e-03 in a probability, labels agree on 100.0% of 32 photos"),
        (1e-6, 31 / 32, "labels agree on 96.9% of 32 photos"),
    ],
)
def test_a_difference_is_told(difference: float, agreement: float | None, says: str | None):
    found = check_export_agreement(ExportCheck(difference, agreement, images=32))
    assert found == [] if says is None else len(found) == 1 and says in found[0]


def test_what_is_judged_is_the_exported_file(small_run):
    """The figures that a run records are those of bundle/model.onnx, read anew from the photos' files."""
    told = json.loads((small_run / "metrics.json").read_text())
    again = evaluate(small_run, None, Reporter(quiet=True)).to_dict()
    assert {name: again[name] for name in told["test"]} == told["test"]
    assert told["export"]["photos"] == told["validation"]["n"] and told["export"]["max_difference"] <= TOLERANCE
