"""A trained network -> ONNX, INT8 and OpenVINO files, verified against it on images of the run."""
