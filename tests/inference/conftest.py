"""A model that needs no training."""

from pathlib import Path

import pytest
from tiny import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model that predicts the colour of which an image has most."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model.onnx")
