"""Names of torchvision and timm for networks that have others here -> ours.

Most networks have the same names in both, and are ours (`published.py` has the exceptions). The others:

- EfficientNet has timm's names here; torchvision has its own.
- MobileNet has torchvision's names here; timm has those of its EfficientNet.
- SE-ResNet, SE-ResNeXt and SENet have the authors' names here, as in timm's `legacy_` networks; timm's newer ones have
  those of ResNet.
"""

from torch import Tensor

from fieldmark.models.weights import rename_key
from fieldmark.models.zoo.mobilenet import MOBILENET_V2, MOBILENET_V3_LARGE, MOBILENET_V3_SMALL, MobileNetConfig

Renames = tuple[tuple[str, str], ...]

# The first stage's blocks have no expansion, so that their layers have other numbers.
EFFICIENTNET_OF_TORCHVISION: Renames = (
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^features\.8\.0\.", "conv_head."),
    (r"^features\.8\.1\.", "bn2."),
    (r"^classifier\.1\.", "classifier."),
    (r"^(features\.1\.\d+\.)block\.0\.0\.", r"\1conv_dw."),
    (r"^(features\.1\.\d+\.)block\.0\.1\.", r"\1bn1."),
    (r"^(features\.1\.\d+\.)block\.1\.", r"\1se."),
    (r"^(features\.1\.\d+\.)block\.2\.0\.", r"\1conv_pw."),
    (r"^(features\.1\.\d+\.)block\.2\.1\.", r"\1bn2."),
    (r"\.block\.0\.0\.", ".conv_pw."),
    (r"\.block\.0\.1\.", ".bn1."),
    (r"\.block\.1\.0\.", ".conv_dw."),
    (r"\.block\.1\.1\.", ".bn2."),
    (r"\.block\.2\.", ".se."),
    (r"\.block\.3\.0\.", ".conv_pwl."),
    (r"\.block\.3\.1\.", ".bn3."),
    *((rf"^features\.{stage + 1}\.", f"blocks.{stage}.") for stage in range(7)),
)
SENET_OF_TIMM: Renames = (
    (r"^conv1\.(0|weight)", r"layer0.conv1.\1"),
    (r"^layer0\.conv1\.0\.", "layer0.conv1."),
    (r"^conv1\.1\.", "layer0.bn1."),
    (r"^conv1\.3\.", "layer0.conv2."),
    (r"^conv1\.4\.", "layer0.bn2."),
    (r"^conv1\.6\.", "layer0.conv3."),
    (r"\.se\.", ".se_module."),
    (r"^fc\.", "last_linear."),
)
MOBILENETS = {
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3_large": MOBILENET_V3_LARGE,
    "mobilenet_v3_small": MOBILENET_V3_SMALL,
}


def rename_senet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's SE-ResNet, SE-ResNeXt or SENet-154 under our names; the stem of the last has three convolutions."""
    last_norm = "bn3" if "conv1.6.weight" in state else "bn1"
    return {rename_key(key, ((r"^bn1\.", f"layer0.{last_norm}."), *SENET_OF_TIMM)): t for key, t in state.items()}


def rename_mobilenet(backbone: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's MobileNet under our names."""
    names = _mobilenet_names(MOBILENETS[backbone])
    return {_rename_layer(key, names): tensor for key, tensor in state.items()}


def _rename_layer(key: str, names: dict[str, str]) -> str:
    layer, _, kind = key.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}"


def _mobilenet_names(config: MobileNetConfig) -> dict[str, str]:
    """timm's name of each layer -> ours. timm numbers the blocks of a stage, we all of them."""
    last, stages = 1 + sum(len(stage.widths) for stage in config.stages), len(config.stages)
    names = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    if config is MOBILENET_V2:
        names |= {"conv_head": f"features.{last}.0", "bn2": f"features.{last}.1", "classifier": "classifier.1"}
    else:
        names |= {f"blocks.{stages}.0.conv": f"features.{last}.0", f"blocks.{stages}.0.bn1": f"features.{last}.1"}
        names |= {"conv_head": "classifier.0", "classifier": "classifier.3"}
    number = 1
    for s, stage in enumerate(config.stages):
        for i in range(len(stage.widths)):
            block, ours = f"blocks.{s}.{i}", f"features.{number}.block"
            convolutions = ["conv_dw", "conv_pw"] if number == 1 else ["conv_pw", "conv_dw", "conv_pwl"]
            gate = len(convolutions) - 1  # before the last convolution
            for k, convolution in enumerate(convolutions):
                unit = k + (k == gate and stage.use_se)
                names |= {f"{block}.{convolution}": f"{ours}.{unit}.0", f"{block}.bn{k + 1}": f"{ours}.{unit}.1"}
            for theirs, fc in (("conv_reduce", "fc1"), ("conv_expand", "fc2")):
                names[f"{block}.se.{theirs}"] = f"{ours}.{gate}.{fc}"
            number += 1
    return names


def has_gates_of_timm(state: dict[str, Tensor]) -> bool:
    """Whether the gates have the names of timm's ResNet."""
    return "layer1.0.se.fc1.weight" in state


def timm_architectures(backbone: str) -> tuple[str, ...]:
    """timm's names of the networks that fit a backbone; the first is the one to assume."""
    name = backbone.removeprefix("timm:").partition(".")[0]
    if backbone in MOBILENETS:
        name = name.replace("_v", "v") + "_100"
        return (name, f"tf_{name}") if "v3" in name else (name,)
    if name.startswith("efficientnet") and name == backbone:
        return f"tf_{name}", name
    return name, f"legacy_{name}"
