"""model.onnx -> OpenVINO's intermediate representation, model.xml and model.bin; and its run time, to hold it by."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from fieldmark.core import io
from fieldmark.exporters.onnx import KEY


def write(file: Path, xml: Path, info: dict[str, Any]) -> None:
    """An exported file as `xml` and a .bin beside it, weights in 32 bits, with `info` as its metadata."""
    model = openvino.Core().read_model(file)
    model.set_rt_info(io.text(info), ["framework", KEY])  # where OpenVINO puts the metadata of an ONNX file
    openvino.save_model(model, xml, compress_to_fp16=False)


class Intermediate:
    """A file of `write` as OpenVINO computes it on the CPU, in 32 bits.

    Left to itself it takes bfloat16 where the processor has it, and probabilities are off by some hundredths.
    """

    def __init__(self, xml: Path) -> None:
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # so that the file may be written anew while it is used
        self.run = core.compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.names = [output.any_name for output in self.run.outputs]

    def judge(self, photo: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (size, size, 3) -> probabilities and logits (classes,), evidence (h, w), known_score ()."""
        values = self.run({"photos": photo[None]})
        return {name: values[name][0] for name in self.names}
