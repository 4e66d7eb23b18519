import os

import pytest

from common.system import control_groups, processors
from common.system.processors import physical_processors, pin, require_processors, usable_processors

QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"  # of version 1


def test_more_threads_than_processors_are_refused():
    require_processors([1, usable_processors()])
    with pytest.raises(ValueError, match=f"--thread_counts 5000: this process may use {usable_processors()} "):
        require_processors([1, 5000])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity (Linux)")
def test_pinning_binds_this_process_and_refuses_absent_processors():
    before = os.sched_getaffinity(0)
    try:
        pin([min(before)])
        assert os.sched_getaffinity(0) == {min(before)}
        with pytest.raises(ValueError, match="no processor 4095"):
            pin([4095])
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of eight processors on four cores, whose system files are written by the returned function."""
    for processor in range(8):
        folder = tmp_path / "cpus" / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{processor % 4},{processor % 4 + 4}\n")

    def write(allowed, membership="", **files):
        (tmp_path / "membership").write_text(membership)
        for path, content in files.items():
            (tmp_path / "groups" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / path).write_text(content)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))

    monkeypatch.setattr(processors, "TOPOLOGY", tmp_path / "cpus")
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(control_groups, "OF_PROCESS", tmp_path / "membership")
    return write


@pytest.mark.parametrize(
    ("allowed", "usable", "physical"), [(range(8), 8, 4), ([1], 1, 1), ([0, 4], 2, 1), ([0, 1, 4], 3, 2)]
)
def test_the_processors_are_those_that_this_process_is_kept_on(machine, allowed, usable, physical):
    machine(allowed)
    assert (usable_processors(), physical_processors()) == (usable, physical)


@pytest.mark.parametrize(
    ("membership", "files", "usable"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "damaged"}, 8),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"}, 3),
        ("0::/job/step\n", {"cpu.max": "300000 100000\n"}, 3),  # a container, in which that path is not there
        (
            "4:cpu,cpuacct:/job\n1:memory:/\n",
            {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "50000"},
            2,
        ),
        ("4:cpu:/\n", {f"cpu/{QUOTA}": "-1", f"cpu/{PERIOD}": "100000"}, 8),
        ("1:memory:/\n", {f"cpu/{QUOTA}": "100000", f"cpu/{PERIOD}": "100000"}, 8),
    ],
)
def test_a_quota_of_a_container_is_a_number_of_processors(machine, membership, files, usable):
    machine(range(8), membership, **files)
    assert (usable_processors(), physical_processors()) == (usable, min(usable, 4))


def test_a_system_without_such_files_counts_its_cores(machine, monkeypatch, tmp_path):
    machine(range(8))
    monkeypatch.setattr(processors, "TOPOLOGY", tmp_path / "absent")
    monkeypatch.setattr(control_groups, "OF_PROCESS", tmp_path / "absent")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 3)
    assert (usable_processors(), physical_processors()) == (8, 3)
