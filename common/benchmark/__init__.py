"""Measuring models side by side: accuracy, time, memory, sensitivity; results.json, the gate and earlier runs."""
