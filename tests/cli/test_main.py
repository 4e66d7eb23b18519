import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from common.cli.flags import make_parser
from common.cli.main import run
from common.system.files import atomic_path
from common.system.process import resolve_device

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_never_replaced_in_silence():
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"


def test_a_device_that_is_there_is_taken_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


@pytest.fixture
def tf32_as_before():
    """As PyTorch has it: on for convolutions."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    torch.backends.cudnn.allow_tf32 = True
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def test_every_script_computes_in_full_float32(tf32_as_before, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["script.py"])
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    run(lambda args: seen.extend((cudnn.allow_tf32, matmul.allow_tf32)), make_parser("A script.", "python script.py"))
    assert seen == [False, False]


def test_a_gpu_is_not_looked_for_where_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("looked for a GPU"))
    assert resolve_device("cpu").type == "cpu"


def test_pytorch_finds_no_gpu_while_a_script_computes_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = []
    for device in ("cpu", "auto"):
        monkeypatch.setattr("sys.argv", ["script.py", "--device", device])
        run(lambda args: found.append(torch.cuda.is_available()), make_parser("A script.", "python script.py"))
    assert found == [False, True]


def run_with(error, monkeypatch, *flags):
    def main(args):
        if error:
            raise error

    monkeypatch.setattr("sys.argv", ["script.py", *flags])
    run(main, make_parser("A script.", "python script.py"))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("bad mask"), 1, "error: bad mask\n"),
        (FileNotFoundError("x.pth: no such file"), 1, "error: x.pth: no such file\n"),
        (KeyError("a bug"), 1, "error: KeyError: 'a bug' (add --debug for the traceback)\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_with(error, monkeypatch)
    assert exit_info.value.code == code
    assert capsys.readouterr().err == message


@pytest.fixture
def signals_as_before():
    """And at first as a terminal sets them."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_clears_away_what_is_half_written(number, code, signals_as_before, tmp_path, monkeypatch, capsys):
    def main(args):
        with atomic_path(tmp_path / "a.onnx") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)

    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(SystemExit) as exit_info:
        run(main, make_parser("A script.", "python script.py"))
    assert exit_info.value.code == code
    assert capsys.readouterr().err == f"error: stopped by {number.name}\n"
    assert not [*tmp_path.iterdir()]


def test_output_that_cannot_be_written_is_an_error():
    """A full disk, or a pipe that nobody reads: seen when what was printed is brought there, at the end."""
    code = (
        "from common.cli.flags import make_parser; from common.cli.main import run; "
        "run(lambda args: print('mIoU'), make_parser('A', 'B'))"
    )
    with Path("/dev/full").open("w") as full:
        process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1
    assert process.stderr == "error: standard output: No space left on device; free some space, or give another place\n"


def test_debug_shows_the_traceback(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_with(ValueError("bad mask"), monkeypatch, "--debug")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "shown"), [((), False), (("--debug",), True)])
def test_what_libraries_tell_their_developers_is_shown_with_debug(flags, shown, monkeypatch, capsys):
    def main(args):
        """As a library that is imported now: with a filter of its own, before those of the script."""
        warnings.simplefilter("always", FutureWarning)
        warnings.warn("a notice", FutureWarning, stacklevel=1)

    monkeypatch.setattr("sys.argv", ["script.py", *flags])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
        run(main, make_parser("A script.", "python script.py"))
    assert capsys.readouterr().err == "a notice\n" * shown


def test_success_returns(monkeypatch):
    run_with(None, monkeypatch)
