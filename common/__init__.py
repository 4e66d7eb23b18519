import logging
import time
import warnings

STARTED = time.perf_counter()  # seconds; before the libraries are imported

# torchao registers its enums with an older call of PyTorch, which says so on stderr beside our one line
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
# executorch's own, which nobody who makes warnings errors can mend
for message in ("(read|open)_text is deprecated", "This API is experimental and subject to change"):
    warnings.filterwarnings("ignore", message)
