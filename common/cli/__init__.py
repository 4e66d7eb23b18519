"""The command line: argument types, flags that scripts share, exit codes."""
