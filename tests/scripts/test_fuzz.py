"""Readers fed with anything: whatever the bytes, nothing but ValueError or OSError comes out, with the file's name."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.networks.checkpoints import Description, read_checkpoint, save_checkpoint
from common.system.archives import is_intact, require_no_code
from tests.readers import READERS, Reader, checkpoints, results

FEW, MANY = 40, 5000  # examples of `make test` and of `make test-faults`
COUNTS = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def repeat(count, test, *strategies):
    """Run `test` with `count` examples, always the same ones."""
    checks = [HealthCheck.function_scoped_fixture]
    settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None, derandomize=True)(
        given(*strategies)(test)
    )()


@st.composite
def damaged(draw, samples):
    """A good file with some bytes changed, cut off or put in, or other bytes altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(["change", "cut", "insert"]))
        if what == "cut":
            del content[place:]
        elif what == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(content)


@COUNTS
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_read(tmp_path, name, count):
    """Also where the damage falls on the zip directory, a pickle's opcodes, a protobuf's tags or a header's sizes."""
    reader = READERS[name]
    repeat(count, lambda content: reader(content, tmp_path), damaged(reader.samples()))


@COUNTS
def test_a_checkpoint_taken_for_an_exported_network_is_refused(tmp_path, count):
    reader = Reader(".pt2", require_no_code, checkpoints)
    repeat(count, lambda content: reader(content, tmp_path), damaged(checkpoints()))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@COUNTS
def test_results_of_another_shape_are_refused_or_read(tmp_path, count):
    """The baseline of a gate, sound as JSON: whatever is in it, the gate says what is wrong with it."""
    (sound,) = map(json.loads, results())
    keys = st.sampled_from([*sound, "more"])
    changes = st.dictionaries(keys, JSON)
    repeat(count, lambda change: READERS["results"](json.dumps(sound | change).encode(), tmp_path), changes)


def test_a_saved_checkpoint_is_intact_and_reads_as_it_was(tmp_path):
    (tmp_path / "w.pth").write_bytes(checkpoints()[0])
    assert torch.equal(read_checkpoint(tmp_path / "w.pth").state["a"], torch.ones(9))
    save_checkpoint(tmp_path / "v.pth", {"a": torch.ones(9)}, Description("SceneSeg", "fp32", 1.0, (32, 64)))
    assert is_intact(tmp_path / "v.pth")


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_the_fuzzer_starts_from_are_good(tmp_path, name):
    reader = READERS[name]
    for content in reader.samples():
        path = tmp_path / f"good{reader.suffix}"
        path.write_bytes(content)
        if name == "archive":
            assert is_intact(path) == (content[:2] == b"PK")
        elif name != "results":  # of no models: refused, as it has nothing to compare
            reader.read(path)
