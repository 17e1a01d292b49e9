"""Command line or YAML -> every setting of a run, in one frozen model.

A field is declared once: its type and choices, its bounds, its section of the help, and below it its help text. The
command line, `recipe.yaml` and the documentation follow from that.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.io import atomic_path

RECIPES_DIR = Path(__file__).parent
"""The recipes that come with Fieldmark."""


def _require_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


Text = Annotated[str, PlainValidator(_require_text)]
"""Any text: pydantic's own `str` refuses lone surrogates, which the name of a file may hold."""
OptionalText = Annotated[str | None, PlainValidator(lambda value: value if value is None else _require_text(value))]


def setting(section: str, default: Any, *, ge: float | None = None, le: float | None = None) -> Any:
    """A field of a recipe: its section of the help, its default, and its bounds, which are allowed values."""
    return Field(default, json_schema_extra={"section": section}, ge=ge, le=le)


NETWORK, INPUT, PROBE, TUNING = "Network", "Input and augmentation", "Linear probe", "Fine-tuning"
DATA, COMPUTE, OUTPUT = "Data and split", "Compute", "Output"


class Recipe(BaseModel):
    """The hyperparameters and options of one training.

    The defaults suit a folder of a few thousand images and a laptop. A training has two phases: the linear probe trains
    the head alone on features of the frozen backbone; fine-tuning then trains the backbone's later stages too.

    Raises:
        FieldmarkError: a value of the wrong type, out of bounds, or that does not fit another one.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    quality: Literal["fast", "good", "best"] = setting(NETWORK, "fast")
    """Network if `backbone` is not given: `fast` (EfficientNet-Lite0), `good` (EfficientNet-Lite2) or `best` (the
    strongest that can be downloaded now, through timm)."""
    backbone: OptionalText = setting(NETWORK, None)
    """Backbone architecture, as `resnet50`; `fieldmark zoo` lists them."""
    attention: OptionalText = setting(NETWORK, None)
    """Attention inside every block: se, cbam, eca, coordinate, ela, gct or mask, as `se(ratio=8)`. `replace(se)` takes
    the place of the paper's own, `none` removes that; by default as in the network's paper."""
    after: OptionalText = setting(NETWORK, None)
    """Attention after stages, as `-1:mask` or `-2:se(ratio=8),-1:mask`."""
    head: OptionalText = setting(NETWORK, None)
    """Head, from features to classes: multi_stage, linear, classic, gem, attention_pool, bilinear or self_product, as
    `bilinear(reduced=64)`; by default multi_stage with pretrained weights whose own head is linear, else the published
    one."""
    aux: bool = setting(NETWORK, False)
    """Train the auxiliary heads of GoogLeNet and Inception-v3 as well, weighted in the loss as in the papers."""
    weights: Text = setting(NETWORK, "imagenet")
    """Initial weights: `imagenet`, `none` (from scratch) or a file: .safetensors or .pth under the names of torchvision
    or timm, .h5 or .keras of keras.applications."""
    image_size: int | None = setting(INPUT, None, ge=28)
    """Input size in pixels for evaluation and prediction, of the whole image; by default the scale that the weights
    expect (256 for those evaluated on the central 224 of 256)."""
    train_size: int | None = setting(INPUT, None, ge=28)
    """Input size in pixels during training; by default 3/4 of the image size, or 6/7 from scratch, since a random crop
    shows objects larger than the whole image does; all of it below 96 pixels and where `augment` crops little."""
    start_size: int | None = setting(INPUT, None, ge=28)
    """Input size in pixels at the start of fine-tuning; it grows to `train_size` in three steps (progressive
    resizing)."""
    pad: int = setting(INPUT, 0, ge=0, le=512)
    """Pixels of padding on each side, in the mean colour, after resizing: for small images in a network that takes
    larger ones."""
    channels: Literal[1, 3] = setting(INPUT, 3)
    """Input channels: 3 for colour, 1 for greyscale."""
    standardise: bool = setting(INPUT, False)
    """Normalise with the mean and standard deviation of the training images in place of those of the published weights:
    for training from scratch (`weights` none)."""
    augment: Literal["none", "flip-crop", "standard", "strong"] = setting(INPUT, "standard")
    """Data augmentation: `none`, `flip-crop` (flips and small shifts), `standard` (random resized crops and flips) or
    `strong` (TrivialAugment and random erasing as well)."""
    mixup: float = setting(INPUT, 0.0, ge=0)
    """Alpha of mixup, which blends two images. 0 disables it."""
    cutmix: float = setting(INPUT, 0.0, ge=0)
    """Alpha of cutmix, which pastes a patch of another image. 0 disables it."""
    imbalance: Literal["none", "weights", "sampling"] = setting(INPUT, "none")
    """Handling of imbalanced classes: `none`, `weights` (class weights in the loss) or `sampling` (oversampling of rare
    classes)."""
    batch: int = setting(COMPUTE, 32, ge=0)
    """Batch size, over all devices; 0 takes the largest power of two up to 256 that fits into memory."""
    accumulate: int = setting(COMPUTE, 1, ge=1)
    """Gradient accumulation: parts in which a batch is computed, for less memory."""
    exact: bool = setting(PROBE, True)
    """Fit the linear probe with L-BFGS to convergence where the head is one linear layer, instead of `frozen_epochs` of
    steps."""
    frozen_epochs: int = setting(PROBE, 30, ge=0)
    """Epochs of the linear probe: the head alone, on features of the frozen backbone that are computed once. 0 leaves
    it out."""
    frozen_lr: float = setting(PROBE, 1e-3, ge=0)
    """Learning rate of the linear probe (AdamW, or Adam if fine-tuning uses Adam)."""
    epochs: int = setting(TUNING, 10, ge=0)
    """Epochs of fine-tuning. 0 leaves fine-tuning out; `budget` overrides it."""
    unfreeze: Literal["late", "all", "gradual"] = setting(TUNING, "late")
    """Part of the backbone that fine-tuning trains: its `late` stages, `all` of it, or `gradual`: the late ones first,
    then all."""
    optimizer: Literal["adamw", "sgd", "adam"] = setting(TUNING, "adamw")
    """Optimizer of fine-tuning: `adamw`, `sgd` (Nesterov momentum 0.9) or `adam`."""
    lr: float | None = setting(TUNING, None, ge=0)
    """Learning rate of the head and of inserted attention in fine-tuning; by default 0.01 for sgd and 0.001 for the
    others."""
    backbone_lr: float | None = setting(TUNING, None, ge=0)
    """Learning rate of the backbone in fine-tuning; by default half of `lr` for sgd and 0.3 times `lr` for the others.
    From scratch, `lr` holds for all layers."""
    find_lr: bool = setting(TUNING, False)
    """Find the learning rates of fine-tuning by a range test (Smith 2017) before it begins."""
    schedule: Literal["cosine", "plateau", "steps", "constant"] = setting(TUNING, "cosine")
    """Learning rate schedule of fine-tuning: `cosine` with warm-up, `plateau` (times 0.2 after 4 epochs without
    improvement), `steps` (times 0.1 after 30, 60 and 90 % of the epochs) or `constant`."""
    weight_decay: float = setting(TUNING, 1e-4, ge=0)
    """Weight decay (L2) of convolutions and linear layers in fine-tuning."""
    decay_all: bool = setting(TUNING, False)
    """Apply weight decay to biases and normalisation layers too."""
    label_smoothing: float = setting(TUNING, 0.1, ge=0, le=0.99)
    """Label smoothing: share of the target that is spread over all classes."""
    ema: float = setting(TUNING, 0.0, ge=0, le=0.99999)
    """Decay a step of an exponential moving average of the weights, as 0.99; the average is evaluated and saved. 0
    disables it."""
    monitor: Literal["accuracy", "loss"] = setting(TUNING, "accuracy")
    """Validation metric that selects the best epoch: `accuracy` (with `cosine` the latest epoch within one standard
    error of the highest) or `loss`. Of two heads that were fitted exactly, before and after fine-tuning, the lower loss
    is always the better."""
    patience: int = setting(TUNING, 10, ge=1)
    """Early stopping: epochs of fine-tuning without improvement; the weights of the best epoch are kept."""
    budget: OptionalText = setting(COMPUTE, None)
    """Time for the whole run, as `90s`, `5m` or `1h`; epochs and steps are planned once from the measured speed."""
    steps_per_epoch: int | None = setting(TUNING, None, ge=1)
    """Steps in an epoch of fine-tuning; by default one pass over the training images. The plan of a budget sets it."""
    precision: Literal["auto", "32", "bf16"] = setting(COMPUTE, "auto")
    """Precision of training: `32` bits, `bf16` (mixed precision), or `auto`: bf16 if the processor supports it.
    Evaluation always uses 32 bits."""
    compile: bool = setting(COMPUTE, False)
    """Compile the trained part with torch.compile: worth its minute on a GPU, hardly on a CPU."""
    devices: int = setting(COMPUTE, 1, ge=0)
    """Processors or GPUs of this machine that train together; 0 takes all GPUs."""
    nodes: int = setting(COMPUTE, 1, ge=1)
    """Machines that train together, each started by torchrun, with one shared --out."""
    stream: bool = setting(DATA, False)
    """Read and decode images anew each time they are used, and cache no pixels: for more images than a disk holds, and
    for many machines."""
    logger: OptionalText = setting(OUTPUT, None)
    """Experiment loggers beside TensorBoard and CSV: `wandb`, `mlflow`, or both with a comma."""
    lang: Literal["en", "zh"] = setting(OUTPUT, "en")
    """Language of the report and the model card: `en` or `zh`."""
    group_by: OptionalText = setting(DATA, None)
    """Key of groups that must not be divided by the split: a column of the manifest, or a regular expression on the
    path whose first group is the key, as `(patient\\d+)`."""
    split_file: OptionalText = setting(DATA, None)
    """A fixed split: a CSV with path, label and split, such as the split.csv of a run."""
    folds: int = setting(DATA, 0, ge=0)
    """Number of folds of a cross-validation, each with another part of all images as its test set; 0 trains once."""
    fold: int = setting(DATA, 0, ge=0)
    """Train only this one of several folds, counted from 1."""
    apply: OptionalText = setting(DATA, None)
    """Decisions on images to apply (exclude, relabel): the edited decisions.csv of `fieldmark check`."""
    crop_boxes: bool = setting(DATA, False)
    """Train on the content of the bounding boxes that come with the images, in place of whole images."""
    positive: OptionalText = setting(DATA, None)
    """Positive class of two, as `sick`; by default the rarer one."""
    allow_leaks: bool = setting(DATA, False)
    """Train although the same image or group is in several of the given splits; the report will say so."""
    seed: int = setting(COMPUTE, 0, ge=0, le=2**32 - 1)
    """Random seed of the split and of every random draw."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise FieldmarkError(_describe_error(error)) from None

    @model_validator(mode="after")
    def _check_combinations(self) -> "Recipe":
        micro_batches = max(1, self.devices) * self.nodes * self.accumulate
        if self.batch % micro_batches:
            raise FieldmarkError(
                f"--batch is {self.batch}, which {micro_batches} parts (devices x nodes x --accumulate) cannot share "
                f"evenly: {-(-self.batch // micro_batches) * micro_batches} is the next that they can"
            )
        if self.batch == 1 and self.is_from_scratch:
            raise FieldmarkError("--batch is 1: batch norms that are trained from scratch need at least 2 images")
        if self.budget is not None:
            parse_duration(self.budget)
        return self

    @property
    def is_from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return self.weights == "none"

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Learning rates of the head and of the backbone in fine-tuning."""
        head = self.lr if self.lr is not None else 0.01 if self.optimizer == "sgd" else 0.001
        ratio = 0.5 if self.optimizer == "sgd" else 0.3
        backbone = self.backbone_lr if self.backbone_lr is not None else ratio * head
        return head, head if self.is_from_scratch else backbone

    @property
    def explicit(self) -> frozenset[str]:
        """Names of the fields that were given, even if with their default."""
        return frozenset(self.model_fields_set)

    def replace(self, **changes: Any) -> "Recipe":
        """A recipe with other values, validated; `explicit` gains their names."""
        valid = Recipe(**dict(self) | changes)
        return Recipe.model_construct(self.model_fields_set | changes.keys(), **dict(valid))

    def to_dict(self) -> dict[str, Any]:
        """Field -> value, in the order of recipe.yaml."""
        return dict(self)


def option_name(field: str) -> str:
    """`image_size` -> `--image-size`."""
    return "--" + field.replace("_", "-")


def help_text(field: str) -> str:
    """The text under a field of `Recipe`, on one line."""
    return " ".join((Recipe.model_fields[field].description or "").split())


def section(field: str) -> str:
    """The section of the help that a field belongs to."""
    extra = Recipe.model_fields[field].json_schema_extra
    return str(extra["section"]) if isinstance(extra, dict) else ""


def choices(field: str) -> tuple[Any, ...]:
    """The values that a field can have; empty if it is not a choice."""
    annotation = Recipe.model_fields[field].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def value_type(field: str) -> type:
    """The type of a field's values, without None: str, int, float or bool."""
    if names := choices(field):
        return type(names[0])
    annotation: Any = Recipe.model_fields[field].annotation
    return next((part for part in get_args(annotation) if part is not type(None)), annotation)


def bounds(field: str) -> tuple[float | None, float | None]:
    """The least and the greatest value that a field can have, if it has bounds."""
    metadata = Recipe.model_fields[field].metadata

    def find(name: str) -> float | None:
        return next((getattr(bound, name) for bound in metadata if hasattr(bound, name)), None)

    return find("ge"), find("le")


def _describe_error(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    name, value, context = str(first["loc"][0]), first["input"], first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, Recipe.model_fields, 1)
        return f"{name!r} is no setting of a recipe" + (f"; {close[0]}?" if close else "")
    match first["type"]:
        case "literal_error":
            problem = f"but can be {' or '.join(map(str, choices(name)))}"
        case "greater_than_equal":
            problem = f"but must be at least {context['ge']:g}"
        case "less_than_equal":
            problem = f"but must be at most {context['le']:g}"
        case _:
            problem = f"but must be {first['msg'].partition('should be ')[2] or first['msg'].rpartition(', ')[2]}"
    return f"{option_name(name)} is {value!r}, {problem}"


def parse_duration(budget: str) -> float:
    """`90s`, `5m`, `1.5h` or a bare number of seconds -> seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", budget)
    if not match or float(match[1]) == 0:
        raise FieldmarkError(f"--budget is {budget!r}, but is written as 90s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def read_recipe(file: str | Path) -> Recipe:
    """A recipe by the name of one that comes with Fieldmark, or from a YAML file.

    The key `recipe` of a file names one that comes with Fieldmark, which gives all settings that the file does not.

    Raises:
        FieldmarkError: there is no such file, it is not YAML, or has a key or value that no recipe has.
    """
    named_recipes = {path.stem: path for path in sorted(RECIPES_DIR.glob("*.yaml"))}
    file = named_recipes.get(str(file), file)
    values = _load_yaml(Path(file), named_recipes)
    base_name = values.pop("recipe", None)
    if base_name is not None and str(base_name) not in named_recipes:
        raise FieldmarkError(f"the recipe {file} begins from {base_name!r}, but can from {', '.join(named_recipes)}")
    base = read_recipe(str(base_name)) if base_name is not None else Recipe()
    try:
        return base.replace(**{str(key): _from_yaml(str(key), value) for key, value in values.items()})
    except FieldmarkError as error:
        raise FieldmarkError(f"the recipe {file}: {error}") from None


def _load_yaml(file: Path, named_recipes: dict[str, Path]) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        names = ", ".join(named_recipes)
        raise FieldmarkError(
            f"cannot read the recipe {file}: no such file; the recipes that come with Fieldmark: {names}"
        ) from None
    except Exception as error:  # on odd numbers and dates PyYAML raises nearly everything there is
        raise FieldmarkError(f"cannot read the recipe {file}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise FieldmarkError(f"the recipe {file} has no `key: value` lines")
    return values


def _from_yaml(key: str, value: Any) -> Any:
    """A value as people write it in YAML 1.1, which takes `1e-3` for a text and `32` for a number."""
    field = Recipe.model_fields.get(key)
    if field and field.annotation in (float, float | None) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if key in ("budget", "precision") and type(value) in (int, float):
        return str(value)
    return value


def write_recipe(recipe: Recipe, file: Path) -> None:
    """Write the recipe as YAML, each setting under its help text, atomically."""
    import yaml

    lines = []
    for name, value in recipe.to_dict().items():
        is_printable = str(value).isprintable()  # else PyYAML breaks a line at what it takes for a line break
        lines.append(f"# {help_text(name)}\n" + yaml.safe_dump({name: value}, allow_unicode=is_printable))
    with atomic_path(file) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


# ---- settings without effect

PROBE_FIELDS = ("frozen_epochs", "frozen_lr")
UNFREEZE_FIELDS = ("unfreeze", "backbone_lr")
TUNING_FIELDS = ("train_size", "start_size", "augment", "mixup", "cutmix", "lr", "find_lr", "schedule", "weight_decay")
TUNING_FIELDS += ("decay_all", "ema", "patience", "steps_per_epoch", "compile")
"""Fields of fine-tuning alone, beside `UNFREEZE_FIELDS`."""


def ineffective_settings(recipe: Recipe, is_exact: bool) -> list[str]:
    """A line for each group of settings that others leave without effect.

    `is_exact` says that the linear probe is fitted to convergence, which also depends on the network's head.
    """
    has_probe = not recipe.is_from_scratch and recipe.frozen_epochs > 0
    no_tuning = not recipe.epochs and not recipe.budget
    rules = (
        (recipe.backbone is not None, "--backbone names the network", ("quality",)),
        (recipe.is_from_scratch, "--weights none trains all layers from scratch", (*PROBE_FIELDS, *UNFREEZE_FIELDS)),
        (has_probe and is_exact, "the linear probe is fitted exactly (--no-exact takes steps)", PROBE_FIELDS),
        (no_tuning, "--epochs 0 leaves fine-tuning out", (*UNFREEZE_FIELDS, *TUNING_FIELDS)),
        (recipe.find_lr, "--find-lr sets the learning rates of fine-tuning", ("lr", "backbone_lr")),
        (recipe.budget is not None, "--budget plans fine-tuning", ("epochs", "steps_per_epoch")),
    )
    defaults, lines = Recipe(), []
    for applies, reason, fields in rules:
        names = [option_name(f) for f in fields if getattr(recipe, f) not in (getattr(defaults, f), 0)]
        if applies and names:
            lines.append(f"{', '.join(names)}: without effect, as {reason}")
    return lines
