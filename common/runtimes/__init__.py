"""What runs a file: PyTorch, ONNX Runtime and ExecuTorch as callables of one kind, and how far two are apart."""
