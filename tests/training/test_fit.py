"""A run from Python, without a command line, as a notebook starts one."""

import json

import pytest
import torch

from common.networks.checkpoints import Description, read_checkpoint
from common.system.settings import from_flat
from common.training import accumulation
from common.training.fit import Trainee, fit, open_folder
from common.training.settings import DataSettings, RecordSettings, RunSettings, TrainingSettings, observed_images
from examples.make_scenes import write_dataset
from tests.family import NETWORK, found
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
    torch.manual_seed(0)
    model = make_model(dropout=0.3)
    checkpoint = read_checkpoint(resume) if resume else None
    if checkpoint:
        model.load_state_dict(checkpoint.state)
    training, validation = (found(settings.data.root, settings.data.datasets, one) for one in ("train", "val"))
    folder = open_folder(settings.records.model_save_root_path, "checkpoint")
    trainee = Trainee(
        model,
        Description("Tiny", "fp32", 1.0, HW, NETWORK.classes),
        NETWORK,
        train_mode=lambda epoch: model.train(),
        eval_mode=model.eval,
        state=model.state_dict,
        best="best.pth",
    )
    fit(trainee, folder, training, validation, settings, CPU, checkpoint)
    return model


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
