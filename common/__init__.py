import logging
import time

STARTED = time.perf_counter()  # seconds; before the libraries are imported

# torchao registers its enums with an older call of PyTorch, which says so on stderr beside our one line
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
