"""Command line or YAML -> every setting of a run, in one frozen dataclass.

The text under a field is its help on the command line; its value is what `recipe.yaml` in a run records.
"""

import ast
import dataclasses
import difflib
import inspect
import re
import typing
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import LANGUAGES


@dataclass(frozen=True)
class Recipe:
    """The settings of one training; the defaults suit a folder of a few thousand photos and a laptop."""

    quality: str = "fast"
    """Which network where `backbone` names none: `fast` (EfficientNet-Lite0), `good` (Lite2) or `best` (the strongest
    that can be fetched now, through timm)."""
    backbone: str | None = None
    """The network that looks at the photo, as `resnet50`; `fieldmark zoo` lists them."""
    attention: str | None = None
    """Attention inside every block: se, cbam, eca, coordinate, ela, gct or mask, as `se(ratio=8)`; `replace(se)` puts
    it in the place of the paper's own, `none` leaves that out; without it, as in the network's paper."""
    after: str | None = None
    """Attention after stages, as `-1:mask` or `-2:se(ratio=8),-1:mask`."""
    head: str | None = None
    """What turns the last map into classes: linear, classic, gem, attention_pool, bilinear or self_product, as
    `bilinear(reduced=64)`; without it, the published head."""
    aux: bool = False
    """Train the auxiliary heads of GoogLeNet and Inception-v3 too; the loss counts them as the papers do."""
    weights: str = "imagenet"
    """Where the training starts: `imagenet`, `none` (from scratch) or a .safetensors / .pth file."""
    image_size: int | None = None
    """Pixels of a photo when it is judged, whole; without it, at the scale that the weights expect (256 for those that
    were judged on the middle 224 of 256)."""
    train_size: int | None = None
    """Pixels of a photo while training; without it, 6/7 of the image size, at which a crop shows things as large as the
    whole photo does when it is judged; all of it below 96 pixels, and where `augment` crops little or not."""
    start_size: int | None = None
    """Pixels of a photo when phase 2 begins; they grow to `train_size` in three steps (progressive resizing)."""
    pad: int = 0
    """Pixels put around a photo on each side, of the mean colour, once it has its size: small photos in a network that
    takes larger ones."""
    channels: int = 3
    """What the network sees of a photo: 3 for its colours, 1 for grey alone."""
    standardise: bool = False
    """Give the network colours of mean 0 and standard deviation 1 over the training photos, in place of what published
    weights expect: for a training from scratch (`weights` none)."""
    augment: str = "standard"
    """How training photos vary: `none`, `flip-crop` (flipped and shifted a little), `standard` (cropped at random and
    flipped) or `strong` (TrivialAugment and random erasing too)."""
    mixup: float = 0.0
    """Strength (alpha) of mixup: two photos blended into one. 0 leaves it out."""
    cutmix: float = 0.0
    """Strength (alpha) of cutmix: a piece of one photo in another. 0 leaves it out."""
    imbalance: str = "none"
    """What is done about classes of few photos: `none`, `weights` (they count more in the loss) or `sampling` (they are
    drawn more often)."""
    batch: int = 32
    """Photos in one step, over all devices; 0 takes the largest power of two up to 256 that the memory holds."""
    accumulate: int = 1
    """Parts that a step is computed in, one after the other, for less memory."""
    exact: bool = True
    """Solve phase 1 exactly (L-BFGS) where the head is one linear layer, instead of `frozen_epochs` of steps."""
    frozen_epochs: int = 30
    """Epochs of phase 1: the head alone, on features of the frozen backbone that are computed once. 0 leaves it out."""
    frozen_lr: float = 1e-3
    """Learning rate of phase 1 (AdamW, or Adam where phase 2 takes Adam)."""
    epochs: int = 10
    """Epochs of phase 2: the backbone's later stages train too. 0 leaves phase 2 out; `budget` overrides it."""
    unfreeze: str = "late"
    """What phase 2 trains of the backbone: its `late` stages, `all` of it, or `gradual`: late ones first, then all."""
    optimizer: str = "sgd"
    """The optimiser of phase 2: `sgd` (Nesterov momentum 0.9), `adamw` or `adam`."""
    lr: float | None = None
    """Learning rate of the head and of everything inserted in phase 2; without it, 0.01 for sgd and 0.001 for the
    others."""
    backbone_lr: float | None = None
    """Learning rate of the backbone in phase 2; without it, half of `lr`. From scratch, `lr` holds for all."""
    find_lr: bool = False
    """Find the learning rates of phase 2 by a range test (Smith 2017) before it begins."""
    schedule: str = "cosine"
    """The rate of phase 2 over time: `cosine` with a warm-up, `plateau` (times 0.2 after 4 epochs without gain),
    `steps` (times 0.1 after 30, 60 and 90 % of the epochs) or `constant`."""
    weight_decay: float = 1e-4
    """L2 decay of the weights of convolutions and linear layers in phase 2."""
    decay_all: bool = False
    """Decay biases and the scales of norms too."""
    label_smoothing: float = 0.1
    """How far the target of a photo is spread over the other classes."""
    ema: float = 0.0
    """Judge and keep a running mean of phase 2's weights with this share of the old ones a step, as 0.99; 0 leaves it
    out."""
    monitor: str = "accuracy"
    """Which figure of the validation photos picks the best epoch: `accuracy` (with `cosine` the latest epoch within one
    standard error of the highest) or `loss`."""
    patience: int = 10
    """Phase 2 stops so many epochs behind the best one, whose weights are kept."""
    budget: str | None = None
    """Time for the whole run, as `90s`, `5m` or `1h`; epochs and steps are planned once from the measured speed."""
    steps_per_epoch: int | None = None
    """Steps in an epoch of phase 2; without it, one pass over the training photos. The plan of a budget sets it."""
    precision: str = "auto"
    """Numbers that training computes with: `32` bits, `bf16` (mixed with 32), or `auto`: bf16 where the processor has
    it. Photos are always judged with 32 bits."""
    compile: bool = False
    """Compile the trained part (torch.compile): worth its minute on a GPU, hardly on a CPU."""
    devices: int = 1
    """Processors or GPUs of this machine that train together; 0 takes all GPUs."""
    nodes: int = 1
    """Machines that train together, each started by torchrun; they see the same --out."""
    stream: bool = False
    """Read and decode photos anew each time they are seen, and keep no pixels: for more photos than a disk holds, and
    for many machines."""
    logger: str | None = None
    """Trackers beside TensorBoard and CSV: `wandb`, `mlflow`, or both with a comma."""
    lang: str = "en"
    """Language of the report and the card: `en` or `zh`."""
    group_by: str | None = None
    """What must stay on one side of the split: a column of the manifest, or a regular expression on the path, whose
    first group names it, as `(patient\\d+)`."""
    split_file: str | None = None
    """A CSV with path, label and split, as a run leaves it (split.csv): the same photos on the same sides."""
    folds: int = 0
    """Train this often, with another part of all photos as the test each time (cross-validation); 0 trains once."""
    fold: int = 0
    """Of several folds train this one alone, counted from 1."""
    apply: str | None = None
    """What was decided about photos: decisions.csv of `fieldmark check`, edited (exclude, relabel)."""
    crop_boxes: bool = False
    """Train on what lies in the boxes that the photos come with, in place of whole photos."""
    positive: str | None = None
    """Of two classes the one that is looked for, as `sick`; without it, the rarer one."""
    allow_leaks: bool = False
    """Train although the same photo or group lies in several of the given splits; the report will say so."""
    seed: int = 0
    """Fixes the split and every random draw."""

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Learning rates of the head and of the backbone in phase 2."""
        head = self.lr if self.lr is not None else 0.01 if self.optimizer == "sgd" else 0.001
        backbone = self.backbone_lr if self.backbone_lr is not None else head / 2
        return head, head if self.weights == "none" else backbone

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise FieldmarkError(
                    f"{option_name(name)} is {getattr(self, name)!r}, but can be {' or '.join(map(str, allowed))}"
                )
        for name in SPEC_EXAMPLES:
            if not isinstance(getattr(self, name), str | None):
                raise FieldmarkError(
                    f"{option_name(name)} is {getattr(self, name)!r}, but is written in words, as {SPEC_EXAMPLES[name]}"
                )
        for name, minimum in MIN_VALUES.items():
            if (value := getattr(self, name)) is not None and not value >= minimum:
                raise FieldmarkError(f"{option_name(name)} is {value}, but must be at least {minimum}")
        for name, maximum in MAX_VALUES.items():
            if getattr(self, name) > maximum:
                raise FieldmarkError(f"{option_name(name)} is {getattr(self, name)}, but must be at most {maximum}")
        micro_batches = max(1, self.devices) * self.nodes * self.accumulate
        if self.batch % micro_batches:
            raise FieldmarkError(
                f"--batch is {self.batch}, which {micro_batches} parts (devices x nodes x --accumulate) "
                "cannot share evenly:"
                f" {-(-self.batch // micro_batches) * micro_batches} is the next that they can"
            )
        if self.batch == 1 and self.weights == "none":
            raise FieldmarkError("--batch is 1: batch norms that start from scratch need at least 2 photos")
        if self.budget is not None:
            parse_duration(self.budget)


CHOICES = {
    "channels": (1, 3),
    "quality": ("fast", "good", "best"),
    "augment": ("none", "flip-crop", "standard", "strong"),
    "imbalance": ("none", "weights", "sampling"),
    "unfreeze": ("late", "all", "gradual"),
    "optimizer": ("sgd", "adamw", "adam"),
    "precision": ("auto", "32", "bf16"),
    "schedule": ("cosine", "plateau", "steps", "constant"),
    "monitor": ("accuracy", "loss"),
    "lang": tuple(LANGUAGES),
}
RECIPES_DIR = Path(__file__).parent
"""The named recipes."""
SPEC_EXAMPLES = {"backbone": "resnet50", "attention": "se(ratio=8)", "after": "-1:mask", "head": "gem"}
MIN_VALUES = {
    "image_size": 28, "train_size": 28, "start_size": 28, "pad": 0, "batch": 0, "accumulate": 1, "mixup": 0,
    "cutmix": 0, "ema": 0, "folds": 0, "fold": 0, "devices": 0, "nodes": 1, "frozen_epochs": 0, "frozen_lr": 0,
    "epochs": 0, "lr": 0, "backbone_lr": 0, "weight_decay": 0, "label_smoothing": 0, "patience": 1,
    "steps_per_epoch": 1, "seed": 0,
}  # fmt: skip

MAX_VALUES = {"pad": 512, "label_smoothing": 0.99, "ema": 0.99999, "seed": 2**32 - 1}


def option_name(field: str) -> str:
    """`image_size` -> `--image-size`."""
    return "--" + field.replace("_", "-")


def parse_duration(budget: str) -> float:
    """`90s`, `5m`, `1.5h` or a bare number of seconds -> seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", budget)
    if not match or float(match[1]) == 0:
        raise FieldmarkError(f"--budget is {budget!r}, but is written as 90s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@cache
def field_docs() -> dict[str, str]:
    """Field -> the text under it."""
    (class_node,) = ast.parse(inspect.getsource(Recipe)).body
    texts = {}
    for field, text in pairwise(getattr(class_node, "body", ())):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                texts[name] = " ".join(words.split())
    return texts


def read_recipe(file: str | Path) -> Recipe:
    """A recipe by the name of one that comes with Fieldmark, or from YAML; unknown keys and wrong types are refused.

    A key `recipe` names one that comes with Fieldmark, whose settings hold where the file has none of its own.

    Raises:
        FieldmarkError: no such file, no YAML, a key or a value that no recipe has.
    """
    import yaml

    named_recipes = {path.stem: path for path in sorted(RECIPES_DIR.glob("*.yaml"))}
    file = named_recipes.get(str(file), file)
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise FieldmarkError(
            f"cannot read the recipe {file}: no such file; "
            f"the recipes that come with Fieldmark: {', '.join(named_recipes)}"
        ) from None
    except Exception as error:  # on odd numbers and dates PyYAML raises nearly everything there is
        raise FieldmarkError(f"cannot read the recipe {file}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise FieldmarkError(f"the recipe {file} holds no `key: value` lines")
    types, base_name = typing.get_type_hints(Recipe), values.pop("recipe", None)
    if base_name is not None and str(base_name) not in named_recipes:
        raise FieldmarkError(
            f"the recipe {file} is to begin from {base_name!r}, but can from {', '.join(named_recipes)}"
        )
    for key, value in values.items():
        if key not in types:
            suggestions = difflib.get_close_matches(str(key), types, 1)
            raise FieldmarkError(
                f"the recipe {file} has {key!r}, which is no setting" + (f"; {suggestions[0]}?" if suggestions else "")
            )
        if (
            types[key] in (float, float | None)
            and type(value) in (int, str)
            and (number := _float_or_none(value)) is not None
        ):
            values[key] = number
        elif key in ("budget", "precision") and type(value) in (int, float):
            values[key] = str(value)
        elif not isinstance(value, types[key]) or (isinstance(value, bool) and types[key] is not bool):
            raise FieldmarkError(f"the recipe {file} has {key}: {value!r}, which is not of the right kind")
    return dataclasses.replace(read_recipe(str(base_name)) if base_name is not None else Recipe(), **values)


def _float_or_none(value: int | str) -> float | None:
    """YAML 1.1 takes `1e-3` for a text."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def write_recipe(recipe: Recipe, file: Path) -> None:
    """The recipe as YAML, each setting under its help text."""
    import yaml

    lines = []
    for name, value in dataclasses.asdict(recipe).items():
        is_printable = str(value).isprintable()  # else PyYAML breaks a line at what it takes for a line break
        lines.append(f"# {field_docs()[name]}\n" + yaml.safe_dump({name: value}, allow_unicode=is_printable))
    file.write_text("".join(lines), encoding="utf-8")
