import resource
from types import SimpleNamespace

import psutil
import pytest
import torch

from common.system import control_groups, memory
from common.system.allocator import give_freed_memory_back
from common.system.memory import PeakMemory, free_memory

CPU = torch.device("cpu")
MB = 10**6


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function that puts this process into a control group, with files of that folder; nothing else limits it."""
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "OF_PROCESS", tmp_path / "of_process")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=900 * MB))
    monkeypatch.setattr(memory, "_room_below_limits", lambda: iter(()))

    def put(line, folder="", **files):
        (tmp_path / "of_process").write_text(f"7:pids:/elsewhere\n{line}\n")
        place = tmp_path / "cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name.replace("_", ".", 1)).write_text(f"{text}\n")

    return put


def files_v1(limit, usage, cache=0):
    names = ("memory_limit_in_bytes", "memory_usage_in_bytes", "memory_stat")
    return dict(zip(names, (limit, usage, f"cache 5\ntotal_inactive_file {cache}"), strict=True))


def files_v2(limit, usage, cache=0):
    names = ("memory_max", "memory_current", "memory_stat")
    return dict(zip(names, (limit, usage, f"anon 5\ninactive_file {cache}"), strict=True))


def test_without_groups_and_limits_it_is_what_the_machine_has(groups):
    assert free_memory(CPU) == 900 * MB


def test_a_group_of_version_2_and_those_around_it(groups):
    groups("0::/job/step", "job/step", **files_v2("max", 100 * MB))
    assert free_memory(CPU) == 900 * MB
    groups("0::/job/step", "job", **files_v2(500 * MB, 300 * MB, 40 * MB))
    assert free_memory(CPU) == 240 * MB  # the page cache gives way
    groups("0::/job/step", "job/step", **files_v2(90 * MB, 100 * MB))
    assert free_memory(CPU) == 0


def test_a_group_of_version_1(groups):
    groups("4:cpu,memory:/job", "memory/job", **files_v1(400 * MB, 300 * MB, 20 * MB))
    assert free_memory(CPU) == 120 * MB


def test_within_a_container_the_group_is_at_the_top(groups):
    """The path is that outside of the container; what is mounted is the group itself."""
    groups("4:memory:/docker/0a1b", "memory", **files_v1(400 * MB, 300 * MB))
    assert free_memory(CPU) == 100 * MB
    groups("0::/docker/0a1b", "", **files_v2(350 * MB, 300 * MB))
    assert free_memory(CPU) == 50 * MB


@pytest.mark.parametrize(("name", "held"), [("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")])
def test_what_ulimit_allows(name, held, monkeypatch):
    number = getattr(resource, name)
    most = 123 * MB + getattr(psutil.Process().memory_info(), held)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (most if asked == number else resource.RLIM_INFINITY, -1))
    assert free_memory(CPU) == pytest.approx(123 * MB, abs=20 * MB)


def test_the_peak_is_seen_after_the_memory_is_freed():
    give_freed_memory_back()  # what earlier tests freed would be taken again without a growth
    peak = PeakMemory(CPU)
    torch.ones(50 * MB // 4).sum()
    torch.ones(20 * MB // 4).sum()
    assert 45 * MB < peak.growth() < 80 * MB
