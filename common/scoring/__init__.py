"""How good and how fast: IoU of confusion matrices, latency, intervals of the bootstrap."""
