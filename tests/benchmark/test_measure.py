import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from common.benchmark import measure as measure_module
from common.benchmark.measure import SWEEP_RUNS, blocks_of, load_inputs, measure, measure_threads
from common.benchmark.settings import BenchmarkSettings
from common.data.loading import SampleDataset
from common.data.pairs import Sample
from common.scoring.evaluate import evaluate_datasets
from tests.benchmarked import HW, Guess, candidates, measured, samples
from tests.family import CLASSES, LABELS, NETWORK, format_of

QUICK = BenchmarkSettings(threads=1, warmup_runs=0, workers=0)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (4, [1] * 4), (20, [4] * 5), (23, [4] * 5 + [3]), (50, [8] * 6 + [2])]
)
def test_blocks_cover_all_images_once(count, sizes):
    blocks = blocks_of(count)
    assert [len(block) for block in blocks] == sizes
    assert [index for block in blocks for index in block] == list(range(count))


def test_an_image_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    sample = Sample("Town", tmp_path / "a.png", tmp_path / "a.png", LABELS)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="a.png: a pipe, socket or device"):
        load_inputs([sample], [format_of(HW)], pool)


def test_scores_are_those_of_the_scoring_loop(tmp_path):
    measurement = measured(tmp_path, good=0.0, bad=0.2)
    for label, wrong in (("good", 0.0), ("bad", 0.2)):
        meters = measurement.recordings[label].meters
        scored = evaluate_datasets(Guess(wrong), measurement.samples, format_of(HW), CLASSES)
        for name, meter in scored.items():
            own = [one for one, sample in zip(meters, measurement.samples, strict=True) if sample.dataset == name]
            assert torch.equal(sum(one.confusion for one in own), meter.confusion)


def test_every_image_is_timed_and_its_map_kept(tmp_path):
    measurement = measured(tmp_path, good=0.1)
    recording = measurement.recordings["good"]
    assert len(recording.seconds) == len(recording.end_to_end) == len(recording.maps) == 6
    for inner, outer in zip(recording.seconds, recording.end_to_end, strict=True):
        assert len(inner) == len(outer) == 1
        assert 0 < inner[0] < outer[0]
    example = SampleDataset(measurement.samples, format_of(HW))[4]
    expected = Guess(0.1)(example.image[None]).argmax(dim=1)[0]
    np.testing.assert_array_equal(recording.class_map(4), expected)


def test_end_to_end_holds_the_reading_of_the_file_the_call_and_the_largest_logit(tmp_path, monkeypatch):
    clock, cost = [0.0], {"read": 1.0, "call": 10.0, "largest": 100.0}

    def takes(what, function):
        def timed_function(*arguments):
            clock[0] += cost[what]
            return function(*arguments)

        return timed_function

    class Slow(Guess):
        __call__ = takes("call", Guess.__call__)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure_module, "load_image", takes("read", measure_module.load_image))
    monkeypatch.setattr(measure_module, "class_map", takes("largest", measure_module.class_map))
    models = {label: replace(one, open=partial(Slow, 0.0)) for label, one in candidates(tmp_path, a=0).items()}
    recording = measure(models, samples(tmp_path)[:2], NETWORK, QUICK).recordings["a"]
    assert recording.seconds == [[10.0], [10.0]]
    assert recording.end_to_end == [[111.0], [111.0]]


def test_models_take_turns_and_no_garbage_is_collected_in_a_call(tmp_path):
    order = []

    class Noting(Guess):
        def __init__(self, label, threads):
            super().__init__(0.0)
            self.label = label

        def __call__(self, images):
            assert not gc.isenabled()
            order.append(self.label)
            return super().__call__(images)

    models = {label: replace(one, open=partial(Noting, label)) for label, one in candidates(tmp_path, a=0, b=0).items()}
    found = samples(tmp_path)
    measure(models, found, NETWORK, QUICK)
    assert "".join(order) == "abbaabbaabba"  # six images, six blocks, another model first every time
    assert gc.isenabled()
    order.clear()
    measurement = measure(models, found[:2], NETWORK, replace(QUICK, timed_runs=3))
    assert "".join(order) == "abbaabbaabba"  # two images three times
    recording = measurement.recordings["a"]
    assert [len(runs) for runs in (*recording.seconds, *recording.end_to_end)] == [3] * 4
    assert len(recording.meters) == len(recording.maps) == 2  # scored once


def test_an_output_that_is_no_class_map_is_named(tmp_path):
    class Other(Guess):
        def __call__(self, images):
            return super().__call__(images)[:, :, ::2]

    models = {label: replace(one, open=partial(Other, 0.0)) for label, one in candidates(tmp_path, odd=0).items()}
    with pytest.raises(ValueError, match=r"odd: output \(1, 3, 16, 64\), wanted \(1, 3, 32, 64\)"):
        measure(models, samples(tmp_path), NETWORK, QUICK)


def test_throughput_is_measured_for_each_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    result = measure_threads(candidates(tmp_path, a=0, b=0), samples(tmp_path), NETWORK, [2, 1])
    assert list(result) == [1, 2]
    assert result[1]["a"].n == result[2]["b"].n == SWEEP_RUNS
    assert torch.get_num_threads() == before
