"""Where an agent's code runs: one protocol, and the local Jupyter kernel behind it."""

from jupyter_env.interpreters.base import CellResult, InfrastructureError, Interpreter, Status
from jupyter_env.interpreters.isolated import IsolatedKernel, make_kernel
from jupyter_env.interpreters.kernel import KernelSettings, LocalKernel
from jupyter_env.interpreters.output import OutputLimits, render_outputs

__all__ = [
    "CellResult",
    "InfrastructureError",
    "Interpreter",
    "IsolatedKernel",
    "KernelSettings",
    "LocalKernel",
    "OutputLimits",
    "Status",
    "make_kernel",
    "render_outputs",
]
