"""Puts this folder on the import path, for `runs`; without the extra `pipeline` nothing here is collected."""

from importlib.util import find_spec

collect_ignore_glob: list[str] = []

if find_spec("datatrove") is None:
    collect_ignore_glob.append("test_*.py")
else:
    from runs import some_notebooks  # noqa: F401
