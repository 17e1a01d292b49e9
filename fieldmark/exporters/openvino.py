"""model.onnx -> OpenVINO's intermediate representation, model.xml and model.bin; and its runtime, to verify them."""

from pathlib import Path

import numpy as np
import openvino

from fieldmark.core import io
from fieldmark.exporters.onnx import METADATA_KEY
from fieldmark.inference.bundle import BundleInfo


def save_openvino(file: Path, xml: Path, info: BundleInfo) -> None:
    """Convert an exported file to `xml` and a .bin beside it, weights in FP32, with `info` as its metadata."""
    model = openvino.Core().read_model(file)
    # Where OpenVINO puts the metadata of an ONNX file.
    model.set_rt_info(io.to_json(info.to_dict()), ["framework", METADATA_KEY])
    openvino.save_model(model, xml, compress_to_fp16=False)


class OpenVINOModel:
    """A file of `save_openvino` in OpenVINO's runtime on the CPU, in FP32.

    By default OpenVINO computes in bfloat16 if the processor has it: probabilities are then off by some hundredths.
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
