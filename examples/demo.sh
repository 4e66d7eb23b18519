#!/usr/bin/env bash
# The whole flow on generated scenes, with the commands of the README; `make demo` runs it. Everything goes to demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf demo

step() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

step python -m examples.make_scenes --output demo/data --images_per_dataset 30
step python -m examples.train_sceneseg -s demo/fp32 -r demo/data --width 0.125 --input_hw 160,320 -e 7 --batch_size 8
step python convert_pytorch_to_onnx.py -n SceneSeg -p demo/fp32/best_model.pth -o demo/fp32/SceneSeg.onnx
step python trace_pytorch_model.py -n SceneSeg -p demo/fp32/best_model.pth -o demo/fp32/SceneSeg.pt
step python quantize_model_sceneseg.py -s demo/qat -r demo/data -fp32 demo/fp32/best_model.pth -e 2 --batch_size 8 --learning_rate 1e-4 --num_calibration_samples 64
step python benchmark_qat_model.py --qat_checkpoint_path demo/qat/qat_model_final_calibrated.pth --dataset_root demo/data --num_calibration_samples 64
step python benchmark_onnx_models.py --pytorch_model_path demo/fp32/best_model.pth --fp32_model_path demo/fp32/SceneSeg.onnx --int8_model_path demo/qat/onnx_models/SceneSegNetwork_QAT_INT8_final.onnx --dataset_root demo/data --output_dir_base demo/results --save_outputs
