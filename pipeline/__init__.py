"""From a heap of notebooks to those worth asking about: read, deduplicate, filter, join with their data sets.

A program run from the checkout (`python -m pipeline --help`). It may import `jupyter_env`; never the reverse.
"""
