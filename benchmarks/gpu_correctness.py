"""Parts of benchmarks.gpu_check: does CUDA compute what the CPU does, from one operator to the five scripts."""

import copy
import inspect
import json
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.fx import GraphModule

from benchmarks.gpu_context import (
    CPU,
    FINAL,
    NETWORK,
    ROOT,
    SCENES,
    Context,
    figures_of_models,
    image_format,
    prepared_network,
    random_batches,
    relative,
    run_script,
    samples_of,
    save_network,
    scenes,
)
from common.data.classes import classes_of
from common.data.loading import AugmentedDataset, Example
from common.networks.checkpoints import read_checkpoint
from common.quantization.checkpoints import load_qat
from common.quantization.fake_quantize import FakeQuantize
from common.quantization.pt2e import convert, set_evaluation_mode, set_mode
from common.quantization.settings import QuantizationSettings
from common.runtimes.parity import TOLERANCE, compare, example_inputs
from common.runtimes.predictors import TorchPredictor
from common.training.labelled import labelled_loss
from common.training.precision import arithmetic, keep_fake_quantization_in_float32, set_precision
from common.training.settings import TrainingSettings
from common.training.stepper import Learner, Stepper, make_optimizer
from common.training.steps import LoadedSteps, Plan, Position
from common.training.validation import validate
from models.family import NETWORKS

CHAOS = 20.0  # CUDA may be off by so many times what a change of the images by PERTURBATION does on the CPU
PERTURBATION = 1e-6
LEARNING_RATE = 1e-4
LOW_PRECISION_LOSS = 0.1  # share by which a loss in TF32 or bfloat16 may be off


def forward(context: Context) -> None:
    """Every network of the family on the device against the CPU, in float32, and how far TF32 and bfloat16 are off."""
    for name, row in NETWORKS.items():
        torch.manual_seed(0)
        width = context.scale.networks_width
        scalable = width is not None and "width" in inspect.signature(row.build).parameters
        model = (row.build(width=width) if scalable else row.build()).eval()
        height, width_px = row.input_shape[1:]
        if not context.on_gpu and row.size_multiple:
            height, width_px = context.scale.input_hw
        shape = (row.input_shape[0], height, width_px)
        images = example_inputs(shape, 0)[: 2 if context.on_gpu else 1]
        expected = [TorchPredictor(model, CPU).outputs(batch) for batch in images]
        candidate = TorchPredictor(model, context.device)
        for precision in ("fp32", "tf32", "bf16") if context.on_gpu else ("fp32", "bf16"):
            set_precision(precision, context.device)
            with arithmetic(precision, context.device):
                outputs = [[each.float() for each in candidate.outputs(batch)] for batch in images]
            agreements = compare(_Replayed(expected), _Replayed(outputs), images)
            off = max(agreement.relative for agreement in agreements)
            figures = {"relative": off, "sqnr_db": [round(agreement.sqnr_db, 1) for agreement in agreements]}
            if precision == "fp32":
                context.record.check(f"{name} computes what the CPU does", off <= TOLERANCE, **figures)
            else:
                context.record.figure(f"{name} in {precision} against float32", figures)


class _Replayed:
    """Hands out computed outputs, one batch after the other, as a predictor."""

    provider = "replayed"

    def __init__(self, outputs: list[list[torch.Tensor]]):
        self.turns = iter(outputs)

    def outputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        return next(self.turns)


def fake_quantization(context: Context) -> None:
    """Each kind of fake quantization alone: codes, scales and gradients on the device against the CPU."""
    for kind, module in _kinds_of_fake_quantization(context).items():
        here, there = copy.deepcopy(module).to(CPU), copy.deepcopy(module).to(context.device)
        equal, gradients, scales, zero_points = [], [], [], []
        for turn in range(5):
            values = _values(turn, weights="weights" in kind)
            outcomes = []
            for fake_quantize, device in ((here, CPU), (there, context.device)):
                x = values.to(device, memory_format=torch.channels_last).requires_grad_()
                y = fake_quantize(x)
                (y * y).sum().backward()
                outcomes.append(
                    (y.detach().cpu(), x.grad.cpu(), fake_quantize.scale.cpu(), fake_quantize.zero_point.cpu())
                )
            (y0, g0, s0, z0), (y1, g1, s1, z1) = outcomes
            equal.append((y0 - y1).abs().le(1e-6 * y0.abs().max()).double().mean().item())
            gradients.append((g0 - g1).abs().le(1e-6 * g0.abs().max()).double().mean().item())
            scales.append(relative(s1, s0))
            zero_points.append(bool(torch.equal(z0, z1)))
        figures = {"equal_values": min(equal), "equal_gradients": min(gradients), "scale": max(scales)}
        passed = min(equal) > 0.9999 and min(gradients) > 0.9999 and max(scales) < 1e-6 and all(zero_points)
        context.record.check(f"fake quantization: {kind}", passed, **figures, equal_zero_points=all(zero_points))


def _kinds_of_fake_quantization(context: Context) -> dict[str, FakeQuantize]:
    """One untouched module of each kind that a prepared SceneSeg has, per tensor and per channel."""
    kinds = {}
    for per_channel in (False, True):
        prepared = prepared_network(1 / 32, (32, 64), CPU, QuantizationSettings(per_channel))
        for module in prepared.modules():
            if isinstance(module, FakeQuantize):
                use = "weights" if module.is_symmetric_quant else f"activations from {module.lower or '-infinity'}"
                kinds.setdefault(f"{use}{', per channel' if module.is_per_channel else ''}", module)
    return kinds


def _values(turn: int, weights: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(turn)
    shape = (32, 16, 3, 3) if weights else (4, 24, 40, 80)
    return torch.randn(shape, generator=generator) * (0.1 if weights else 4.0 + turn)


def qat_steps(context: Context) -> None:
    """Steps of QAT from one set of weights: losses, gradients, ranges and weights against the CPU's."""
    scale = context.scale
    batches = random_batches(scale.steps, scale.batch_size, scale.input_hw)
    nudged = [batch._replace(image=batch.image * (1 + PERTURBATION)) for batch in batches]
    expected = _train(context, batches, CPU)
    floor = _distances(_train(context, nudged, CPU), expected)
    context.record.figure("losses on the CPU", expected["losses"])
    context.record.figure(f"CPU with images off by {PERTURBATION:g}", floor)
    actual = _train(context, batches, context.device)
    found = _distances(actual, expected)
    for name, value in found.items():
        limit = max(CHAOS * floor[name], 1e-4)
        context.record.check(f"QAT in float32: {name} as on the CPU", value <= limit, relative=value, limit=limit)
    for precision in ("tf32", "bf16") if context.on_gpu else ("bf16",):
        low = _train(context, batches, context.device, precision)
        off = max(abs(a - b) / b for a, b in zip(low["losses"], expected["losses"], strict=True))
        distances = _distances(low, expected)
        context.record.check(f"QAT in {precision}: losses", off <= LOW_PRECISION_LOSS, largest=off, **distances)


def _train(context: Context, batches: list[Example], device: torch.device, precision: str = "fp32") -> dict:
    """Losses of all steps, the gradients of the first, and the ranges and weights at the end; no dropout, which draws
    other numbers on another device."""
    settings = TrainingSettings(
        epochs=1, precision=precision, batch_size=len(batches[0].image), learning_rate=LEARNING_RATE
    )
    set_precision(precision, device)
    prepared = prepared_network(context.scale.width, context.scale.input_hw, device)
    keep_fake_quantization_in_float32(prepared)
    set_mode(prepared, dropout=False, batch_norm=True, observers=True)
    loss = partial(labelled_loss, settings, device, None)
    learner = Learner(prepared, make_optimizer(prepared, settings), lambda epoch: None, loss)
    plan = Plan.of(settings, len(batches) * settings.batch_size)
    stepper = Stepper(learner, plan, device)
    loss(prepared, batches[0]).backward()
    gradients = torch.cat([each.grad.flatten().cpu() for each in prepared.parameters() if each.grad is not None])
    steps = zip(plan.steps(Position()), batches, strict=True)
    losses = [stepper.take(step, batch, LEARNING_RATE)[0] for step, batch in steps]
    return {
        "losses": losses,
        "gradients": gradients,
        "ranges": _joined(prepared, ("min_val", "max_val")),
        "statistics": _joined(prepared, ("running_mean", "running_var")),
        "weights": torch.cat([each.detach().flatten().cpu() for each in prepared.parameters()]),
    }


def _joined(prepared: GraphModule, endings: tuple[str, ...]) -> torch.Tensor:
    return torch.cat([value.flatten().cpu() for name, value in prepared.named_buffers() if name.endswith(endings)])


def _distances(actual: dict, expected: dict) -> dict[str, float]:
    return {name: relative(torch.as_tensor(actual[name]), torch.as_tensor(expected[name])) for name in expected}


def checkpoints(context: Context) -> None:
    """A run of the QAT script on the device that goes on there and on the CPU, and one of the CPU that goes on here."""
    root, scale = scenes(context), context.scale
    weights = save_network(context.work / "fp32.pth", scale.width, scale.input_hw)
    flags = ["-r", root, "--datasets", SCENES, "-fp32", weights, "-e", 2, "--batch_size", scale.batch_size]
    flags += ["--num_calibration_samples", 8, "--workers", 2, "--learning_rate", LEARNING_RATE]
    here, other = context.device.type, "cpu"
    histories = {}
    for first in dict.fromkeys((here, other)):
        folder = context.work / f"from_{first}"
        run_script(context, "quantize_model_sceneseg.py", ["-s", folder, *flags], first)
        checkpoint = min(folder.glob("qat_checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)
        histories[first, first] = _history(folder)
        for second in dict.fromkeys((here, other)) if first == here else (here,):
            resumed = context.work / f"from_{first}_on_{second}"
            run_script(context, "quantize_model_sceneseg.py", ["-s", resumed, *flags, "--resume", checkpoint], second)
            histories[f"{first}, resumed on", second] = _history(resumed)
        _compare_devices(context, folder / FINAL, root)
    for key, history in histories.items():
        context.record.figure(f"history of {key[0]} {key[1]}", history)
    unbroken = histories[here, here]
    for key, history in histories.items():
        off = abs(history[-1]["loss"] - unbroken[-1]["loss"]) / unbroken[-1]["loss"]
        context.record.check(f"last loss of {key[0]} {key[1]} near the unbroken run's", off < 0.15, relative=off)


def _history(folder: Path) -> list[dict[str, float]]:
    history = json.loads((folder / "history.json").read_text())
    return [{key: entry[key] for key in ("epoch", "step", "loss", "miou")} for entry in history]


def _compare_devices(context: Context, path: Path, root: Path) -> None:
    """One QAT checkpoint on both devices: outputs, validation scores, and the INT8 network that comes out."""
    samples = samples_of(root, SCENES, "val")
    found = {}
    for device in (CPU, context.device):
        prepared, description, _ = load_qat(path, NETWORK, device)
        set_evaluation_mode(prepared)
        seen = image_format(description.input_hw)
        classes = classes_of(NETWORKS[NETWORK], samples)
        scores = validate(prepared, device, samples, seen, classes, batch_size=2)
        logits = TorchPredictor(prepared, device)(example_inputs((3, *description.input_hw), 0)[2])
        found[device.type] = logits, scores["together"]["miou"], convert(prepared.cpu()).state_dict()
    (logits, miou, int8), (other_logits, other_miou, other_int8) = found["cpu"], found[context.device.type]
    same = (logits.argmax(dim=1) == other_logits.argmax(dim=1)).double().mean().item()
    passed = same >= 0.99 and abs(miou - other_miou) < 5e-3
    figures = {"equal_pixels": same, "miou_cpu": miou, "miou_device": other_miou}
    context.record.check(f"{path.parent.name}: one checkpoint on both devices", passed, **figures)
    same_keys = int8.keys() == other_int8.keys()
    equal = [(int8[key] == other_int8[key]).flatten() for key in int8 if not int8[key].is_floating_point()]
    off = [relative(other_int8[key], int8[key]) for key in int8 if int8[key].is_floating_point()]
    figures = {
        "equal_codes": torch.cat(equal).double().mean().item() if equal else 1.0,
        "floats": max(off, default=0.0),
    }
    passed = same_keys and figures["equal_codes"] > 0.999 and figures["floats"] < 1e-5
    context.record.check(f"{path.parent.name}: the same INT8 network from both devices", passed, **figures)
    saved = {value.device.type for value in read_checkpoint(path).state.values()}
    context.record.check(f"{path.parent.name}: a checkpoint opens without a GPU", saved == {"cpu"})


def scripts(context: Context) -> None:
    """The trainer, conversion, tracing and the comparison of models with --device, on generated scenes."""
    root, scale, work = scenes(context), context.scale, context.work
    data = ["--datasets", SCENES, "--workers", 2]
    size = ["--width", scale.width, "--input_hw", ",".join(map(str, scale.input_hw))]
    fp32 = work / "fp32"
    training = ["-e", 2, "--batch_size", scale.batch_size, "-r", root, *data]
    run_script(context, "examples.train_sceneseg", ["-s", fp32, *size, *training])
    weights = fp32 / "best_model.pth"
    named = ["-n", "SceneSeg", "-p", weights]
    run_script(context, "convert_pytorch_to_onnx.py", [*named, "-o", fp32 / "SceneSeg.onnx"])
    run_script(context, "trace_pytorch_model.py", [*named, "-o", fp32 / "SceneSeg.pt"])
    run_script(context, "trace_pytorch_model.py", [*named, "-o", fp32 / "SceneSeg.pt2", "--format", "exported"])
    models = ["--pytorch_model_path", weights, "--fp32_model_path", fp32 / "SceneSeg.onnx"]
    models += ["--model", f"TorchScript={fp32 / 'SceneSeg.pt'}", "--model", f"exported={fp32 / 'SceneSeg.pt2'}"]
    output = ["--dataset_root", root, *data, "--output_dir_base", work / "results"]
    run_script(context, "benchmark_onnx_models.py", [*models, *output])
    for path in work.glob("results/*/results.json"):
        context.record.figure("models side by side", figures_of_models(path))


def quantization(context: Context) -> None:
    """QAT with a teacher and the INT8 file of it, with --device, on generated scenes."""
    root, scale, work = scenes(context), context.scale, context.work
    data = ["--datasets", SCENES, "--workers", 2, "--num_calibration_samples", 8]
    weights = save_network(work / "fp32.pth", scale.width, scale.input_hw)
    recipe = ["-e", 2, "--batch_size", scale.batch_size, "--recipe", "extended", "--warmup_steps", 1, "--distill", 1]
    run_script(
        context, "quantize_model_sceneseg.py", ["-s", work / "qat", "-fp32", weights, "-r", root, *recipe, *data]
    )
    checkpoint = ["--qat_checkpoint_path", work / "qat" / FINAL]
    run_script(context, "benchmark_qat_model.py", [*checkpoint, "--dataset_root", root, *data])


def loader(context: Context) -> None:
    """Batches from worker processes: pinned where they go to a GPU, of the same images whoever loads them."""
    root = scenes(context)
    samples = samples_of(root, SCENES, "train")
    dataset = AugmentedDataset(samples, image_format(context.scale.input_hw), 0.5, 0)
    by_workers = {}
    for workers in (0, 2):
        plan = Plan.of(TrainingSettings(epochs=1, batch_size=4), len(dataset))
        batches = [batch for _, batch in LoadedSteps(dataset, plan, Position(), workers, context.device)]
        by_workers[workers] = batches
        pinned = all(each.is_pinned() == context.on_gpu for batch in batches for each in batch)
        context.record.check(f"{workers} workers: memory is pinned for a GPU, and only then", pinned)
        context.record.check(f"{workers} workers: a batch keeps its names", isinstance(batches[0], tuple))
    same = all(
        torch.equal(a, b)
        for one, other in zip(by_workers[0], by_workers[2], strict=True)
        for a, b in zip(one, other, strict=True)
    )
    context.record.check("the same batches with and without workers", same)


def memory(context: Context) -> None:
    """What the QAT script says when the device has not the memory for a step: one line with what to do."""
    root, scale = scenes(context), context.scale
    weights = save_network(context.work / "fp32.pth", scale.width, scale.input_hw)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--short_of_memory", "quantize_model_sceneseg.py"]
    command += ["-r", root, "--datasets", SCENES, "-fp32", weights, "-e", 1, "--num_val_samples", 1]
    command += ["--num_calibration_samples", 1, "--batch_size", 32, "--input_hw", "320,640", "--workers", 0]
    command += ["--samples_per_epoch", 32, "--device", context.device.type, "-s"]

    def script(*arguments: object) -> tuple[int, str]:
        words = list(map(str, [*command, *arguments]))
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]

    code, line = script(context.work / "whole", "--gradient_accumulation", 1)
    told = code == 1 and line.startswith("error: out of memory") and "--gradient_accumulation" in line
    context.record.check("too little memory is told, with the flag that helps", told, exit_code=code, line=line)
    if context.on_gpu:  # minutes on a CPU
        code, line = script(context.work / "parts")
        context.record.check("by itself it computes the step in parts that fit", code == 0, exit_code=code, line=line)


def run_short_of_memory(script: list[str]) -> None:
    """Run a script as the main program with so little memory for tensors that a training step cannot fit."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(0.02)  # 1.6 GB of 80
    else:
        import resource  # here: Unix alone has it

        address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = address_space + 3_000_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = script
    runpy.run_path(str(ROOT / script[0]), run_name="__main__")


def one_process_group(context: Context) -> None:
    """A group of one process over nccl: the collectives of common.system.distributed change nothing; torchrun runs."""
    root, scale = scenes(context), context.scale
    weights = save_network(context.work / "fp32.pth", scale.width, scale.input_hw)
    flags = ["-s", context.work / "out", "-r", root, "--datasets", SCENES, "-fp32", weights, "-e", 1]
    flags += ["--batch_size", scale.batch_size, "--workers", 0, "--num_calibration_samples", 4]
    prepared = prepared_network(scale.width, scale.input_hw, context.device)
    prepared(random_batches(1, scale.batch_size, scale.input_hw)[0].image.to(context.device)).sum().backward()
    values = [*prepared.parameters(), *prepared.buffers()]
    values += [each.grad for each in prepared.parameters() if each.grad is not None]
    values = [each.detach() for each in values if each.numel()]
    values.append(torch.tensor(2**40, device=context.device))  # a count, of 64 bits
    before = [each.clone() for each in values]
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if context.on_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        for value in values:
            dist.broadcast(value, 0)
            dist.all_reduce(value, async_op=True).wait()
        dist.all_reduce(values[-1], op=dist.ReduceOp.MIN)
        objects: list = [None]
        dist.all_gather_object(objects, {"random": torch.get_rng_state()})
        dist.destroy_process_group()
    same = all(torch.equal(value, kept) for value, kept in zip(values, before, strict=True))
    context.record.check(f"{backend}: every tensor of a prepared graph is shared", same, tensors=len(values))
    context.record.check(
        f"{backend}: random states are shared", torch.equal(objects[0]["random"], torch.get_rng_state())
    )
    run_script(
        context,
        "torch.distributed.run",
        ["--nproc_per_node=1", "--standalone", "--local_addr=127.0.0.1", ROOT / "quantize_model_sceneseg.py", *flags],
    )


def determinism(context: Context) -> None:
    """Whether two runs from one seed give the same bits, and which operators PyTorch's deterministic mode refuses."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which that mode asks for
    scale = context.scale
    batches = random_batches(scale.steps, scale.batch_size, scale.input_hw)
    for mode in ("as it is", "deterministic algorithms"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.use_deterministic_algorithms(mode != "as it is", warn_only=True)
            torch.backends.cudnn.benchmark = False
            runs = [_train(context, batches, context.device) for _ in range(2)]
        torch.use_deterministic_algorithms(False)
        refused = sorted(
            {str(each.message).split(" does not")[0][:120] for each in told if "determinis" in str(each.message)}
        )
        found = {
            "equal_losses": runs[0]["losses"] == runs[1]["losses"],
            "equal_weights": torch.equal(runs[0]["weights"], runs[1]["weights"]),
            "largest_relative": _distances(*runs)["weights"],
            "operators_without_a_deterministic_kernel": refused,
        }
        if context.on_gpu:
            context.record.figure(mode, found)
        else:
            context.record.check(f"{mode}: equal bits on a CPU", found["equal_weights"], **found)
