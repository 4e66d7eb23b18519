"""A run from Python, without a command line, as a notebook starts one."""

import json

import pytest
import torch

from common.networks.checkpoints import Description, read_checkpoint
from common.system.settings import from_flat
from common.training import accumulation, monitor
from common.training import fit as fitting
from common.training.fit import Trainee, fit, open_folder
from common.training.labelled import LabelledTask
from common.training.settings import DataSettings, RecordSettings, RunSettings, TrainingSettings, observed_images
from examples.make_scenes import write_dataset
from tests.family import NETWORK, format_of, found
from tests.tiny_run import make_model

HW = (16, 32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, "Town", 20, seed=0, size=(48, 96))
    return root


def make_settings(data, folder, records=None, **training):
    return RunSettings(
        records=RecordSettings(folder, **(records or {})),
        data=DataSettings(data, ("Town",), workers=0),
        training=TrainingSettings(
            **{"epochs": 2, "batch_size": 6, "learning_rate": 1e-2, "gradient_accumulation": 2, **training}
        ),
    )


def run(settings, resume=None):
    """The model after a run, or after the rest of one."""
    torch.manual_seed(0)
    model = make_model(dropout=0.3)
    checkpoint = read_checkpoint(resume) if resume else None
    if checkpoint:
        model.load_state_dict(checkpoint.state)
    training, validation = (found(settings.data.root, settings.data.datasets, one) for one in ("train", "val"))
    folder = open_folder(settings.records.model_save_root_path, "checkpoint")
    task = LabelledTask(training, validation, NETWORK, format_of(HW), CPU)
    fit(make_trainee(model), task, folder, settings, CPU, checkpoint)
    return model


def make_trainee(model):
    return Trainee(
        model,
        Description("Tiny", "fp32", 1.0, HW, NETWORK.classes),
        train_mode=lambda epoch: model.train(),
        eval_mode=model.eval,
        state=model.state_dict,
        best="best.pth",
    )


def test_a_run_from_python_keeps_its_settings_and_goes_on(data, tmp_path):
    settings = make_settings(data, tmp_path)
    model = run(settings)
    checkpoint = read_checkpoint(tmp_path / "checkpoint_epoch_0_step_3.pth")
    assert from_flat(RunSettings, checkpoint.description.arguments) == settings
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["step"] for entry in history] == [3, 6]
    resumed = run(settings, tmp_path / "checkpoint_epoch_0_step_3.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    with pytest.raises(ValueError, match="batch_size was 6, is 5"):
        run(make_settings(data, tmp_path, batch_size=5), tmp_path / "checkpoint_epoch_0_step_3.pth")


def test_the_number_of_parts_that_memory_asked_for_is_kept_and_gone_on_with(data, tmp_path, monkeypatch):
    """Whatever is free when the run goes on: with other parts it would be another run."""
    settings = make_settings(data, tmp_path, gradient_accumulation="auto")
    monkeypatch.setattr(accumulation, "free_memory", lambda device: 0)
    model = run(settings)
    path = tmp_path / "checkpoint_epoch_0_step_3.pth"
    checkpoint = read_checkpoint(path)
    assert checkpoint.description.arguments["gradient_accumulation"] == 6  # one image each
    assert observed_images(checkpoint.description.arguments) == 1
    monkeypatch.setattr(accumulation, "free_memory", lambda device: 10**12)
    for again in (settings, make_settings(data, tmp_path, gradient_accumulation=6)):
        resumed = run(again, path)
        assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="gradient_accumulation was 6, is 3"):
        run(make_settings(data, tmp_path, gradient_accumulation=3), path)
    assert fitted_parts(data, tmp_path / "anew") == 1


def fitted_parts(data, folder):
    run(make_settings(data, folder, gradient_accumulation="auto", epochs=1))
    return read_checkpoint(folder / "best.pth").description.arguments["gradient_accumulation"]


def averages(path, model_keys):
    """The averaged values that a periodic checkpoint keeps, under the model's names."""
    stored = read_checkpoint(path).training["average"]
    values = {key.removeprefix("module.").replace("/", "."): value for key, value in stored.items()}
    return {key: value for key, value in values.items() if key in model_keys}


AVERAGED = {"0.weight", "0.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var", "3.weight", "3.bias"}


def test_a_run_ends_with_its_averaged_weights_and_statistics(data, tmp_path):
    state = run(make_settings(data, tmp_path, ema=0.9)).state_dict()
    last = tmp_path / "checkpoint_epoch_1_step_6.pth"
    averaged, trained = averages(last, state), read_checkpoint(last).state
    assert averaged.keys() == AVERAGED
    for key, value in averaged.items():
        assert torch.equal(state[key], value), key
        assert not torch.equal(trained[key], value), key  # a checkpoint to go on from has those that are trained


def test_the_best_are_averaged_weights_scored_and_saved(data, tmp_path):
    """The one checkpoint of a run of one epoch is its best."""
    settings = make_settings(data, tmp_path, ema=0.9, epochs=1, learning_rate=0.1)
    run(settings)
    best, last = (read_checkpoint(tmp_path / name) for name in ("best.pth", "checkpoint_epoch_0_step_3.pth"))
    for key, value in averages(last.path, best.state).items():
        assert torch.equal(best.state[key], value), key
    assert scores(best.state, settings) == best.description.metrics
    assert scores(last.state, settings) != best.description.metrics
    (entry,) = json.loads((tmp_path / "history.json").read_text())
    assert entry["miou"] == best.description.metrics["together"]["miou"]


def scores(state, settings):
    model = make_model(dropout=0.3).eval()
    model.load_state_dict(state)
    validation = found(settings.data.root, settings.data.datasets, "val")
    return LabelledTask([], validation, NETWORK, format_of(HW), CPU).score(model, settings)


class Events:
    """Stands for TensorBoard's writer, which the tests do not need to have installed."""

    opened = 0

    def __init__(self, folder, start_step):
        Events.opened += 1

    def add_scalar(self, name, value, step):
        pass

    def flush(self):
        pass


@pytest.mark.parametrize(("writer", "opened"), [(True, 1), (False, 0)])
def test_one_process_writes_events(writer, opened, data, tmp_path, monkeypatch):
    """Of several, as torchrun starts them."""
    monkeypatch.setattr(monitor, "_open_tensorboard", Events)
    monkeypatch.setattr(Events, "opened", 0)
    monkeypatch.setattr(fitting, "is_writer", lambda: writer)
    run(make_settings(data, tmp_path, records={"tensorboard": True}, epochs=1))
    assert Events.opened == opened
