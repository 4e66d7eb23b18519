"""The work of the scripts: from parsed flags to files and printed results."""
