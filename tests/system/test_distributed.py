"""Sharing a run between processes: what each takes, and statistics that are the same everywhere."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from common.quantization.pt2e import prepare_qat, set_mode
from common.quantization.settings import QuantizationSettings
from common.system import distributed
from tests.conftest import TinyNetwork


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_of_a_batch_is_of_one_rank_and_every_rank_has_one(count, ranks, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    counted = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = distributed.share(list(range(count)))
        assert own
        counted += own if distributed.share_counts(count) else []
    assert sorted(counted) == list(range(count))


def _train_one_batch(rank, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{results}/meet", rank=rank, world_size=2)
    distributed.BUCKET = 10**3  # several of them
    outcome = {}
    for per_channel in (False, True):
        torch.manual_seed(0)
        prepared = prepare_qat(TinyNetwork(), (32, 64), QuantizationSettings(per_channel=per_channel))
        with torch.no_grad():
            next(prepared.parameters()).add_(rank)
        distributed.make_equal(prepared)
        torch.manual_seed(rank)
        set_mode(prepared, dropout=True, batch_norm=True, observers=True)
        prepared(torch.randn(2, 3, 32, 64)).square().mean().backward()
        own = {name: each.grad.clone() for name, each in prepared.named_parameters()}
        distributed.sum_gradients(prepared)
        gradients = {name: (own[name], each.grad.clone()) for name, each in prepared.named_parameters()}
        before = {key: value.clone() for key, value in prepared.state_dict().items()}
        distributed.synchronise(prepared)
        after = {key: value.clone() for key, value in prepared.state_dict().items()}
        outcome[per_channel] = gradients, before, after
    torch.save(outcome, results / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What two processes have after a step, each: scales by channel or not -> gradients, state before and after."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train_one_batch, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_prepared_graph_has_the_sum_of_gradients_the_same_statistics_and_ranges_on_every_rank(outcomes, per_channel):
    (gradients, before, after), (gradients_1, before_1, after_1) = (outcome[per_channel] for outcome in outcomes)
    for key, (own, total) in gradients.items():
        own_1, total_1 = gradients_1[key]
        assert torch.equal(total, total_1)
        torch.testing.assert_close(total, own + own_1)
    assert sum(not torch.equal(own, gradients_1[key][0]) for key, (own, _) in gradients.items()) > 5
    assert all(torch.equal(value, after_1[key]) for key, value in after.items())
    differing = [key for key, value in before.items() if not torch.equal(value, before_1[key])]
    averaged = [key for key in differing if key.endswith(distributed.AVERAGED)]
    assert len(averaged) > 5
    for key in averaged:
        torch.testing.assert_close(after[key], (before[key] + before_1[key]) / 2)
    for key in [key for key in differing if key.endswith("scale")]:  # of the averaged range, between those of the ranks
        low, high = torch.minimum(before[key], before_1[key]), torch.maximum(before[key], before_1[key])
        assert bool(((low * 0.999 <= after[key]) & (after[key] <= high * 1.001)).all())


def test_a_world_without_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE, but no RANK; start with torchrun, or unset WORLD_SIZE"):
        distributed.join_ranks(torch.device("cpu"))
