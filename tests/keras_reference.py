"""Networks of keras.applications with random weights, and what they answer.

keras_reference.json has, for one network of each family, the layers with their shapes and the answer of Keras itself;
`python tests/keras_reference.py` writes it where Keras is installed (KERAS_BACKEND=torch). Weights and pixels are drawn
by numpy's frozen generator, so that they need not be in the file.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

FILE = Path(__file__).with_name("keras_reference.json")
CLASSES = 5
NORM = {"g": "gamma", "t": "beta", "m": "moving_mean", "v": "moving_variance"}


class Case(NamedTuple):
    """A network's class and module in keras.applications, and the side of its test images in pixels."""

    name: str
    module: str
    size: int = 64


CASES = {
    "vgg16": Case("VGG16", "vgg16"),
    "vgg19": Case("VGG19", "vgg19"),
    "resnet50": Case("ResNet50", "resnet"),
    "resnet101": Case("ResNet101", "resnet"),
    "resnet152": Case("ResNet152", "resnet"),
    "densenet121": Case("DenseNet121", "densenet"),
    "densenet169": Case("DenseNet169", "densenet"),
    "densenet201": Case("DenseNet201", "densenet"),
    "inception_v3": Case("InceptionV3", "inception_v3", 107),
    "inception_resnet_v2": Case("InceptionResNetV2", "inception_resnet_v2", 107),
    "xception": Case("Xception", "xception", 110),  # maps of even sides, where the padding of the pools shows
    "mobilenet_v2": Case("MobileNetV2", "mobilenet_v2", 96),
    "mobilenet_v3_large": Case("MobileNetV3Large", "mobilenet_v3"),
    "mobilenet_v3_small": Case("MobileNetV3Small", "mobilenet_v3"),
    **{f"efficientnet_b{n}": Case(f"EfficientNetB{n}", "efficientnet") for n in range(8)},
}
IN_FILE = (
    *("resnet50", "densenet121", "inception_v3", "inception_resnet_v2", "xception", "mobilenet_v2"),
    *("mobilenet_v3_small", "efficientnet_b0"),
)


def draw(random: np.random.RandomState, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values of an array that keep the scale of the maps."""
    if kind.endswith("kernel"):
        is_depthwise = len(shape) == 4 and shape[3] == 1
        bound = (6 / np.prod(shape[:2] if is_depthwise else shape[:-1])) ** 0.5
        return random.uniform(-bound, bound, shape)
    low, high = {"gamma": (0.5, 1.5), "moving_variance": (0.5, 1.5), "variance": (0.1, 0.3)}.get(kind, (-0.1, 0.1))
    return random.uniform(low, high, shape)


def pixels(size: int) -> np.ndarray:
    """Two images (2, size, size - 3, 3) of 0..255: sides of both parities."""
    return np.random.RandomState(1).uniform(0, 255, (2, size, size - 3, 3))


def arrays_of(lines: list[str]) -> dict[str, np.ndarray]:
    """Lines such as `conv1_conv kernel 7,7,3,64` and `conv1_bn gtmv 64` -> random arrays by `layer/kind`."""
    random, arrays = np.random.RandomState(0), {}
    for line in lines:
        layer, kinds, shape = line.split()
        for kind in [NORM[letter] for letter in kinds] if set(kinds) <= set(NORM) else [kinds]:
            arrays[f"{layer}/{kind}"] = draw(random, kind, tuple(map(int, shape.split(","))))
    return arrays


def write_legacy(path: Path, arrays: dict[str, np.ndarray], *, group: str | None = None) -> None:
    """The arrays in the older layout of Keras; all in one `group`, as a network inside another, if that is given."""
    import h5py  # type: ignore[import-not-found]

    layers: dict[str, list[str]] = {}
    for name in arrays:
        layers.setdefault(group or name.rpartition("/")[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, names in layers.items():
            of_layer = file.create_group(layer)
            of_layer.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                of_layer.create_dataset(f"{name}:0", data=arrays[name])


def write_numbered(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The arrays in the layout of Keras 3: by class and number, with the layer's name beside them."""
    import h5py  # type: ignore[import-not-found]

    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        layers.setdefault(layer, {})[kind] = array
    with h5py.File(path, "w") as file:
        for number, (layer, variables) in enumerate(layers.items(), 1):
            group = file.create_group(f"layers/{_class_of(variables)}_{number}/vars")
            group.attrs["name"] = layer
            for i, array in enumerate(variables.values()):
                group[str(i)] = array


def _class_of(variables: dict[str, np.ndarray]) -> str:
    if "moving_mean" in variables:
        return "batch_normalization"
    if "pointwise_kernel" in variables:
        return "separable_conv2d"
    return {2: "dense", 4: "conv2d"}[variables["kernel"].ndim]


def make(case: Case, **settings: Any) -> Any:
    """The network of Keras in double precision with random weights; its preprocessing is another function."""
    import keras  # type: ignore[import-not-found]

    keras.backend.set_floatx("float64")
    size = (case.size, case.size - 3, 3)
    model = getattr(keras.applications, case.name)(
        weights=None, input_shape=size, classes=CLASSES, classifier_activation=None, **settings
    )
    for name, array in arrays_of(lines_of(model)).items():
        layer, _, kind = name.rpartition("/")
        next(v for v in model.get_layer(layer).weights if v.path.endswith(kind)).assign(array)
    return model


def lines_of(model: Any) -> list[str]:
    """The layers with weights and their shapes."""
    lines = []
    for layer in model.layers:
        kinds = [(variable.path.rpartition("/")[2], variable.shape) for variable in layer.weights]
        norm = "".join(letter for letter, kind in NORM.items() if kind in dict(kinds))
        if norm:
            lines.append(f"{layer.name} {norm} {kinds[0][1][0]}")
            continue
        lines += [f"{layer.name} {kind} {','.join(map(str, shape))}" for kind, shape in kinds if shape]
    return lines


def answer(case: Case, model: Any) -> np.ndarray:
    """Keras' logits for `pixels`."""
    import keras  # type: ignore[import-not-found]

    preprocess = getattr(keras.applications, case.module).preprocess_input
    with _double_precision():
        return np.asarray(model.predict(preprocess(pixels(case.size)), verbose=0))


@contextmanager
def _double_precision() -> Iterator[None]:
    """Keras rounds batch norms and averages to single precision, which 80 random layers make a part in a thousand."""
    from keras.src import backend  # type: ignore[import-not-found]
    from keras.src.backend.common import dtypes  # type: ignore[import-not-found]

    original = dtypes.result_type

    def result_type(*types: Any) -> str:
        return "float64" if any("float64" in str(kind) for kind in types) else original(*types)

    with patch.object(dtypes, "result_type", result_type), patch.object(backend, "result_type", result_type):
        yield


def main() -> None:
    import keras  # type: ignore[import-not-found]

    found = {}
    for name in IN_FILE:
        keras.utils.clear_session()
        model = make(CASES[name])
        found[name] = {"layers": lines_of(model), "logits": answer(CASES[name], model).round(12).tolist()}
    FILE.write_text(json.dumps(found, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "torch")
    main()
