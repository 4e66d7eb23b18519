"""PT2E: what is quantized and how, fake quantization, calibration, conversion, and the exact integer reference."""
