"""torchao exports the patterns that it looks for, 24 for each training, anew every time: once in a process is enough.

Most of what tests of small networks took was spent on it. Runs of the scripts in processes of their own do without.
"""

import copy
import functools
import sys

MODULES = (
    "torchao.quantization.pt2e.qat_utils",
    "executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils",
)
NAME = "_get_aten_graph_module_for_pattern"


def remember_patterns() -> None:
    """From now on, in the modules that are imported already."""
    for name in MODULES:
        export = getattr(sys.modules.get(name), NAME, None)
        if export and not hasattr(export, "__wrapped__"):
            setattr(sys.modules[name], NAME, remembering(export))


def remembering(export):
    """`export`, which gives a copy of what it gave before where the same is asked for."""
    known = {}

    @functools.wraps(export)
    def exported(pattern, example_inputs, is_cuda=False, **options):
        function = pattern.fn  # made anew each time, of the same code and with the values that it closes over
        closed_over = tuple(cell.cell_contents for cell in function.__closure__ or ())
        shapes = tuple(tuple(each.shape) for each in example_inputs)
        key = function.__code__, closed_over, shapes, is_cuda, tuple(sorted(options.items()))
        if key not in known:
            known[key] = export(pattern, example_inputs, is_cuda, **options)
        return copy.deepcopy(known[key])

    return exported
