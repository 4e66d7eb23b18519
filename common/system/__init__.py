"""What the process and the machine give: files written whole, locks, signals, failures in one line, ranks, text tables."""
