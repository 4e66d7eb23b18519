import os

import pytest

from common.cli.training import training_device


@pytest.mark.parametrize(("name", "hidden"), [("cpu", True), ("auto", False)])
def test_asked_for_the_cpu_a_run_finds_no_gpu(name, hidden, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: not hidden)
    assert training_device(name).type == ("cpu" if hidden else "cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if hidden else "0")
