"""model.onnx -> OpenVINO's intermediate representation, model.xml and model.bin; and its run time, to hold it by."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from fieldmark.core import io
from fieldmark.exporters.onnx import METADATA_KEY


def save_openvino(file: Path, xml: Path, info: dict[str, Any]) -> None:
    """An exported file as `xml` and a .bin beside it, weights in 32 bits, with `info` as its metadata."""
    model = openvino.Core().read_model(file)
    model.set_rt_info(io.to_json(info), ["framework", METADATA_KEY])  # where OpenVINO puts the metadata of an ONNX file
    openvino.save_model(model, xml, compress_to_fp16=False)


class OpenVINOModel:
    """A file of `write` as OpenVINO computes it on the CPU, in 32 bits.

    Left to itself it takes bfloat16 where the processor has it, and probabilities are off by some hundredths.
    """

    def __init__(self, xml: Path) -> None:
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # so that the file may be written anew while it is used
        self.compiled_model = core.compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.output_names = [output.any_name for output in self.compiled_model.outputs]

    def infer(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (size, size, 3) -> probabilities and logits (classes,), evidence (h, w), known_score ()."""
        values = self.compiled_model({"photos": image[None]})
        return {name: values[name][0] for name in self.output_names}
