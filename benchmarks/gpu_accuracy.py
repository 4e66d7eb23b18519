"""The last part of benchmarks.gpu_check: QAT at full width on real images, by the toolkit's own scripts."""

from pathlib import Path

from benchmarks.gpu_context import FINAL, SCENES, Context, figures_of_models, run_script, scenes
from common.networks.checkpoints import read_checkpoint


def accuracy(context: Context) -> None:
    """FP32 from random weights, then QAT from its labels and QAT that also learns the FP32 network's logits: mIoU.

    The INT8 file of each is written and scored beside FP32 and INT8 without training.
    """
    scale, work = context.scale, context.work
    if context.data:
        root, name = context.data, next(path.name for path in sorted(context.data.iterdir()) if path.is_dir())
    else:
        root, name = scenes(context), SCENES
    context.record.figure("images", {"source": name, "folder": root.name})
    data = ["--datasets", name, "--workers", context.workers]
    precision = ["--precision", "bf16"]
    training = ["-r", root, *data, "--batch_size", scale.full_batch // 2, *precision, "--cache_dir", work / "cache"]
    size = ["--width", scale.full_width, "--input_hw", ",".join(map(str, scale.full_hw))]
    # scored every few epochs only: an epoch of so few images is shorter than its validation
    fp32 = ["-e", scale.epochs, "--schedule", "cosine", "--keep_checkpoints", 1, "--num_val_samples", 10]
    run_script(context, "examples.train_sceneseg", ["-s", work / "fp32", *size, *fp32, *training])
    weights = work / "fp32" / "best_model.pth"
    context.record.figure("FP32", _together(weights))
    recipe = ["-fp32", weights, "-e", scale.qat_epochs, "--recipe", "extended", "--warmup_steps", 2]
    recipe += ["--keep_checkpoints", 1, "--num_calibration_samples", 32, *training]
    for label, flags in {"QAT from labels": [], "QAT that distills, too": ["--distill", 1]}.items():
        folder = work / label.replace(" ", "_").replace(",", "")
        done = run_script(context, "quantize_model_sceneseg.py", ["-s", folder, *flags, *recipe])
        if done.returncode == 0:
            context.record.figure(label, _together(folder / FINAL))
    folder = work / "QAT_from_labels"
    benchmark = ["--dataset_root", root, *data, "--compare_ptq", weights, "--num_calibration_samples", 32]
    run_script(context, "benchmark_qat_model.py", ["--qat_checkpoint_path", folder / FINAL, *benchmark])
    for path in folder.glob("onnx_models/**/results.json"):
        context.record.figure("files", figures_of_models(path))


def _together(path: Path) -> object:
    """mIoU and IoU of each class over all validation images, as a checkpoint holds them."""
    return read_checkpoint(path).description.metrics.get("together")
