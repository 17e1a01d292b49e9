"""Zeros around a small photo, and colours of mean 0: the same in training and in every file that answers."""

import pytest
import torch

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import Normalize, iter_eval_batches
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe, standardise_inputs

SMALL = Recipe(backbone="resnet18", weights="none", image_size=32, pad=16)


def test_a_padded_network_sees_zeros_around_the_photo():
    torch.manual_seed(0)
    padded = build_network(SMALL, 3).eval()
    torch.manual_seed(0)
    plain = build_network(SMALL.replace(pad=0), 3).eval()
    photo = torch.randn(2, 3, 32, 32)
    around = torch.zeros(2, 3, 64, 64)
    around[..., 16:48, 16:48] = photo
    assert torch.equal(padded(photo), plain(around))
    rebuilt = fieldmark.models.rebuild(padded.spec).eval()
    rebuilt.load_state_dict(plain.state_dict())  # published names stay what they are
    assert torch.equal(rebuilt(photo), padded(photo))


def test_nothing_is_left_open_and_what_cannot_be_is_refused():
    recipe = resolve_recipe(Recipe(), print)
    assert (recipe.backbone, recipe.image_size) == ("efficientnet_lite0", 256)
    with pytest.raises(FieldmarkError, match="--standardise"):
        resolve_recipe(Recipe(standardise=True), print)
    with pytest.raises(FieldmarkError, match="--start-size"):
        resolve_recipe(Recipe(start_size=224), print)


def test_the_network_expects_the_colours_of_the_training_photos(few):
    for channels in (3, 1):
        recipe = SMALL.replace(standardise=True, channels=channels)
        network = build_network(recipe, 3)
        standardise_inputs(network, recipe, few)
        look = make_preprocessing(network, recipe)
        whole = min(few.images[int(few.train[0])].shape[:2])
        seen = Normalize(look["mean"], look["std"])(torch.cat(list(iter_eval_batches(few.images, few.train, whole))))
        assert seen.shape[1] == channels
        assert seen.mean((0, 2, 3)).abs().max() < 0.1 and (seen.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_a_run_so_trained_answers_alike_everywhere(small_photos, tmp_path):
    recipe = SMALL.replace(standardise=True, epochs=1, batch=8, schedule="steps", decay_all=True)
    run = fieldmark.train(small_photos, recipe, out=tmp_path / "run")
    assert run.metrics["export"]["label_agreement"] == 1 and run.metrics["export"]["max_difference"] < 1e-4
    mean = fieldmark.load(run.folder).info.preprocessing["mean"]
    assert mean != list(build_network(SMALL, 2).preprocessing.mean)
    assert fieldmark.inference.bundle.load_network(run.folder / "bundle").preprocessing.mean == tuple(mean)
