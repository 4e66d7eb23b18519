"""A whole benchmark: models and images in, the results document out; writing and showing it is the report's."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from common.benchmark.agreement import agreement_document
from common.benchmark.float_choice import FloatChoice
from common.benchmark.gate import Gate
from common.benchmark.measure import Measurement, measure, measure_memory, measure_threads
from common.benchmark.outputs import OutputMeasurement, measure_outputs
from common.benchmark.results import Document, plain, results_document
from common.benchmark.sensitivity import Sensitivity
from common.benchmark.settings import BenchmarkSettings, CommandLine
from common.data.bad_samples import as_records, report_bad
from common.data.datasets import Sample, spread
from common.data.pairs import BadSample
from common.data.shots import Shot
from common.networks.image_inputs import ImageInputs
from common.runtimes.candidates import Candidate
from common.scoring.figures import Score
from common.system.processors import pin, require_processors
from common.system.settings import flat
from models import Network

logger = logging.getLogger(__name__)


def keep_to_processors(settings: BenchmarkSettings) -> None:
    """Keep this process on the processors of the settings; threads that a library has started already stay where they
    are, so that a script does it first.

    Raises:
        ValueError: a processor, or a number of threads, that this process may not use.
    """
    if settings.pin:
        pin(settings.pin)
    require_processors(settings.thread_counts)


def benchmark(
    title: str,
    candidates: Mapping[str, Candidate],
    samples: Sequence[Sample],
    network: Network,
    settings: BenchmarkSettings,
    gate: Gate | None = None,
    *,
    notes: Sequence[str] = (),
    bad: Sequence[BadSample] = (),
    sensitivity: Sensitivity | None = None,
    choice: FloatChoice | None = None,
    asked: CommandLine | None = None,
) -> tuple[Document, Measurement]:
    """Measure all candidates on `samples`; the first is the reference of the differences.

    Args:
        network: whose classes they give, and whose images they take.
        gate: what the result is checked against.
        notes: sentences for the report.
        bad: what was left out of the samples.
        choice: of what stays in float, if there was one.
        asked: the command line, where there was one.

    Returns the document, and what the report takes its pictures from.

    Raises:
        ValueError: a candidate's output is no map of the classes, or settings that this machine cannot keep.
    """
    keep_to_processors(settings)
    measurement = _measured(candidates, samples, network, settings)
    notes = [*notes, *report_bad(bad)]
    document = results_document(title, measurement, settings, notes, sensitivity, asked or CommandLine())
    return _checked(document, bad, choice, gate, settings), measurement


def benchmark_outputs(
    title: str,
    candidates: Mapping[str, Candidate],
    shots: Sequence[Shot],
    inputs: ImageInputs,
    network: Network,
    settings: BenchmarkSettings,
    gate: Gate | None = None,
    *,
    score: Score | None = None,
    pictures: int = 0,
    notes: Sequence[str] = (),
    bad: Sequence[BadSample] = (),
    choice: FloatChoice | None = None,
    asked: CommandLine | None = None,
) -> tuple[Document, OutputMeasurement]:
    """The same without a map of classes: the outputs of all candidates are held against those of the first.

    Args:
        inputs: how images become the input of the network.
        score: by which each is held against the labels of the shots, too, where these have any.
        pictures: of each folder, of which the outputs are kept.
    """
    keep_to_processors(settings)
    _tell(candidates)
    drawn = [index for index, shot in enumerate(shots) if shot in set(spread(shots, pictures or 1))] if pictures else []
    measurement = measure_outputs(candidates, shots, inputs, network, settings, drawn, score)
    document = agreement_document(title, measurement, settings, [*notes, *report_bad(bad)], asked)
    return _checked(document, bad, choice, gate, settings), measurement


def _checked(
    document: Document,
    bad: Sequence[BadSample],
    choice: FloatChoice | None,
    gate: Gate | None,
    settings: BenchmarkSettings,
) -> Document:
    """The document with what was left out, with what stays in float by choice, and with what the gate says."""
    document["skipped"] = as_records(bad)
    if choice:
        document["auto_float"] = plain(asdict(choice))
    if gate:
        document["settings"] |= plain(flat(gate.settings))
        document |= gate.check(document, settings.seed)
    return document


def _tell(candidates: Mapping[str, Candidate]) -> None:
    for label, candidate in candidates.items():
        logger.info("%s: %s (%s)", label, candidate.path, candidate.precision)


def _measured(
    candidates: Mapping[str, Candidate], samples: Sequence[Sample], network: Network, settings: BenchmarkSettings
) -> Measurement:
    _tell(candidates)
    measurement = replace(
        measure(candidates, samples, network, settings), memory=measure_memory(candidates, settings.threads)
    )
    if not settings.thread_counts:
        return measurement
    return replace(measurement, by_threads=measure_threads(candidates, samples, network, settings.thread_counts))
