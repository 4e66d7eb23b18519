"""How many timed calls a percentile of the latency takes."""

CALLS_FOR_P90, CALLS_FOR_P99 = 10, 100
