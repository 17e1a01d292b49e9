"""Fixtures that several test modules share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the photos {name} in {SHARED}, which are not here")
    return folder


@pytest.fixture(scope="session")
def trashnet() -> Path:
    """TrashNet: six class folders, 2,527 photos of 512 x 384 pixels."""
    return _shared("trashnet")


@pytest.fixture(scope="session")
def birds100() -> Path:
    """A hundred bird species of CUB-200-2011 in train/ and test/, 227 x 227 pixels."""
    return _shared("birds100")
