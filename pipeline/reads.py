"""Which files a notebook reads and which packages it imports, from its syntax tree: no model is asked.

Paths are followed through simple assignments, concatenation, f-strings, `%`, `.format`, `os.path.join` and
`Path / ...`. A path that can't be worked out is kept as unknown: that data is read is known even where its name is not.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from pathlib import PurePosixPath

import msgspec

UNKNOWN = "?"
"""Stands for the part of a path that can't be worked out."""

_READERS = {
    "read_csv", "read_table", "read_excel", "read_json", "read_parquet", "read_feather", "read_pickle", "read_hdf",
    "read_fwf", "read_html", "read_stata", "read_sas", "read_spss", "read_orc", "read_xml",
    "read_file", "read_ndjson", "read_ipc", "read_avro", "scan_csv", "scan_parquet", "loadtxt", "genfromtxt", "loadmat",
    "ExcelFile", "HDFStore", "from_csv", "open_dataset", "fread", "textFile",
}  # fmt: skip
_QUALIFIED = {
    "np.load", "numpy.load", "pickle.load", "joblib.load", "h5py.File", "sqlite3.connect", "json.load", "csv.reader",
    "csv.DictReader", "ZipFile", "zipfile.ZipFile", "gzip.open", "bz2.open", "netCDF4.Dataset", "xr.open_dataset",
    "pd.io.parsers.read_csv", "gpd.read_file",
}  # fmt: skip
_TAKES_A_FILE_OBJECT = {"pickle.load", "json.load", "csv.reader", "csv.DictReader"}
_WRITERS = {"to_csv", "to_excel", "to_json", "to_parquet", "to_feather", "to_pickle", "to_hdf", "savetxt", "save",
            "savez", "savefig", "dump", "mkdir", "makedirs", "urlretrieve"}  # fmt: skip
_PACKAGED = re.compile(
    r"^(?:(?:sklearn\.)?datasets\.)?(?:load_(?:iris|boston|diabetes|digits|wine|breast_cancer|linnerud|dataset|data)"
    r"|fetch_\w+|get_rdataset)$"
)
_TABLE_SUFFIXES = {
    ".csv", ".tsv", ".txt", ".dat", ".data", ".xls", ".xlsx", ".json", ".jsonl", ".parquet", ".feather", ".pkl",
    ".pickle", ".h5", ".hdf5", ".hdf", ".db", ".sqlite", ".sqlite3", ".npy", ".npz", ".mat", ".sav", ".dta", ".zip",
    ".gz", ".bz2", ".xml", ".nc", ".arff", ".p", ".ft", ".geojson", ".shp",
}  # fmt: skip


class Reads(msgspec.Struct):
    """What the code takes in."""

    files: list[str]
    """Paths as the code has them, in order, without those that it wrote before; `?` for what is not known."""
    urls: list[str]
    packaged: list[str]
    """Data sets that come with a package (`load_iris`)."""
    packages: list[str]
    """Top-level names imported, sorted."""
    cells: int
    """Cells with code."""
    unparsed: int
    """Of these, those that are not Python 3."""
    python2: int
    """Of these, those that are Python 2 by their print statements and the like."""


def find_reads(code: Iterable[str]) -> Reads:
    """Work through the cells in order."""
    finder = _Finder()
    cells = unparsed = python2 = 0
    for source in code:
        source = _without_magics(source)
        if not source.strip():
            continue
        cells += 1
        tree = _parsed(source)
        if tree is None:
            old = is_python2(source)
            python2 += old
            unparsed += 1
            tree = _parsed(_PRINT.sub(r"\1print(\2)", source)) if old else None
        if tree is not None:
            finder.visit(tree)
        else:
            finder.scan_text(source)
    files = list(dict.fromkeys(path for path in finder.files if _norm(path) not in finder.written))
    urls = list(dict.fromkeys(finder.urls))
    return Reads(files, urls, sorted(finder.packaged), sorted(finder.packages), cells, unparsed, python2)


_PRINT = re.compile(r"(?m)^(\s*)print[ \t]+(?![(=])(.*?),?[ \t]*$")
_OLD = re.compile(
    r"(?m)^\s*print[ \t]+(?:[\"'\w%]|u['\"])|^\s*print[ \t]*$|^\s*exec[ \t]+['\"\w]"
    r"|^\s*except[ \t]+[\w.]+[ \t]*,[ \t]*\w+:"
    r"|^\s*raise[ \t]+\w+,|[^<]<>[^>]|\bprint[ \t]*>>|(?<![\w.])0\d+\b|\b\d+L\b|`\w+`"
)


def is_python2(source: str) -> bool:
    """Whether code that is not Python 3 has the marks of Python 2."""
    return _OLD.search(source) is not None


def _parsed(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_MAGIC = re.compile(r"(?m)^(\s*)(?:[%!?].*|.*\?\??\s*|[\w., ]+=\s*[%!].*)$")
_CELL_MAGIC = re.compile(r"^\s*%%(\w+)")
_PYTHON_CELL_MAGICS = {"time", "timeit", "capture", "prun", "memit", "mprun", "opts", "output", "notify", "pypy"}


def _without_magics(source: str) -> str:
    """The Python of a cell: other languages' cells are empty, magics and shell lines become `pass`."""
    cell = _CELL_MAGIC.match(source)
    if cell and cell[1] not in _PYTHON_CELL_MAGICS:
        return ""
    return _MAGIC.sub(_as_pass, source)


def _as_pass(match: re.Match[str]) -> str:
    line = match[0].strip()
    if not line.startswith(("%", "!", "?")) and not line.endswith("?") and not re.search(r"=\s*[%!]", line):
        return match[0]
    if "#" in line and line.rstrip().endswith("?"):  # a comment that asks something
        return match[0]
    return match[1].replace("\n", "\n") + "pass"


def _norm(path: str) -> str:
    return str(PurePosixPath(path.replace("\\", "/")))


class _Finder(ast.NodeVisitor):
    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.files: list[str] = []
        self.urls: list[str] = []
        self.packaged: set[str] = set()
        self.packages: set[str] = set()
        self.written: set[str] = set()

    # ----- names

    def visit_Import(self, node: ast.Import) -> None:
        self.packages.update(alias.name.split(".")[0] for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and not node.level:
            self.packages.add(node.module.split(".")[0])

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        value = self._text(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                if value is None:
                    self.values.pop(target.id, None)
                else:
                    self.values[target.id] = value

    # ----- calls

    def visit_Call(self, node: ast.Call) -> None:
        name = _dotted(node.func)
        last = name.rsplit(".", 1)[-1]
        if last in _WRITERS:
            self._note_written(node)
        elif last == "open" and name in ("open", "io.open", "codecs.open", "tf.gfile.Open", "Image.open"):
            self._open(node)
        elif last in _READERS or name in _QUALIFIED - _TAKES_A_FILE_OBJECT:
            self._read(node)
        elif last in ("imread", "load_img", "walk", "listdir", "glob", "iglob", "flow_from_directory") and node.args:
            self._folder(node)
        elif _PACKAGED.match(name) or last in ("load_dataset", "load_data") or _PACKAGED.match(last):
            self.packaged.add(last)
        self.generic_visit(node)

    def _read(self, node: ast.Call) -> None:
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        argument = (
            node.args[0]
            if node.args
            else next(
                (
                    named[key]
                    for key in ("filepath_or_buffer", "io", "path", "path_or_buf", "fname", "filename", "file")
                    if key in named
                ),
                None,
            )
        )
        if argument is None:
            return
        if isinstance(argument, ast.Call) and _dotted(argument.func).rsplit(".", 1)[-1] in (
            "StringIO",
            "BytesIO",
            "open",
        ):
            return  # text made here, or an `open` that is seen by itself
        if _dotted(node.func).startswith(("ast.", "json.")):
            return
        self._note(self._text(argument))

    def _open(self, node: ast.Call) -> None:
        if not node.args:
            return
        mode = node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "mode"), None)
        path = self._text(node.args[0])
        text = self._text(mode) if mode is not None else "r"
        if text and any(letter in text for letter in "wax+"):
            if path:
                self.written.add(_norm(path))
        elif (
            path is None
            or PurePosixPath(path.split("?")[0]).suffix.lower() in _TABLE_SUFFIXES
            or UNKNOWN in (path or "")
        ):
            self._note(path)

    def _folder(self, node: ast.Call) -> None:
        path = self._text(node.args[0])
        if path and ("input" in path or PurePosixPath(path).suffix.lower() in _TABLE_SUFFIXES):
            self._note(path)

    def _note(self, path: str | None) -> None:
        if path is None:
            self.files.append(UNKNOWN)
        elif re.match(r"(?:https?|ftp|s3|gs)://", path):
            self.urls.append(path)
        elif path.strip():
            self.files.append(path.strip())

    def _note_written(self, node: ast.Call) -> None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            path = self._text(argument)
            if path:
                self.written.add(_norm(path))

    # ----- text that can be worked out

    def _text(self, node: ast.expr | None) -> str | None:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.Name(id=name):
                return self.values.get(name)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._sum(left, right)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                first, second = self._text(left), self._text(right)
                return f"{first.rstrip('/')}/{second}" if first is not None and second is not None else None
            case ast.BinOp(left=left, op=ast.Mod()):
                pattern = self._text(left)
                return None if pattern is None else re.sub(r"%[-\d.]*[a-z]", UNKNOWN, pattern)
            case ast.JoinedStr(values=values):
                pieces = [self._text(v.value) if isinstance(v, ast.FormattedValue) else self._text(v) for v in values]
                return "".join(UNKNOWN if piece is None else piece for piece in pieces)
            case ast.Call():
                return self._called(node)
        return None

    def _sum(self, left: ast.expr, right: ast.expr) -> str | None:
        first, second = self._text(left), self._text(right)
        if first is None and second is None:
            return None
        return (UNKNOWN if first is None else first) + (UNKNOWN if second is None else second)

    def _called(self, node: ast.Call) -> str | None:
        name = _dotted(node.func)
        parts = [self._text(argument) for argument in node.args]
        if name.endswith("path.join") and parts:
            return "/".join(UNKNOWN if part is None else part.rstrip("/") for part in parts)
        if name.rsplit(".", 1)[-1] in ("Path", "PosixPath", "expanduser", "abspath", "realpath", "str") and parts:
            return parts[0]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            pattern = self._text(node.func.value)
            return None if pattern is None else re.sub(r"\{[^{}]*\}", UNKNOWN, pattern)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "joinpath":
            base = self._text(node.func.value)
            return None if base is None else "/".join([base.rstrip("/"), *(UNKNOWN if p is None else p for p in parts)])
        return None

    _CALL = re.compile(r"\b(?:" + "|".join(sorted(_READERS)) + r")\s*\(\s*[rub]*(['\"])(.+?)\1")

    def scan_text(self, source: str) -> None:
        """For a cell that does not parse: reading calls with a constant path."""
        for match in self._CALL.finditer(source):
            self._note(match[2])
        self.packages.update(re.findall(r"(?m)^\s*(?:import|from)\s+([A-Za-z_]\w*)", source))


def _dotted(node: ast.expr) -> str:
    """`pd.read_csv` of a call's function; only the last names where it is called on something else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        names.append(node.id)
    return ".".join(reversed(names))
