"""A fork server for Jupyter kernels: libraries are imported once, a kernel is a fork of that.

This package imports nothing else of `jupyter_env`, and imports itself relatively: the server process loads it under
the name `forkserver` (see `client`), so that `jupyter_env` is not in a kernel's memory.
"""
