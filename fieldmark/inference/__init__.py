"""Images -> predictions with onnxruntime and without PyTorch; the bundle and the folder of a run."""
