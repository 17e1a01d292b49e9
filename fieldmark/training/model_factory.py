"""Recipe -> network and preprocessing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import DatasetSplits, compute_channel_statistics
from fieldmark.models import LinearHead, Network, build, presets
from fieldmark.models.profile import check_image_size, uncropped_size
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.phases import train_crop_size


def resolve_recipe(recipe: Recipe, notify: Callable[[str], object]) -> Recipe:
    """The recipe with its backbone and image size; `notify` gets a line when a fallback backbone is used.

    Raises:
        FieldmarkError: for unknown network names, sizes that the network cannot take, settings that contradict each
            other. Nothing has been read or written then.
    """
    if recipe.backbone is None:
        recipe = recipe.replace(backbone=presets.choose_backbone(recipe.quality, notify))
    if recipe.standardise and recipe.weights != "none":
        raise FieldmarkError("--standardise: published weights expect the colours they were trained on; --weights none")
    with torch.device("meta"):
        network = build_network(recipe, 2, weights=False)
    if _defaults_to_all_stages(network, recipe):
        recipe = recipe.replace(head="multi_stage")  # without dropout: its many small weights cancel each other
    image_size = recipe.image_size or uncropped_size(network)
    recipe = recipe.replace(image_size=image_size)
    crop_size = train_crop_size(recipe, image_size)
    for pixels in (image_size, crop_size, recipe.start_size):
        if pixels is not None:
            check_image_size(network, pixels)
    if recipe.start_size is not None and recipe.start_size >= crop_size:
        raise FieldmarkError(
            f"--start-size is {recipe.start_size}, but training images have {crop_size} pixels: give less"
        )
    return recipe


def _defaults_to_all_stages(network: Network, recipe: Recipe) -> bool:
    """Whether a multi-stage head takes the place of the published one: where that is linear, and is fitted exactly.

    On images unlike ImageNet's it is clearly better, and on others not worse (docs/lab/features-and-fine-tuning.md).
    """
    is_fitted = not recipe.is_from_scratch and recipe.exact and recipe.frozen_epochs > 0
    is_linear = type(network.head) is LinearHead and not network.head.hidden
    return is_fitted and is_linear and network.spec.head is None and not recipe.aux


def build_network(recipe: Recipe, num_classes: int, weights: bool = True) -> Network:
    """The network with random weights, or with the recipe's where `weights` is true."""
    named = {"none": None}.get(recipe.weights, recipe.weights) if weights else None
    return build(
        recipe.backbone or presets.PIP_BACKBONES["fast"],
        attention=recipe.attention,
        after=recipe.after,
        head=recipe.head,
        classes=num_classes,
        weights=named,
        channels=recipe.channels,
        aux=recipe.aux,
        pad=recipe.pad,
    )


def make_preprocessing(network: Network, recipe: Recipe) -> dict[str, Any]:
    """Preprocessing for evaluation and inference: the weights' own, but of the whole image at the recipe's size.

    It is squashed to a square: a central crop would cut off what lies at the ends, as a defect of an oblong part.
    """
    return dataclasses.asdict(network.preprocessing) | {
        "size": recipe.image_size,
        "crop": 1.0,
        "fit": "squash",
        "boxes": recipe.crop_boxes,
    }


def standardise_inputs(network: Network, recipe: Recipe, data: DatasetSplits) -> None:
    """Normalise by the mean and standard deviation of the training images, where the recipe asks for it."""
    if recipe.standardise:
        mean, std = compute_channel_statistics(data, recipe.channels)
        network.preprocessing = dataclasses.replace(network.preprocessing, mean=mean, std=std)
