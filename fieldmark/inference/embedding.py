"""Image -> features before the classifier, by the network in PyTorch."""

from pathlib import Path

import numpy as np
import torch

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import Normalize
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.locate import ImageSource
from fieldmark.inference import bundle
from fieldmark.inference.bundle import BundleInfo


class Embedder:
    """Features by the network of a bundle.

    Args:
        folder: the bundle.
        info: the content of its bundle.json.

    Raises:
        FieldmarkError: there are no weights beside the exported file.
    """

    def __init__(self, folder: Path, info: BundleInfo) -> None:
        if not (folder / "model.safetensors").exists():
            raise FieldmarkError(f"{folder} has no model.safetensors: features need a run or its bundle")
        self.network, self.preprocessing = bundle.load_network(folder).eval(), info.preprocessing
        self.normalise = Normalize(tuple(self.preprocessing["mean"]), tuple(self.preprocessing["std"]))

    @property
    def width(self) -> int:
        """Number of features."""
        return list(self.network.backbone.stages.values())[-1]

    @torch.inference_mode()
    def embed(self, name: str, source: ImageSource) -> np.ndarray:
        """Features of an image, float32 (d,); ValueError if it cannot be read."""
        try:
            image = preprocess(source, self.preprocessing)
        except UnreadableImageError as error:
            raise ValueError(f"{name or 'the image'} cannot be read: {error}") from None
        x = self.normalise(torch.from_numpy(image)[None].permute(0, 3, 1, 2))
        return self.network.head.embed(self.network.features(x))[0].numpy()
