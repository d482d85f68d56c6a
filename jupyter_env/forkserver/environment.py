"""The environment variables of a kernel: settled here, and nothing of the trainer's that could hold a secret."""

from __future__ import annotations

import os
from pathlib import Path

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""The trainer's variables that a kernel gets: none that could hold a secret."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SETTINGS = {
    # Threads of these would make a fork server unable to fork.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",  # sets print in the same order in every kernel
    "PYTHONNOUSERSITE": "1",
}


def kernel_environment(python: str, threads: int, gpu: bool) -> dict[str, str]:
    """What a kernel finds in its environment, but for its folders.

    Args:
        python: its interpreter, whose folder comes first in PATH.
        threads: of BLAS and OpenMP.
        gpu: whether it may see the GPUs that the trainer sees; if not, it sees none.
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if gpu and "CUDA_VISIBLE_DEVICES" in os.environ:
        passed["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    elif not gpu:
        passed["CUDA_VISIBLE_DEVICES"] = ""
    path = f"{Path(python).parent}{os.pathsep}{passed.get('PATH', os.defpath)}"
    return {**passed, **SETTINGS, **dict.fromkeys(THREADS, str(threads)), "PATH": path}
