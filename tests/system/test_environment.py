"""What a report says of the machine, found out without taking hold of a GPU."""

import torch

from common.system import environment


def test_the_gpu_is_named_by_the_driver_where_pytorch_does_not_use_it(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "GPUS", tmp_path)
    assert environment.environment()["gpu"] is None
    for bus, model in (("0000:02:00.0", "NVIDIA H200"), ("0000:01:00.0", "NVIDIA A100-SXM4-40GB")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 125\n")
    assert environment.environment()["gpu"] == "NVIDIA A100-SXM4-40GB"


def test_the_gpu_that_pytorch_uses_is_named_by_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert environment.environment()["gpu"] == "NVIDIA L4"
