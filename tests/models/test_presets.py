"""`--quality` names a network whose weights can be had: the installed ones always, the strongest from a hub."""

import dataclasses

import huggingface_hub.constants
import pytest

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import VARIANTS, presets, published
from fieldmark.models.zoo import by_timm


def test_what_is_installed_is_asked_of_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(published, "find_weights", lambda name: pytest.fail("asked"))
    assert [presets.choose_backbone(word, print) for word in ("fast", "good")] == [
        "efficientnet_lite0",
        "efficientnet_lite2",
    ]
    assert set(presets.PIP_BACKBONES.values()) <= set(VARIANTS)


@pytest.mark.parametrize("there", range(3))
def test_the_strongest_that_can_be_had(there: int, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def find(name: str) -> published.PublishedWeights:
        def fetch() -> dict:
            asked.append(name)
            if len(asked) <= there:
                raise FieldmarkError("not there")
            return {}

        return dataclasses.replace(published.PUBLISHED_WEIGHTS["resnet18"], fetch=fetch)

    monkeypatch.setattr(published, "find_weights", find)
    assert presets.choose_backbone("best", lambda line: pytest.fail(line)) == presets.BEST_BACKBONES[there]
    assert asked == list(presets.BEST_BACKBONES[: there + 1])


def test_their_names_are_timms_and_their_size_is_as_said():
    for name in presets.BEST_BACKBONES:
        assert by_timm.pretrained_config(name).input_size == (3, 224, 224) and by_timm.pretrained_config(name).hf_hub_id


def test_without_a_hub_the_good_one_trains(here, small_photos, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """To the end of the preparations, and the run goes on with that one although there is a hub again."""
    constants, dead = huggingface_hub.constants, "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def stop(self, *_: object) -> None:
        raise FieldmarkError(f"{self.network.spec.backbone} would train at {self.phase_builder.image_size}")

    monkeypatch.setattr("fieldmark.training.trainer.Trainer.train", stop)
    words = ("train", small_photos, "--out", tmp_path / "run", "--resume", "--quality", "best")
    for k in range(2):
        done = here(*words)
        assert done.code == 2 and "efficientnet_lite2 would train at" in done.err.splitlines()[-1]
        told = [line for line in done.err.splitlines() if "falls back to efficientnet_lite2: " in line]
        assert len(told) == 1 - k
        monkeypatch.setattr(presets, "choose_backbone", lambda *_: pytest.fail("asked again"))
