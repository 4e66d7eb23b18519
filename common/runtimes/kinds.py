"""The kinds of model files, by their suffixes."""

TRACED = {"torchscript": ".pt", "exported": ".pt2"}  # kind that runs without the code of its network -> its suffix
KINDS = {
    ".pth": "checkpoint",
    ".ckpt": "checkpoint",
    ".safetensors": "checkpoint",
    **{suffix: kind for kind, suffix in TRACED.items()},
    ".onnx": "onnx",
    ".pte": "program",
}  # suffix -> kind
