"""What Python settles about a cell without running it: syntax, files that are not there, names that were never bound.

Said only where it is certain: statements that are surely reached, expressions that are surely evaluated, and nothing
once code has done what makes it uncertain (`exec`, a magic, a changed folder, written files).
"""

from __future__ import annotations

import ast
import builtins
import posixpath
import re
import sys
import warnings
from collections.abc import Iterator, Sequence, Set
from functools import lru_cache

import msgspec

_READERS = {
    *("read_csv", "read_table", "read_excel", "read_json", "read_parquet", "read_feather", "read_pickle", "read_fwf"),
    *("read_stata", "read_sas", "read_orc", "loadtxt", "genfromtxt"),
}
_DATA = re.compile(
    r"[^*?\[\]{}~]+\.(?:csv|tsv|txt|json|jsonl|xlsx?|parquet|feather|pkl|pickle|dta|sas7bdat|npy|gz|zip|dat)"
)
_FILES_CHANGE = re.compile(
    r"get_ipython|chdir|\bos\.(?:system|popen|re\w+|unlink|mk\w+|link|symlink)|subprocess|shutil|[pP]ath\b.*\(|exec\(|eval\("
    r"|\.to_(?:csv|excel|json|parquet|feather|pickle|hdf|stata|sql|orc|html|markdown|latex|string|xml)\("
    r"|open\([^)]*[\"'][wax]|\bsave(?!fig)\w*\(|dump\(|write\w*\(|extractall|[zZ]ip|tarfile|unpack|retrieve|requests|urlopen"
    r"|download|importlib|rmtree"
)
_NAMES_CHANGE = re.compile(
    r"get_ipython|exec\(|eval\(|globals\(|locals\(|setattr\(|import \*|__import__|__dict__|_ns\b"
)
_HARMLESS = re.compile(r"get_ipython\(\)\.run_line_magic\('(?:matplotlib|config|load_ext|autoreload)', [^\n]*\)")
_TIMED = re.compile(r"\A\s*%%(?:time|capture)\b[^\n]*\n")
"""Magics that do nothing but run their cell."""
_LEAVES = {"exit", "quit", "_exit", "abort", "kill"}
_SHELL_NAME = re.compile(r"_+|_i*\d*|_[ido]h|In|Out|display|exit|quit|get_ipython|__\w+__")
_INSTALLED = sys.stdlib_module_names | {"numpy", "pandas", "matplotlib", "scipy", "sklearn"}


class Certain(msgspec.Struct, frozen=True):
    """What is known of a cell before a model says anything."""

    error: str | None = None
    """The cell does not end well: by this exception (`NameError: name 'x' is not defined`), or one before it."""
    whole: bool = False
    """That exception is all that comes of the cell: nothing before it prints or fails."""
    where: str = ""
    """The frame of its traceback."""
    existing: tuple[str, ...] = ()
    """Files that surely exist."""


def certainly(code: str, past: Sequence[str], files: Sequence[str]) -> Certain:
    """What Python settles about a cell.

    Args:
        code: of the cell.
        past: code of the cells executed before it.
        files: paths that existed before the first of them, relative to the working folder.
    """
    all_code = "\n".join(map(_plain, [*past, code]))
    there = None if _FILES_CHANGE.search(all_code) else files
    known = None if _NAMES_CHANGE.search(all_code) else frozenset().union(*map(_bound, [*past, code]))
    existing = tuple(there or ())
    try:
        tree = _parsed(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        return Certain(f"{type(error).__name__}: {said}", True, _frame(code, line), existing)
    quiet = True
    for statement in tree.body:
        for node in _surely_evaluated(statement):
            if isinstance(node, ast.Call) and _called(node) in _LEAVES:
                return Certain(existing=existing)
            problem = _unbound(node, known) or _missing(node, there)
            if problem is not None:
                return Certain(problem, quiet, _frame(code, getattr(node, "lineno", 1)), existing)
        if isinstance(statement, ast.Raise):
            break
        quiet = quiet and _is_quiet(statement)
    return Certain(existing=existing)


@lru_cache(maxsize=4096)
def _plain(code: str) -> str:
    """The code as Python, magics as the calls that IPython makes of them."""
    from IPython.core.inputtransformer2 import TransformerManager  # slow to import, and few need it

    return _HARMLESS.sub("None", TransformerManager().transform_cell(_TIMED.sub("", code)))


def _parsed(code: str) -> ast.Module:
    with warnings.catch_warnings(action="ignore"):  # of the agent's code, which are no concern of this process
        return ast.parse(_plain(code))


def _frame(code: str, line: int) -> str:
    lines = code.splitlines() or [""]
    return f"  Cell In, line {line}\n    {lines[min(line, len(lines)) - 1].strip()}"


def _surely_evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions of a statement that are evaluated whenever it is reached, in about their order."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Lambda() | ast.Try() | ast.TryStar():
            return
        case ast.If() | ast.While() | ast.IfExp():
            yield from _surely_evaluated(node.test)
        case ast.For():
            yield from _surely_evaluated(node.iter)
        case ast.With():
            if node.items:  # the block may swallow what happens in it, as contextlib.suppress does
                yield from _surely_evaluated(node.items[0].context_expr)
        case ast.BoolOp():
            yield from _surely_evaluated(node.values[0])
        case ast.Compare():
            yield from _surely_evaluated(node.left)
            yield from _surely_evaluated(node.comparators[0])
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            yield from _surely_evaluated(node.generators[0].iter)
        case ast.Match():
            yield from _surely_evaluated(node.subject)
        case ast.Assign() | ast.AugAssign():
            yield from _surely_evaluated(node.value)
        case ast.AnnAssign() | ast.Assert() | ast.Delete() | ast.Import() | ast.ImportFrom() | ast.AsyncFor():
            return
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _surely_evaluated(child)
            yield node


@lru_cache(maxsize=4096)
def _bound(code: str) -> frozenset[str]:
    """Every name that the code binds anywhere; kept, for each cell is asked about again with every later one."""
    try:
        nodes = list(ast.walk(_parsed(code)))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    found: set[str] = set()
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.alias():
                found.add((node.asname or node.name).partition(".")[0])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                found.add(name)
            case ast.MatchMapping(rest=str(name)):
                found.add(name)
    return frozenset(found)


def _unbound(node: ast.AST, known: Set[str] | None) -> str | None:
    if known is None or not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return None
    if node.id in known or hasattr(builtins, node.id) or _SHELL_NAME.fullmatch(node.id):
        return None
    return f"NameError: name {node.id!r} is not defined"


def _missing(node: ast.AST, files: Sequence[str] | None) -> str | None:
    if files is None or not isinstance(node, ast.Call):
        return None
    name = _called(node)
    if name not in _READERS and not (name == "open" and _reads(node)):
        return None
    if not node.args or not isinstance(given := node.args[0], ast.Constant) or not isinstance(path := given.value, str):
        return None
    if "://" in path or not _DATA.fullmatch(path):
        return None
    plain = posixpath.normpath(path)
    if plain in files or (plain.startswith("/") and any(plain.endswith(f"/{file}") for file in files)):
        return None
    return f"FileNotFoundError: [Errno 2] No such file or directory: {path!r}"


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _reads(call: ast.Call) -> bool:
    """Whether an `open` is one for reading, of the builtin."""
    if not isinstance(call.func, ast.Name):
        return False
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return all(isinstance(mode, ast.Constant) and str(mode.value).startswith("r") for mode in modes)


def _is_quiet(statement: ast.stmt) -> bool:
    """Whether it neither prints nor can fail."""
    match statement:
        case ast.Import():
            modules = [alias.name for alias in statement.names]
        case ast.ImportFrom(module=str(module)):
            modules = [module]
        case ast.Assign(value=ast.Constant()):
            return all(isinstance(target, ast.Name) for target in statement.targets)
        case ast.FunctionDef():
            return not statement.decorator_list and not statement.args.defaults
        case ast.Expr(value=ast.Constant()):
            return True
        case _:
            return False
    return all(module.partition(".")[0] in _INSTALLED for module in modules)
