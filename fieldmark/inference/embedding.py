"""Image -> features before the classifier, by the network in PyTorch, which is imported when it is needed."""

from pathlib import Path

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.inference import bundle
from fieldmark.inference.bundle import BundleInfo
from fieldmark.inference.inputs import InputSource


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
        from fieldmark.data.dataset import Normalize

        self.network, self.preprocessing = bundle.load_network(folder).eval(), info.preprocessing
        self.normalise = Normalize(tuple(self.preprocessing["mean"]), tuple(self.preprocessing["std"]))

    @property
    def width(self) -> int:
        """Number of features."""
        return list(self.network.backbone.stages.values())[-1]

    def embed(self, name: str, source: InputSource) -> np.ndarray:
        """Features of an image, float32 (d,); ValueError if it cannot be read."""
        try:
            image = preprocess(source, self.preprocessing)
        except UnreadableImageError as error:
            raise ValueError(f"{name or 'the image'} cannot be read: {error}") from None
        import torch

        with torch.inference_mode():
            x = self.normalise(torch.from_numpy(image)[None].permute(0, 3, 1, 2))
            return self.network.head.embed(self.network.features(x))[0].numpy()
