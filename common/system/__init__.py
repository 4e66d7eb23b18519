"""What the process and the machine give: whole files, locks, signals, failures in one line, ranks, text tables."""
