"""`python -m pipeline`."""

import sys

try:
    from pipeline.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed; `pip install -e '.[pipeline]'` in the checkout brings it")

if __name__ == "__main__":
    main()
