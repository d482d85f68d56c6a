"""Makes `gymnasium.make("jupyter_env/JupyterQA-v0", task_pool=...)` work once the package is imported.

Without the import, `gymnasium.make("jupyter_env:jupyter_env/JupyterQA-v0", ...)` does it.
"""

import gymnasium

ENV_ID = "jupyter_env/JupyterQA-v0"


def register() -> None:
    """Register the environment; a second call does nothing. Importing `jupyter_env` calls it."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point="jupyter_env.env:JupyterQAEnv")
