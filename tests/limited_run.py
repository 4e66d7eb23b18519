"""A script with a limit to its address space, as `ulimit -v` sets it: `python tests/limited_run.py MB SCRIPT WORK ...`.

The limit is MB above what the libraries of its work, a module of `common.commands`, take, which differs between
machines and versions.
"""

import importlib
import resource
import sys

import psutil

if __name__ == "__main__":
    megabytes, name, work, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = name
    script = importlib.import_module(name)
    importlib.import_module(f"common.commands.{work}")
    from common.cli.main import run

    most = psutil.Process().memory_info().vms + int(megabytes) * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    run(script.main, script.get_args_parser())
