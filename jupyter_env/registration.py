"""Makes `gymnasium.make("jupyter_env/JupyterQA-v0", task_pool=...)` work wherever the package is installed."""

import gymnasium

ENV_ID = "jupyter_env/JupyterQA-v0"


def register() -> None:
    """Register the environment; a second call does nothing. Gymnasium calls it through its plugin entry point."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point="jupyter_env.env:JupyterQAEnv")
