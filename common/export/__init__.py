"""A network to a file: int8 graph passes, the ONNX, TorchScript and ExecuTorch writers, calibration images."""
