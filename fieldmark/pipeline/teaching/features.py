"""Images -> features of a network: of all stages of a pretrained one, or what the head of a run classifies."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fieldmark.core import runtime
from fieldmark.data.dataset import Normalize
from fieldmark.data.image import decode, preprocess
from fieldmark.inference import bundle
from fieldmark.models import Network, build
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.presets import PIP_BACKBONES


class FeatureExtractor:
    """The backbone of a network with the pooling of its head.

    On a GPU if there is one, in bfloat16 where that is faster than 32 bits, as in training.

    Args:
        model: the bundle of a run, whose network it is then; by default the pretrained one that a training starts from.
    """

    def __init__(self, model: Path | None = None) -> None:
        self.preprocessing: dict[str, object] | None = None
        if model is None:
            self.network: Network = build(PIP_BACKBONES["fast"], head="multi_stage", classes=2, weights="imagenet")
        else:
            self.network = bundle.load_network(model)
            self.preprocessing = dict(bundle.read_info(model).preprocessing)
        self.device = runtime.default_device()
        self.network.to(self.device).eval().requires_grad_(False)
        settings = self.network.preprocessing
        self.size, self.interpolation = settings.size, settings.interpolation
        normalize = Normalize(settings.mean, settings.std)
        self.layers: nn.Module = nn.Sequential(normalize, self.network.backbone).to(self.device).eval()
        self.is_fused = False

    def read(self, content: bytes) -> np.ndarray:
        """The bytes of an image's file -> the network's input, uint8 (size, size, 3).

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        if self.preprocessing is not None:
            return preprocess(content, self.preprocessing)
        return np.asarray(decode(content, self.size, self.interpolation, squash=True))

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """Images as `read` returns them -> float32 (n, d)."""
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        x = x.float().contiguous(memory_format=torch.channels_last).to(self.device)
        if not self.is_fused:  # checked on real images
            self.layers, self.is_fused = fuse_batch_norms(self.layers, x[:2]), True
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=runtime.has_bf16())
        with torch.inference_mode(), autocast:
            return self.network.head.pre_pool(self.layers(x)).float().flatten(1).cpu().numpy()
