"""The loop of FP32 and quantization-aware training: steps, schedule, validation, resuming, the record of a run."""
