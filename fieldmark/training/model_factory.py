"""Recipe -> the network that it asks for, and how photos come to it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import Data, statistics
from fieldmark.models import Network, build, presets
from fieldmark.models.profile import require_size, whole_size
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.phases import training_size


def named(recipe: Recipe, say: Callable[[str], object]) -> Recipe:
    """The recipe with its backbone and image size named; `say` hears where the backbone is not the wished one.

    Nothing has been read or written where it raises FieldmarkError: for words that no network has, sizes that it cannot
    take, settings that do not go together.
    """
    if recipe.backbone is None:
        recipe = dataclasses.replace(recipe, backbone=presets.backbone(recipe.quality, say))
    if recipe.standardise and recipe.weights != "none":
        raise FieldmarkError("--standardise: published weights expect the colours they were trained on; --weights none")
    with torch.device("meta"):
        network = network_of(recipe, 2, weights=False)
    image_size = recipe.image_size or whole_size(network)
    recipe = dataclasses.replace(recipe, image_size=image_size)
    trained = training_size(recipe, image_size)
    for pixels in (image_size, trained, recipe.start_size):
        if pixels is not None:
            require_size(network, pixels)
    if recipe.start_size is not None and recipe.start_size >= trained:
        raise FieldmarkError(f"--start-size is {recipe.start_size}, but photos are trained on at {trained}: give less")
    return recipe


def network_of(recipe: Recipe, classes: int, weights: bool = True) -> Network:
    """The network with random weights, or with those that the recipe names."""
    named = {"none": None}.get(recipe.weights, recipe.weights) if weights else None
    return build(
        recipe.backbone or presets.INSTALLED["fast"],
        attention=recipe.attention,
        after=recipe.after,
        head=recipe.head,
        classes=classes,
        weights=named,
        channels=recipe.channels,
        aux=recipe.aux,
        pad=recipe.pad,
    )


def preprocessing(network: Network, recipe: Recipe) -> dict[str, Any]:
    """How photos are judged: as the weights want it, but whole, and at the size of the recipe."""
    return dataclasses.asdict(network.preprocessing) | {
        "size": recipe.image_size,
        "crop": 1.0,
        "boxes": recipe.crop_boxes,
    }


def standardise(network: Network, recipe: Recipe, data: Data) -> None:
    """Let the network expect the colours of the training photos, where the recipe wants that."""
    if recipe.standardise:
        mean, std = statistics(data, recipe.channels)
        network.preprocessing = dataclasses.replace(network.preprocessing, mean=mean, std=std)
