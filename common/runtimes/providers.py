"""The execution providers of ONNX Runtime, as a command line names them."""

CPU = "CPU"
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "TensorRT": "TensorrtExecutionProvider",
    "OpenVINO": "OpenVINOExecutionProvider",
}
