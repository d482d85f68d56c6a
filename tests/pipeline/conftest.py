"""Puts this folder on the import path, for `runs`; the tests here need the extra `pipeline`."""

import pytest

pytest.importorskip("datatrove", reason="needs the extra `pipeline`")

from runs import some_notebooks  # noqa: F401
