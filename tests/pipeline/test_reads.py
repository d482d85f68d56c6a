"""Which files code reads, from its syntax tree."""

import pytest

from pipeline.reads import find_reads, is_python2


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("pd.read_csv('a.csv')", ["a.csv"]),
        ("pd.read_csv(filepath_or_buffer='a.csv', sep=';')", ["a.csv"]),
        ("d = '../input/'\npd.read_csv(d + 'a.csv')", ["../input/a.csv"]),
        ("d = '../input'\npd.read_csv(f'{d}/a.csv')", ["../input/a.csv"]),
        ("d = '../input'\npd.read_csv('%s/a.csv' % d)", ["?/a.csv"]),
        ("pd.read_csv('{}/a.csv'.format(d))", ["?/a.csv"]),
        ("from pathlib import Path\np = Path('data')\npd.read_csv(p / 'a.csv')", ["data/a.csv"]),
        ("pd.read_csv(os.path.join(root, 'x', 'a.csv'))", ["?/x/a.csv"]),
        ("for name in names:\n    pd.read_csv(name)", ["?"]),
        ("with open('notes.json') as f:\n    json.load(f)", ["notes.json"]),
        ("with open('out.csv', 'w') as f:\n    f.write('x')", []),
        ("df.to_csv('out.csv')\npd.read_csv('out.csv')", []),
        ("pd.read_csv('a.csv')\ndf.to_csv('b.csv')", ["a.csv"]),
        ("np.loadtxt('a.txt')\nsqlite3.connect('a.db')\npd.read_excel('b.xlsx')", ["a.txt", "a.db", "b.xlsx"]),
        ("glob.glob('../input/*.csv')", ["../input/*.csv"]),
        ("pd.read_csv(io.StringIO('a,b'))", []),
        ("open('readme.md').read()", []),
        ("%matplotlib inline\n!ls data\nx = !cat a\npd.read_csv('a.csv')\npd.read_csv?", ["a.csv"]),
        ("%%time\npd.read_csv('a.csv')", ["a.csv"]),
        ("%%bash\ncat a.csv", []),
        ("print 'old'\npd.read_csv('a.csv')", ["a.csv"]),
        ("this is (no python pd.read_csv('a.csv')", ["a.csv"]),
        ("x = 1\nx.read_csv", []),
        ("p = 'a.csv'\np = choose()\npd.read_csv(p)", ["?"]),
    ],
)  # fmt: skip
def test_files(code: str, files: list[str]) -> None:
    assert find_reads([code]).files == files


def test_urls_packaged_data_and_packages() -> None:
    found = find_reads(
        [
            "import pandas as pd, numpy.linalg\nfrom sklearn.datasets import load_iris\nfrom . import mine",
            "pd.read_csv('https://host/a.csv')\nload_iris()\nsns.load_dataset('tips')\nmake_blobs()",
        ]
    )
    assert (found.files, found.urls) == ([], ["https://host/a.csv"])
    assert found.packaged == ["load_dataset", "load_iris"]
    assert found.packages == ["numpy", "pandas", "sklearn"]


def test_names_live_from_cell_to_cell() -> None:
    assert find_reads(["d = 'data/'", "pd.read_csv(d + 'a.csv')"]).files == ["data/a.csv"]


@pytest.mark.parametrize(
    ("code", "old"),
    [("print 'x'", True), ("print x, y", True), ("except IOError, e:\n  pass", True), ("x <> y", True), ("raise E, 'm'", True),  # noqa: E501
     ("print(x)", False), ("def f(:", False), ("for x in", False)],
)  # fmt: skip
def test_python2(code: str, old: bool) -> None:
    assert is_python2(code) == old
    assert find_reads([code]).python2 == old or not old


def test_hostile_code_only_costs_time() -> None:
    deep = "(" * 5000 + ")" * 5000
    found = find_reads([deep, "x = " + "-" * 100_000 + "1", "\0", "f(" * 300, "'" * 3, "é = 'ü'\n"])
    assert found.cells == 6
