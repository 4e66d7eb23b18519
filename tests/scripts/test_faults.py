"""Faults of the machine: full disks, dying processes, short memory, a lost GPU, two runs at once, a wrong clock."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from common.export.traced_writer import write_exported, write_torchscript
from common.networks.checkpoints import Description, read_checkpoint, save_checkpoint
from common.system.failures import explain, one_line
from common.system.files import atomic_path, new_folder, require_parent, short_stem, write_text
from common.system.lock import hold_folder
from common.training.fit import require_finite_weights
from examples.make_scenes import write_dataset
from tests import tiny_run
from tests.command_lines import refusal

ROOT = Path(__file__).resolve().parents[2]
RUN = dict(batch_size=32, gradient_accumulation=2, resume=None)
AUTO = dict(batch_size=32, gradient_accumulation="auto", resume=None)
NO_FLAGS = dict()


class OutOfMemory(torch.OutOfMemoryError):
    pass


CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
OF_A_WORKER = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x"
ValueError: a.png: damaged
"""
SINGLE = dict(batch_size=2, gradient_accumulation=2)


def of_the_system(number):
    return OSError(number, os.strerror(number), "a.pth")


# name: (the error, the flags of the script, what the line says)
LINES = {
    "CPU memory": (RuntimeError(CPU_MEMORY), RUN, "--batch_size 32 in 2 .*_accumulation 4.*--batch_size 16"),
    "CUDA memory": (OutOfMemory("CUDA out of memory. Tried 2 GiB"), RUN, "--batch_size 16.*--resume auto"),
    "NumPy's memory": (MemoryError("Unable to allocate 3 GiB"), NO_FLAGS, "out of memory; give a smaller input size"),
    "one image a part": (MemoryError(), SINGLE, "one image at a time.*--input_hw"),
    "auto": (MemoryError(), AUTO, "out of memory with the smallest parts; try a smaller --input_hw.*--resume auto"),
    "oneDNN's memory": (RuntimeError("could not create a primitive"), RUN, "^out of memory"),
    "another oneDNN error": (RuntimeError("could not create a primitive descriptor"), RUN, "^RuntimeError: could"),
    "no thread": (RuntimeError("can't start new thread"), RUN, "^out of memory, or of threads .*_accumulation 4"),
    "a worker killed": (RuntimeError("DataLoader worker (pid(s) 4) exited"), RUN, "worker died.*fewer --workers"),
    "a lost GPU": (RuntimeError("CUDA error: launch\nmore"), RUN, r"the GPU failed \(CUDA error: launch\)"),
    "full disk": (of_the_system(errno.ENOSPC), RUN, "a.pth: No space left on device; free"),
    "quota": (of_the_system(errno.EDQUOT), RUN, "a.pth: Disk quota exceeded; free"),
    "read-only": (of_the_system(errno.EROFS), RUN, "a.pth: Read-only file system; give a place"),
    "open files, no name": (OSError(errno.EMFILE, "Too many open files"), RUN, "^Too many open files; .*ulimit -n"),
    "open files": (of_the_system(errno.EMFILE), RUN, "ulimit -n"),
    "an error of a worker": (ValueError(OF_A_WORKER), RUN, "^a.png: damaged$"),
    "a bug": (KeyError("x"), RUN, "^KeyError: 'x' .add --debug"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_what_a_fault_tells_the_user(case):
    error, args, message = LINES[case]
    line = explain(error, args)
    assert re.search(message, line), line
    assert "\n" not in line and "Traceback" not in line


def test_a_name_breaks_no_line_and_commands_no_terminal():
    assert one_line("a\nb\x1b[31m\r.png") == r"a b\x1b[31m\r.png"


def fill(monkeypatch, number):
    """From now on a write of any file in Python fails as on a full disk."""

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(number, tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    write_text(path, "old")
    fill(monkeypatch, number)
    with pytest.raises(OSError, match=r"report\.md: not written .*free some space or raise the quota"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def write_checkpoint(path):
    save_checkpoint(path, {"a": torch.zeros(10**6)}, Description("Tiny", "fp32", 1.0, (32, 64)))


def write_traced(path):
    with atomic_path(path) as temporary:
        write_torchscript(nn.Linear(1000, 1000), torch.zeros(1, 1000), temporary, {})


def write_onnx(path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, (10**6,), bytes(4 * 10**6), raw=True)
    with atomic_path(path) as temporary:
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [weight])), temporary)


def write_graph(path):
    with atomic_path(path) as temporary:
        write_exported(nn.Linear(1000, 1000), torch.zeros(2, 1000), temporary, {})


@pytest.mark.parametrize("write", [write_checkpoint, write_traced, write_graph, write_onnx])
def test_a_write_that_the_system_stops_in_the_middle_leaves_the_old_file(write, tmp_path):
    """A limit on the size of files, set for this process: the write itself fails, not a stand-in for it."""
    path = tmp_path / "file"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="file: not written .*free some space or raise the quota"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, whom nothing stops
    with pytest.raises(PermissionError, match="cannot be written to; change its permissions"):
        require_parent(tmp_path / "a.onnx")


def test_a_name_that_no_file_system_takes_is_refused_before_the_work(tmp_path):
    with pytest.raises(OSError, match="more than 255 bytes"):
        require_parent(tmp_path / ("x" * 300 + ".onnx"))
    with atomic_path(tmp_path / ("x" * 250 + ".png")) as temporary:
        temporary.touch()
    assert short_stem("東" * 80) != short_stem("東" * 81)


HOLDER = """
import sys, time
from pathlib import Path
from common.system.lock import hold_folder
hold_folder(Path(sys.argv[1]), "wait")
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_do_not_write_to_one_folder_and_a_killed_one_frees_it(tmp_path, capsys):
    write_dataset(tmp_path / "data", "Town", 20, seed=0, size=(48, 96))
    folder = tmp_path / "out"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    line = refusal(tiny_run, ["-s", folder, "-r", tmp_path / "data", "--datasets", "Town"], capsys)
    assert f"another run writes there (process {holder.pid}); wait for its end, or give another" in line
    holder.kill()
    holder.communicate()
    hold_folder(folder, "wait")


def test_a_clock_that_stands_still_or_goes_back_overwrites_no_result(tmp_path):
    made = [new_folder(tmp_path / "2026-01-01_00-00-00") for _ in range(3)]
    assert [path.name for path in made] == ["2026-01-01_00-00-00", "2026-01-01_00-00-00_2", "2026-01-01_00-00-00_3"]


def test_results_below_a_link_to_nothing_are_refused(tmp_path):
    (tmp_path / "results").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="results"):
        new_folder(tmp_path / "results" / "2026-01-01_00-00-00")


def test_durations_are_of_a_clock_that_cannot_be_set():
    sources = [path for part in ("common", "examples", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    assert not [path for path in (*sources, *ROOT.glob("*.py")) if "time.time()" in path.read_text()]


def test_a_weight_that_is_no_number_is_never_saved():
    model = nn.Linear(2, 2)
    require_finite_weights(model, 7)
    model.bias.data[1] = float("nan")
    with pytest.raises(FloatingPointError, match="step 7: the weight bias"):
        require_finite_weights(model, 7)


def test_a_run_whose_weights_are_lost_keeps_its_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    real, saved = torch.optim.AdamW.step, []

    def step(self, *arguments, **options):
        real(self, *arguments, **options)
        saved.append(1)
        if len(saved) == 4:  # within the second epoch, with the loss still a number
            self.param_groups[0]["params"][0].data[0] = float("nan")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    flags = ["-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town", "--workers", "0", "-e", "3"]
    line = refusal(tiny_run, [*flags, "--batch_size", "9"], capsys)
    assert "step 4: the weight 0.weight is no longer a number" in line
    (good,) = (tmp_path / "out").glob("checkpoint_*.pth")
    assert str(good) in line and good.name == "checkpoint_epoch_0_step_2.pth"
    assert all(bool(torch.isfinite(value).all()) for value in read_checkpoint(good).state.values())


class Dying(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_data_worker_that_is_killed_is_named(capsys):
    with pytest.raises(RuntimeError) as error:
        list(torch.utils.data.DataLoader(Dying(), num_workers=1))
    assert "a data worker died" in explain(error.value, RUN)


def test_memory_that_is_not_there_is_told_with_the_flags_that_help():
    """A real refusal of PyTorch's allocator: a petabyte."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8)
    assert "--batch_size 16" in explain(error.value, RUN)


def test_the_same_weights_give_the_same_bytes(tmp_path):
    """Neither a name, a process id nor a time gets into a checkpoint."""
    description = Description("Tiny", "fp32", 1.0, (32, 64))
    for name in ("one.pth", "other.pth"):
        save_checkpoint(tmp_path / name, {"a": torch.arange(1000.0)}, description, {"step": 3})
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()


def test_the_same_command_gives_the_same_files_byte_for_byte(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", "Town", 20, seed=0, size=(48, 96))
    flags = ["-s", "out", "-r", "../data", "--datasets", "Town", "--workers", "0", "-e", "2", "--batch_size", "6"]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr("sys.argv", ["tiny_run.py", *flags, "--threads", "1", "--device", "cpu"])
        tiny_run.run(tiny_run.main, tiny_run.get_args_parser())
    files = sorted(path.name for path in (tmp_path / "one" / "out").glob("*.*") if path.suffix in (".pth", ".json"))
    assert len(files) == 5  # two checkpoints, the best, the last, the history
    for name in files:
        one, other = (tmp_path / folder / "out" / name for folder in ("one", "other"))
        assert one.read_bytes() == other.read_bytes(), name
