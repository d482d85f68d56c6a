"""An agent at work on a local web page, cell by cell: `jupyter-env watch`."""
