"""Every recipe that comes with Fieldmark names a network that takes its photos, says where it is from, and trains."""

import math
import re
from pathlib import Path

import pytest
import torch
from slow import mark_slow_except

from fieldmark.models.profile import min_image_size
from fieldmark.recipes import recipe as recipes
from fieldmark.training.model_factory import build_network, resolve_recipe
from fieldmark.training.phases import set_train_mode, training_loss

NAMES = sorted(file.stem for file in recipes.RECIPES_DIR.glob("*.yaml"))
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
ON_PAGE = set(re.findall(r"--recipe ([a-z][\w-]+)", PAGE))
# The networks of the write-ups: classes, and weights where they count them.
COUNTED = {
    "waste-se-inception-resnet": (6, 51_833_286),
    "digits-vgg11": (10, 16_230_346),
    "digits-alexnet": (10, 58_299_082),
    "inception-v3": (1000, 27_161_264),
    "small-resnet18": (100, 11_223_140),
    "birds-vgg16-bilinear": (200, 283_356_168),
    "lesions-densenet121-se": (2, 6_989_714),
    "lesions-densenet169-se": (2, 12_542_738),
    "lesions-densenet201-se": (2, 18_160_146),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_where_it_is_from_and_builds(name: str):
    head = (recipes.RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    assert head.startswith("# ")
    assert re.findall(r"^# (Source|Differs|Expect): \S", head, re.MULTILINE) == ["Source", "Differs", "Expect"]
    recipe = resolve_recipe(recipes.read_recipe(name), print)
    with torch.device("meta"):
        network = build_network(recipe, COUNTED.get(name, (4, 0))[0], weights=False)
    if name in COUNTED:
        assert sum(parameter.numel() for parameter in network.parameters()) == COUNTED[name][1]
    assert name in ON_PAGE


def test_the_page_names_no_others():
    assert set(NAMES) >= ON_PAGE


# Large networks, some of which have a smaller one of their kind in another recipe.
LARGE = {"birds-vgg16-bilinear", "waste-se-inception-resnet", "inception-v3", "digits-alexnet", "birds-vgg16"}
LARGE |= {"lesions-densenet201-se", "lesions-densenet169-se", "birds-efficientnet-b4", "species-resnext50"}


@pytest.mark.parametrize("name", mark_slow_except(set(NAMES) - LARGE, NAMES))
def test_it_trains_a_few_steps(name: str, trainer, packed, tmp_path: Path):
    recipe = recipes.read_recipe(name)
    recipe = recipe.replace(weights="none", backbone=recipe.backbone or "efficientnet_lite0")
    with torch.device("meta"):
        size = max(28 if recipe.image_size == 28 else 64, min_image_size(build_network(recipe, 3)))
    few = {"epochs": 1, "steps_per_epoch": 2, "batch": 2, "budget": None, "image_size": size, "train_size": size}
    training = trainer(data=packed(tmp_path, size), **recipe.to_dict() | few)
    training.phase_builder.enter_phase(2)
    phase = training.phase_builder.build_finetune_phase(2, training.recipe)
    set_train_mode(phase.module, keep_norms=False)
    before = {key: value.clone() for key, value in phase.module.state_dict().items() if key.endswith("weight")}
    for inputs, targets in phase.batches(0, 2):
        phase.optimizer.zero_grad()
        loss, _ = training_loss(phase.module, inputs, targets, recipe.label_smoothing)
        loss.backward()
        phase.optimizer.step()
        assert math.isfinite(loss.item())
    after = phase.module.state_dict()
    assert [key for key in before if torch.equal(before[key], after[key])] == []
