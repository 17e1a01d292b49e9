"""A recipe is the same after YAML, documents every field, and refuses what no training can do."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe, bounds, choices, ineffective_settings, value_type

FIELDS = tuple(Recipe.model_fields)
MINIMA = {name: int(low) for name in FIELDS if (low := bounds(name)[0]) is not None}
MAXIMA = {name: high for name in FIELDS if (high := bounds(name)[1]) is not None}
CHOICES = {name: choices(name) for name in FIELDS if choices(name)}
TEXT = st.text(st.characters(blacklist_categories=()), max_size=40)  # surrogates too: a weights file may be so named


def values(name: str) -> st.SearchStrategy:
    """Anything that the field may hold."""
    low, high = bounds(name)
    kinds = {
        str: TEXT,
        bool: st.booleans(),
        int: st.integers(int(low or 0), int(high or 10**9)),
        float: st.floats(low or 0, high or 1e9, allow_subnormal=False),
    }
    if name in CHOICES:
        return st.sampled_from(CHOICES[name])
    if name == "budget":
        return st.none() | st.sampled_from(["90", "90s", " 1.5 h ", "3m"])
    some = kinds[value_type(name)]
    return some | st.none() if Recipe.model_fields[name].default is None else some


def made(given: dict[str, Any]) -> Recipe:
    return Recipe(**given)


def even(given: dict[str, Any]) -> dict[str, Any]:
    """With few parts of a step, and a batch that they can share."""
    few = {name: given[name] % 5 or 1 for name in ("devices", "nodes", "accumulate") if name in given}
    parts = math.prod(few.values())
    return given | few | ({"batch": given.get("batch", 32) * parts * 2} if few or "batch" in given else {})


RECIPES = st.fixed_dictionaries({}, optional={name: values(name) for name in FIELDS}).map(even).map(made)


@given(recipe=RECIPES)
def test_yaml_round_trip(recipe: Recipe, tmp_path: Path):
    recipes.write_recipe(recipe, tmp_path / "recipe.yaml")
    assert recipes.read_recipe(tmp_path / "recipe.yaml") == recipe


@given(content=st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_reading_refuses_or_gives_a_recipe(content: bytes, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    try:
        assert isinstance(recipes.read_recipe(file), Recipe)
    except FieldmarkError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text", ["a: 2001-99-99", "a: 0x_", "!!int ''", "!!float ''", "[" * 5000, "{[]: 1}", "a: &a [*a]"]
)
def test_what_breaks_a_yaml_parser_is_refused_too(text: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(FieldmarkError):
        recipes.read_recipe(tmp_path / "recipe.yaml")


def test_every_field_is_documented():
    texts = [recipes.help_text(name) for name in FIELDS]
    assert all(len(text) > 15 and text.endswith(".") for text in texts)


def test_the_written_file_explains_itself(tmp_path: Path):
    recipes.write_recipe(Recipe(), tmp_path / "recipe.yaml")
    lines = (tmp_path / "recipe.yaml").read_text().splitlines()
    for name in FIELDS:
        assert lines[lines.index(f"# {recipes.help_text(name)}") + 1].startswith(f"{name}:")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", r"epochs\?"),
        ("epochs: three", "epochs"),
        ("epochs: 2.5", "epochs"),
        ("epochs: true", "epochs"),
        ("lr: true", "lr"),
        ("frozen_lr: null", "frozen-lr"),
        ("lr: [1]", "lr"),
        ("lr: fast", "lr"),
        ("lr: .nan", "lr"),
        ("seed: -1", "seed"),
        ("augment: wild", "standard"),
        ("budget: soon", "5m"),
        ("- lr", "key: value"),
        ("lr", "key: value"),
        ("1: 2", "no setting"),
    ],
)
def test_refusals_name_the_setting(text: str, says: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(FieldmarkError, match=says):
        recipes.read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("", Recipe()),
        ("# nothing but words", Recipe()),
        ("lr: 1", Recipe(lr=1.0)),
        ("lr: null", Recipe()),
        ("precision: 32", Recipe(precision="32")),
        ("lr: 1e-3", Recipe(lr=0.001)),  # a text to YAML 1.1, a number to people
        ("image_size: null", Recipe()),
        ("budget: 300", Recipe(budget="300")),
        ("weights: none", Recipe(weights="none")),
    ],
)
def test_what_people_write_is_understood(text: str, recipe: Recipe, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(text)
    assert recipes.read_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(FieldmarkError, match="nothing"):
        recipes.read_recipe(tmp_path / "nothing.yaml")


def test_a_name_that_no_recipe_has_is_refused_with_those_that_are_there(tmp_path: Path, monkeypatch):
    with pytest.raises(FieldmarkError, match=r"no such file; the recipes that come with Fieldmark: .*classic, "):
        recipes.read_recipe("classics")
    (tmp_path / "mine.yaml").write_text("seed: 3")
    monkeypatch.chdir(tmp_path)
    assert recipes.read_recipe("mine.yaml").seed == 3
    with pytest.raises(FieldmarkError, match="cannot read the recipe mine"):
        recipes.read_recipe("mine")


def test_a_file_may_begin_from_a_recipe_that_comes_with_fieldmark(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("recipe: classic\nbatch: 8")
    assert recipes.read_recipe(tmp_path / "mine.yaml") == recipes.read_recipe("classic").replace(batch=8)
    for base in ("mine", "mine.yaml", "[classic]", "''"):
        (tmp_path / "mine.yaml").write_text(f"recipe: {base}")
        with pytest.raises(FieldmarkError, match="begins from"):
            recipes.read_recipe(tmp_path / "mine.yaml")


def test_the_write_ups_routine_is_what_they_say():
    classic = recipes.read_recipe("classic")
    assert (classic.optimizer, classic.learning_rates, classic.frozen_lr, classic.batch) == (
        "adam",
        (1e-4, 1e-4),
        1e-4,
        32,
    )
    assert (classic.exact, classic.frozen_epochs, classic.epochs, classic.unfreeze) == (False, 3, 30, "all")
    assert (classic.schedule, classic.patience, classic.monitor) == ("plateau", 5, "accuracy")
    assert (classic.augment, classic.label_smoothing, classic.weight_decay, classic.mixup) == ("none", 0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, []),
        ({"lr": 0.1, "unfreeze": "all", "ema": 0.9, "frozen_epochs": 0, "train_size": 96}, []),
        ({"weights": "none", "frozen_epochs": 0}, []),
        (
            {"weights": "none", "frozen_epochs": 3, "backbone_lr": 0.1},
            ["--frozen-epochs, --backbone-lr: without effect, as --weights none trains all layers from scratch"],
        ),
        (
            {"frozen_lr": 0.1},
            ["--frozen-lr: without effect, as the linear probe is fitted exactly (--no-exact takes steps)"],
        ),
        ({"epochs": 0, "mixup": 0.2}, ["--mixup: without effect, as --epochs 0 leaves fine-tuning out"]),
        ({"epochs": 0, "mixup": 0.2, "budget": "5m"}, []),
        ({"folds": 5, "test_share": 0.3}, ["--test-share: without effect, as --folds makes the test sets"]),
        ({"find_lr": True, "lr": 0.1}, ["--lr: without effect, as --find-lr sets the learning rates of fine-tuning"]),
        (
            {"budget": "5m", "epochs": 3, "steps_per_epoch": 4},
            ["--epochs, --steps-per-epoch: without effect, as --budget plans fine-tuning"],
        ),
        (
            {"backbone": "resnet18", "quality": "good"},
            ["--quality: without effect, as --backbone names the network"],
        ),
    ],
)
def test_settings_without_effect_are_told(settings: dict[str, Any], lines: list[str]):
    assert ineffective_settings(Recipe(**settings), is_exact=True) == lines
    assert not any(
        "linear probe is fitted" in line for line in ineffective_settings(Recipe(**settings), is_exact=False)
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch": 8, "accumulate": 3}, "9 is the next"),
        ({"batch": 4, "devices": 2, "nodes": 2, "accumulate": 2}, "8 is the next"),
        ({"batch": 1, "weights": "none"}, "at least 2 images"),
    ],
)
def test_batches_that_cannot_be_trained_on_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(FieldmarkError, match=says):
        Recipe(**settings)


@pytest.mark.parametrize("name", MINIMA)
def test_less_than_the_least_is_refused(name: str):
    with pytest.raises(FieldmarkError, match=recipes.option_name(name)):
        made({name: MINIMA[name] - 1})
    assert getattr(made({name: MINIMA[name]}), name) == MINIMA[name]


@pytest.mark.parametrize("name", MAXIMA)
def test_more_than_the_most_is_refused(name: str):
    with pytest.raises(FieldmarkError, match=recipes.option_name(name)):
        made({name: MAXIMA[name] + 1})
    assert getattr(made({name: MAXIMA[name]}), name) == MAXIMA[name]


@pytest.mark.parametrize("name", CHOICES)
def test_other_choices_are_refused(name: str):
    with pytest.raises(FieldmarkError, match=recipes.option_name(name)):
        made({name: "other"})


@given(st.integers(1, 10**6), st.sampled_from([("", 1), ("s", 1), ("m", 60), ("h", 3600)]))
def test_budgets(n: int, unit: tuple[str, int]):
    assert recipes.parse_duration(f"{n}{unit[0]}") == n * unit[1]
    assert recipes.parse_duration(f" {n / 8} {unit[0]} ") == n / 8 * unit[1]


@pytest.mark.parametrize("budget", ["", "0", "0.0m", "-5m", "5 min", "m", "1e3", "5m5s", "inf", "nan"])
def test_no_budget(budget: str):
    with pytest.raises(FieldmarkError, match="--budget"):
        Recipe(budget=budget)


def test_explicit_are_the_fields_that_were_given_even_with_their_default():
    recipe = Recipe(epochs=10, lr=0.1)
    assert recipe.explicit == {"epochs", "lr"}
    assert recipe.replace(seed=0).explicit == {"epochs", "lr", "seed"}
    assert Recipe(epochs=10) == Recipe()


def test_replace_validates():
    with pytest.raises(FieldmarkError, match="--epochs"):
        Recipe().replace(epochs=-1)


@pytest.mark.parametrize("given", [{"epoch": 1}, {"batch": "8"}, {"exact": 1}, {"weights": None}, {"lr": float("inf")}])
def test_wrong_types_and_names_are_refused(given: dict[str, Any]):
    with pytest.raises(FieldmarkError, match=next(iter(given))):
        Recipe(**given)
