"""Weights as the world saves them: behind prefixes, in dicts, several sets in one file; never one of them by chance."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.networks.checkpoints import (
    Description,
    load_network,
    published_state,
    read_checkpoint,
    require_choice,
    save_checkpoint,
)
from common.networks.opening import open_network
from models.family import NETWORKS
from tests.states import KEY, assert_same, averaged, behind


def loaded(document, tmp_path, choice=None):
    """The weights that are read of a document, under their published names."""
    torch.save(document, tmp_path / "w.pth")
    return published_state("SceneSeg", load_network("SceneSeg", tmp_path / "w.pth", choice)[0])


def inside(name):
    """A wrapper around a module within the network, as torch.compile, FSDP and checkpointing put it."""
    return lambda state: {key.replace("Backbone.", f"Backbone.{name}.", 1): value for key, value in state.items()}


OPTIMIZER = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
BY_NAME = {"state": {KEY: {"exp_avg": torch.zeros(10**5), "step": torch.tensor(3.0)}}, "param_groups": []}
ONE_SET = {
    "raw": lambda state: state,
    "with the epoch beside": lambda state: {**state, "epoch": 3, "best": 0.5, "name": "x"},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": OPTIMIZER.state_dict()},
    "model": lambda state: {"model": state},
    "net": lambda state: {"net": state, "acc": 0.5},
    "params": lambda state: {"params": state},
    "module, of DeepSpeed": lambda state: {"module": state, "buffer_names": ["a"], "optimizer": None, "mp_size": 1},
    "two dicts deep": lambda state: {"checkpoint": {"model": state}},
    "parts in dicts": lambda state: {
        part: {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{part}.")}
        for part in dict.fromkeys(key.partition(".")[0] for key in state)
    },
    "module.": lambda state: behind("module.", state),
    "module.module.": lambda state: behind("module.module.", state),
    "_orig_mod.": lambda state: behind("_orig_mod.", state),
    "module._orig_mod.": lambda state: behind("module._orig_mod.", state),
    "_orig_mod.module.": lambda state: {"model": behind("_orig_mod.module.", state)},
    "model.": lambda state: {"state_dict": behind("model.", state)},
    "net.": lambda state: behind("net.", state),
    "a prefix of their own": lambda state: behind("student.backbone_0.", state),
    "AveragedModel": lambda state: behind("module.", state, n_averaged=torch.tensor(7)),
    "AveragedModel of DDP": lambda state: behind("module.module._orig_mod.", state, n_averaged=torch.tensor(7)),
    "compiled inside": inside("_orig_mod"),
    "FSDP inside": inside("_fsdp_wrapped_module"),
    "activation checkpointing inside": inside("_checkpoint_wrapped_module"),
    "parallel inside": inside("module"),
    "a profiler's counts": lambda state: behind(
        "module.", state, **{f"module.{part}total_ops": torch.zeros(1) for part in ("", "Backbone.", "Backbone.a.")}
    ),
    "a counter as a tensor": lambda state: {**state, "epoch": torch.tensor(3)},
    "all of it in half precision": lambda state: {key: value.half() for key, value in state.items()},
    "Lightning": lambda state: {
        "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5", "loops": {"a": {"b": {}}},
        "state_dict": behind("model.", state), "optimizer_states": [OPTIMIZER.state_dict()],
        "callbacks": {"ModelCheckpoint{'monitor': 'miou'}": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"class_weights": torch.ones(3), "lr": 1e-3},
    },
    "an optimizer that knows names": lambda state: {"model": state, "optimizer": BY_NAME},
    "an optimizer's averages of gradients": lambda state: {
        "model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(1).expand(10**9), "step": torch.tensor(1)}}},
    },
    "averages, but of a metric": lambda state: {"model": state, "ema_loss": torch.tensor(0.1), "ema": {"decay": 0.9}},
    "averages that were not begun": lambda state: {"model": state, "ema": None, "model_ema": {}},
    "averaged ones alone": lambda state: {"state_dict_ema": state},
    "parameters": lambda state: {key: nn.Parameter(v, False) for key, v in state.items()},
    "another network beside": lambda state: {"generator": state, "discriminator": nn.Conv2d(3, 3, 1).state_dict()},
    "one dict under two names": lambda state: {"model": state, "ema": state},
    "before PyTorch 0.4.1": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}  # fmt: skip


@pytest.mark.parametrize("form", ONE_SET)
def test_one_set_of_weights_is_read_wherever_it_stands(form, state, tmp_path):
    actual = loaded(ONE_SET[form](state), tmp_path)
    if form == "all of it in half precision":
        state = {key: value.half().float() if value.is_floating_point() else value for key, value in state.items()}
    assert_same(actual, state)


def flat_averages(state, names):
    """Averages in the dict of the weights, under names of their own."""
    return {**state, **{names(key): value * 0.5 for key, value in state.items()}}


# form: (document of raw and averaged weights, what the error names)
TWO_SETS = {
    "state_dict_ema": (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict, state_dict_ema"),
    "model, ema": (lambda raw, ema: {"model": raw, "ema": ema}, "model, ema"),
    "model, model_ema": (lambda raw, ema: {"model": raw, "model_ema": ema}, "model, model_ema"),
    "the averaged first": (lambda raw, ema: {"ema_state_dict": ema, "model": raw}, "ema_state_dict, model"),
    "module, ema": (lambda raw, ema: {"module": raw, "ema": {"module": ema}}, "module, ema.module"),
    "nested": (lambda raw, ema: {"model": {"module": raw}, "ema": {"module": ema}}, "model.module, ema.module"),
    "camel case": (lambda raw, ema: {"net": raw, "netEMA": behind("module.", ema)}, "net, netEMA.module"),
    "average": (lambda raw, ema: {"model": raw, "model_avg": ema}, "model, model_avg"),
    "shadow": (lambda raw, ema: {"model": raw, "ema": {"shadow": ema, "decay": 0.99}}, "model, ema.shadow"),
    "swa": (
        lambda raw, ema: {"model": raw, "swa_model": behind("module.", ema, n_averaged=torch.tensor(1))},
        "model, swa_model.module",
    ),
    "raw at the root": (lambda raw, ema: {**raw, "ema": ema}, "the file itself, ema"),
    "flat": (lambda raw, ema: {**behind("model.", raw), **behind("model_ema.", ema)}, "model, model_ema"),
    "flat, in state_dict": (
        lambda raw, ema: {"state_dict": {**behind("net._orig_mod.", raw), **behind("net_ema.module.", ema)}},
        "state_dict.net, state_dict.net_ema",
    ),
    "ema_pytorch": (
        lambda raw, ema: {
            **behind("online_model.", raw), **behind("ema_model.", ema), "initted": torch.tensor(True),
            "step": torch.tensor([5]),
        },
        "online_model, ema_model",
    ),
    "parameters alone are averaged": (
        lambda raw, ema: {"model": raw, "ema": {k: v for k, v in ema.items() if not ("running_" in k or "num_" in k)}},
        "model, ema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", TWO_SETS)
def test_of_raw_and_averaged_weights_neither_is_taken_by_chance(form, state, tmp_path):
    make, named = TWO_SETS[form]
    document = make(state, averaged(state))
    with pytest.raises(ValueError, match=rf"w\.pth: 2 sets of weights: .*{named}; .* --weights: raw or ema"):
        loaded(document, tmp_path)
    assert_same(loaded(document, tmp_path, "raw"), state)
    if form == "parameters alone are averaged":
        with pytest.raises(ValueError, match="keys missing: .*running_mean"):
            loaded(document, tmp_path, "ema")
    else:
        assert_same(loaded(document, tmp_path, "ema"), averaged(state))


# form: averaged weights that have no names of the network
UNNAMED = {
    "torch-ema": lambda state: {"model": state, "ema": {"decay": 0.9, "shadow_params": [*averaged(state).values()]}},
    "in the optimizer": lambda state: {
        "state_dict": state, "optimizer_states": [{"ema": [*averaged(state).values()], "state": {}}],
    },
    "mmdetection": lambda state: {"state_dict": flat_averages(state, lambda key: "ema_" + key.replace(".", "_"))},
    "LitEma": lambda state: {"state_dict": {
        **behind("model.", state), "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3),
        **{f"model_ema.{key.replace('.', '')}": value for key, value in averaged(state).items()},
    }},
    "without a dict": lambda state: flat_averages(state, lambda key: f"{key}_ema"),
}  # fmt: skip


@pytest.mark.parametrize("form", UNNAMED)
def test_averages_under_other_names_are_not_passed_over(form, state, tmp_path):
    document = UNNAMED[form](state)
    with pytest.raises(
        ValueError, match=r"averaged ones that have other names, the first is .*; take .* --weights raw"
    ):
        loaded(document, tmp_path)
    assert_same(loaded(document, tmp_path, "raw"), state)
    with pytest.raises(ValueError, match="--weights ema is none of the sets in it: "):
        loaded(document, tmp_path, "ema")


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("generator", "discriminator"), "generator, discriminator"),
        (("student", "teacher"), "student, teacher"),
        (("net_a", "net_b"), "net_a, net_b"),
        (("state_dict", "current_model_state"), "state_dict, current_model_state"),
        (("model", "model_best", "ema"), "model, model_best, ema"),
    ],
)
def test_several_networks_are_told_apart_by_their_names(names, listed, state, tmp_path):
    sets = {name: {key: value * (1 + index) if value.is_floating_point() else value for key, value in state.items()}
            for index, name in enumerate(names)}  # fmt: skip
    with pytest.raises(ValueError, match=rf"{len(names)} sets of weights: {listed}; .*: one of these names"):
        loaded(sets, tmp_path)
    for name in names:
        assert_same(loaded(sets, tmp_path, name), sets[name])
    with pytest.raises(ValueError, match=rf"--weights raw is 2 of the sets in it: {listed}"):
        loaded(sets, tmp_path, "raw")
    with pytest.raises(ValueError, match=rf"--weights other is none of the sets in it: {listed}"):
        loaded(sets, tmp_path, "other")


def test_a_name_may_stand_in_the_middle_and_the_exact_one_comes_first(state, tmp_path):
    document = {"model": {"a": {"module": state}}, "copy": {"model": averaged(state)}}
    assert_same(loaded(document, tmp_path, "a"), state)
    assert_same(loaded(document, tmp_path, "copy.model"), averaged(state))
    assert_same(loaded(document, tmp_path, "model"), state)  # what begins with it, before what holds it


@pytest.mark.parametrize("choice", ["ema", "teacher"])
def test_a_choice_that_one_set_is_not_is_refused(choice, state, tmp_path):
    for document in (state, {"state_dict": state}):
        with pytest.raises(ValueError, match=rf"w\.pth: --weights {choice} is none of the sets in it"):
            loaded(document, tmp_path, choice)
        assert_same(loaded(document, tmp_path, "raw"), state)
    with pytest.raises(ValueError, match="--weights raw is none of the sets in it: model_ema"):
        loaded({"model_ema": state}, tmp_path, "raw")


CRITERION = {"criterion.weight": torch.ones(3)}
BESIDE = {
    "Lightning's criterion": (lambda state: {"state_dict": behind("model.", state, **CRITERION)},
                              r"prefix 'state_dict\.model\.', with 1 other keys beside them: criterion\.weight; "
                              r".* --weights state_dict\.model$"),
    "some without the prefix": (lambda state: {k if "Head" in k else f"module.{k}": v for k, v in state.items()},
                                r"prefix 'module\.', with \d+ other keys beside them: SceneSegHead\."),
}  # fmt: skip


@pytest.mark.parametrize("form", BESIDE)
def test_a_prefix_that_not_all_keys_share_is_named(form, state, tmp_path):
    make, message = BESIDE[form]
    with pytest.raises(ValueError, match=message):
        loaded(make(state), tmp_path)


def test_the_weights_beside_other_keys_can_be_taken_alone(state, tmp_path):
    document = {"state_dict": behind("model.", state, **CRITERION)}
    assert_same(loaded(document, tmp_path, "state_dict.model"), state)
    assert_same(loaded(document, tmp_path, "model"), state)


def test_keys_that_the_network_does_not_have_are_listed_without_the_prefix(state, tmp_path):
    document = behind("module.", {**state, "fc.weight": torch.ones(3), "aux_head.0.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"2 keys unexpected: fc\.weight, aux_head\.0\.weight$"):
        loaded(document, tmp_path)
    del state["SceneContext.context_layer_1.bias"]
    with pytest.raises(ValueError, match=r"1 keys missing: SceneContext\.context_layer_1\.bias$"):
        loaded({"model": behind("module.", state)}, tmp_path)


def test_two_tensors_that_differ_by_a_wrapper_alone_are_refused(state, tmp_path):
    with pytest.raises(ValueError, match="two tensors of the name Backbone"):
        loaded({**state, **{k: v * 2 for k, v in inside("_orig_mod")(state).items() if "_orig_mod" in k}}, tmp_path)


def test_a_file_whose_lists_hold_each_other_is_read_in_time(state, tmp_path):
    """A few bytes that would be 2^60 tensors, were each of them looked at in every place."""
    bomb = [torch.zeros(1)]
    for _ in range(60):
        bomb = {"a": [bomb, bomb], "b": bomb}
    assert_same(loaded({"model": state, "more": bomb}, tmp_path), state)


def test_wrappers_of_pytorch_itself(narrow_network, state, tmp_path):
    average = AveragedModel(nn.DataParallel(copy.deepcopy(narrow_network)), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    published = dict(zip(narrow_network.state_dict(), state, strict=True))  # ours -> theirs
    document = {}
    for key, value in average.state_dict().items():
        own = key.removeprefix("module.module.")
        document[key.replace(own, published.get(own, own))] = value
    assert "n_averaged" in document and all(key.startswith("module.module.") for key in document if key != "n_averaged")
    assert_same(loaded(document, tmp_path), state)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_prefixes_and_averages_of_every_network(name, tmp_path):
    width = {"width": 1 / 16} if NETWORKS[name].width_key else {}
    torch.manual_seed(0)
    state = published_state(name, NETWORKS[name].build(**width))
    torch.save({"ema": behind("module.", averaged(state)), "model": behind("_orig_mod.", state)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="2 sets of weights: ema.module, model;"):
        open_network(name, tmp_path / "w.pth", None)
    assert_same(published_state(name, open_network(name, tmp_path / "w.pth", None, "raw").model), state)
    assert_same(published_state(name, open_network(name, tmp_path / "w.pth", None, "ema").model), averaged(state))


# ---- files of this toolkit -------------------------------------------------------------------------------------------


def own(state, path, training=None, ema=0.0):
    description = Description("SceneSeg", "fp32", 1 / 32, (64, 128), arguments={"ema": ema})
    save_checkpoint(path, state, description, training)
    return path


def test_a_checkpoint_to_resume_with_averages_is_not_taken_for_either(state, tmp_path):
    path = own(state, tmp_path / "w.pth", {"average": {"updates": 3, "averages": averaged(state)}}, ema=0.9)
    for choice in (None, "ema"):
        with pytest.raises(
            ValueError, match=r"w\.pth: .* raw weights and their averages; .* --weights raw, or .* best"
        ):
            load_network("SceneSeg", path, choice)
    assert_same(published_state("SceneSeg", load_network("SceneSeg", path, "raw")[0]), state)
    with pytest.raises(ValueError, match="raw weights and their averages"):
        require_choice(read_checkpoint(path), None)
    require_choice(read_checkpoint(path), "raw")


@pytest.mark.parametrize(("ema", "held", "other"), [(0.0, "raw", "ema"), (0.9, "ema", "raw")])
def test_a_file_of_one_set_is_not_taken_for_the_other(ema, held, other, state, tmp_path):
    path = own(state, tmp_path / "w.pth", ema=ema)
    for choice in (None, held):
        load_network("SceneSeg", path, choice)
    with pytest.raises(ValueError, match=rf"--weights {other}: its one set of weights is {held}; leave the flag out"):
        load_network("SceneSeg", path, other)


def test_a_resumed_run_without_averages_has_one_set(state, tmp_path):
    load_network("SceneSeg", own(state, tmp_path / "w.pth", {"average": None}))
