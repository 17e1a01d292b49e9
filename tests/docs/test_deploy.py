"""The blocks of deploy.md that classify an image without Fieldmark give the same predictions as Fieldmark."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pages import python_blocks
from PIL import Image
from tiny import write_model

import fieldmark

(PAGE,) = (Path(__file__).resolve().parents[2] / "docs").rglob("deploy.md")
PREPROCESSING = {
    "squashed": {"fit": "squash", "crop": 1.0, "interpolation": "bicubic"},
    "cropped": {"fit": "crop", "crop": 0.875, "interpolation": "bilinear"},
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG that is turned by its EXIF tag, and so large that it is decoded at a smaller scale."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the EXIF tag "Orientation": a quarter turn
    file = tmp_path_factory.mktemp("image") / "photo.jpg"
    Image.fromarray(noise).resize((800, 480), Image.Resampling.NEAREST).save(file, exif=exif)
    return file


def with_preprocessing(model: Path, file: Path, changes: dict[str, Any]) -> Path:
    """A copy of the model that says in its metadata to preprocess otherwise."""
    loaded = onnx.load(model)
    (entry,) = (entry for entry in loaded.metadata_props if entry.key == "fieldmark")
    info = json.loads(entry.value)
    entry.value = json.dumps(info | {"preprocessing": info["preprocessing"] | changes})
    onnx.save(loaded, file)
    return file


@pytest.mark.parametrize("kind", PREPROCESSING)
def test_the_block_for_onnxruntime_predicts_as_fieldmark(kind, small_run, image, tmp_path, monkeypatch):
    model = with_preprocessing(small_run / "bundle" / "model.onnx", tmp_path / "model.onnx", PREPROCESSING[kind])
    shutil.copy(image, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(PAGE.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    exec(compile(block, "deploy.md", "exec"), found)
    classifier = fieldmark.load(model)
    expected = classifier.predict("photo.jpg")
    assert (found["label"], found["known"]) == (expected.label, expected.known)
    assert abs(found["confidence"] - expected.confidence) <= 1e-5
    np.testing.assert_allclose(found["probabilities"][0], classifier.predict_proba("photo.jpg"), atol=1e-5)


# Stands in for the browser: a bitmap is an array of RGB, and a canvas draws it as it is.
BROWSER = """
import { readFileSync } from "node:fs";
const { info, pixels, width, height } = JSON.parse(readFileSync(0));
globalThis.createImageBitmap = async () => ({ width, height });
globalThis.OffscreenCanvas = class {
  getContext() {
    return {
      drawImage: (bitmap, ...place) => (this.place = place),
      getImageData: () => ({ data: pixels.flatMap((rgb) => [...rgb, 255]) }),
    };
  }
};
const ran = {};
const ort = {
  Tensor: class { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } },
  InferenceSession: {
    create: async () => ({
      run: async ({ photos: { type, data, dims } }) => {
        Object.assign(ran, { type, dims, data: [...data] });
        return { probabilities: { data: [0.1, 0.7, 0.2] }, known_score: { data: [0.05] } };
      },
    }),
  },
};
"""


def test_the_block_for_a_browser_fills_the_tensor_with_the_pixels(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    (block,) = re.findall(r"^```js\nimport \* as ort .*?\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    program = BROWSER + block + "const answer = await ask(null, info);\nconsole.log(JSON.stringify({ answer, ran }));\n"
    info = fieldmark.load(write_model(tmp_path / "model.onnx")).info.to_dict()
    size = info["preprocessing"]["size"]
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    given = {"info": info, "pixels": pixels.reshape(-1, 3).tolist(), "width": 300, "height": 200}
    (script := tmp_path / "block.mjs").write_text(program, encoding="utf-8")
    done = subprocess.run([node, script], input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ran"]["type"], said["ran"]["dims"]) == ("uint8", [1, size, size, 3])
    np.testing.assert_array_equal(np.array(said["ran"]["data"]).reshape(size, size, 3), pixels)
    assert said["answer"] == {"label": info["classes"][1], "confidence": 0.7, "known": False}
