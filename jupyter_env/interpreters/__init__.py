"""Where an agent's code runs: one protocol, and the local Jupyter kernel behind it."""

from jupyter_env.forkserver.shared import close_servers
from jupyter_env.interpreters.base import BranchError, CellResult, InfrastructureError, Interpreter, Status
from jupyter_env.interpreters.isolated import IsolatedKernel, make_kernel
from jupyter_env.interpreters.local import LocalKernel
from jupyter_env.interpreters.output import OutputLimits, render_outputs
from jupyter_env.interpreters.settings import KernelSettings

__all__ = [
    "BranchError",
    "CellResult",
    "InfrastructureError",
    "Interpreter",
    "IsolatedKernel",
    "KernelSettings",
    "LocalKernel",
    "OutputLimits",
    "Status",
    "close_servers",
    "make_kernel",
    "render_outputs",
]
