"""A verifiable environment for data-science agents that work in Jupyter notebooks."""

from jupyter_env.answer import Answer, Verdict, verify
from jupyter_env.env import JupyterQAEnv
from jupyter_env.episode import Budget, Episode, EpisodeRecord
from jupyter_env.interpreters import InfrastructureError, KernelSettings, LocalKernel
from jupyter_env.registration import register
from jupyter_env.task import DataFile, Task, TaskDataError, TaskError, TaskPool

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Budget",
    "DataFile",
    "Episode",
    "EpisodeRecord",
    "InfrastructureError",
    "JupyterQAEnv",
    "KernelSettings",
    "LocalKernel",
    "Task",
    "TaskDataError",
    "TaskError",
    "TaskPool",
    "Verdict",
    "verify",
]

register()
