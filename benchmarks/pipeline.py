"""The pipeline beside what one would use without it, in one run.

    python -m benchmarks.pipeline                    # all, 20,000 notebooks, some 20 minutes on two cores
    python -m benchmarks.pipeline --only dedup --count 5000
    python -m benchmarks.pipeline --only scale --rows 10000000 --json

Needs the extra `pipeline-bench` (nbconvert, and spaCy for datatrove's stock English tokenizer), and real notebooks to
make the corpus from (`--notebooks`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.dedup_quality import Quality, measure
from benchmarks.notebook_corpus import Corpus, real_notebooks, write_zips
from pipeline import ledger
from pipeline.markdown import render_notebook
from pipeline.matching import link
from pipeline.notebook import parse, parse_full
from pipeline.parts import read_rows
from pipeline.plan import Options, jobs
from pipeline.recipe import Recipe
from pipeline.run import execute, prepare
from pipeline.run_folder import RunFolder
from pipeline.sources import NotebookReader

Rows = list[dict[str, Any]]


def cpu_rate(work: Callable[[bytes], object], raws: list[bytes], repeat: int) -> float:
    """Notebooks a second of one core."""
    began = time.process_time()
    for _ in range(repeat):
        for raw in raws:
            work(raw)
    return repeat * len(raws) / (time.process_time() - began)


def readable(folder: Path) -> list[bytes]:
    """The notebooks that all the readers compared can read."""
    import nbformat

    found = []
    for path in sorted(folder.glob("*.ipynb")):
        raw = path.read_bytes()
        try:
            parse(raw)
            nbformat.reads(raw, as_version=4)
            found.append(raw)
        except Exception as error:  # whatever the readers raise on broken files; those are tested elsewhere
            print(f"left out: {path.name}: {str(error)[:80]}", file=sys.stderr)
    return found


def bench_parse(folder: Path) -> Rows:
    """Bytes to the sources of the code cells."""
    import nbformat

    def stock(raw: bytes) -> object:
        return [cell["source"] for cell in nbformat.reads(raw, as_version=4)["cells"] if cell["cell_type"] == "code"]

    raws = readable(folder)
    theirs, ours = cpu_rate(stock, raws, 1), cpu_rate(lambda raw: parse(raw).code, raws, 10)
    plain = cpu_rate(lambda raw: list(json.loads(raw).get("cells", ())), raws, 3)
    return [
        {"what": "parse to code cells", "how": "nbformat.reads", "notebooks/s/core": round(theirs), "times": 1.0},
        {"what": "parse to code cells", "how": "json.loads", "notebooks/s/core": round(plain), "times": plain / theirs},
        {"what": "parse to code cells", "how": "pipeline", "notebooks/s/core": round(ours), "times": ours / theirs},
    ]


def bench_render(folder: Path) -> Rows:
    """Bytes to markdown."""
    import nbformat
    from nbconvert.exporters import MarkdownExporter

    exporter = MarkdownExporter()

    def stock(raw: bytes) -> object:
        return exporter.from_notebook_node(nbformat.v4.reads(raw.decode()))  # without validation

    def stock_can(raw: bytes) -> bool:
        try:
            return bool(stock(raw))
        except Exception:  # nbconvert validates, and refuses some that are read without it
            return False

    raws = [raw for raw in readable(folder) if stock_can(raw)]
    theirs, ours = cpu_rate(stock, raws, 1), cpu_rate(lambda raw: render_notebook(parse_full(raw)), raws, 5)
    return [
        {"what": "markdown", "how": "nbconvert", "notebooks/s/core": round(theirs), "times": 1.0},
        {"what": "markdown", "how": "pipeline", "notebooks/s/core": round(ours), "times": ours / theirs},
    ]


# ----- deduplication, whole flow


def bench_dedup(real: Path, work: Path, count: int, workers: int) -> Rows:
    """From parsed rows to kept rows on disk: all of datatrove's stock steps, and all of ours, on the same notebooks."""
    truth = write_zips(Corpus(real_notebooks(real), count, count // 5, outputs=False), work / "zips")
    folder, recipe = RunFolder(work / "run"), Recipe(tasks=4, workers=workers)
    options = Options(inputs=str(work / "zips"))
    prepare(folder, options, recipe)
    plan = jobs(folder, options, recipe, until="near")
    quietly(lambda: execute(folder, plan[:1], recipe))
    _write_jsonl(folder, work / "jsonl")

    began = time.perf_counter()
    quietly(lambda: execute(folder, plan[1:], recipe))
    ours_s = time.perf_counter() - began
    ours = _our_quality(folder, truth)

    began = time.perf_counter()
    quietly(lambda: _stock(work, workers))
    stock_s = time.perf_counter() - began
    stock = _stock_quality(work, truth)
    return [
        _dedup_row("datatrove, stock", count, stock_s, stock_s, stock),
        _dedup_row("pipeline", count, ours_s, stock_s, ours),
    ]


def _dedup_row(how: str, count: int, wall_s: float, stock_s: float, quality: Quality) -> dict[str, Any]:
    return {
        "what": f"dedup of {count:,}, whole flow",
        "how": how,
        "wall s": round(wall_s, 1),
        "notebooks/s": round(count / wall_s),
        "times": stock_s / wall_s,
        "precision": round(quality.precision, 5),
        "recall": round(quality.recall, 4),
        "duplicates left": f"{quality.duplicates_left:.2%}",
        "clusters lost": f"{quality.clusters_lost:.2%}",
        "by kind": {kind: round(value, 3) for kind, value in quality.recall_by_kind.items()},
    }


def _version(name: str) -> int:
    return int(name.rsplit("/", 1)[1].split(".")[0])


def _write_jsonl(folder: RunFolder, out: Path) -> None:
    """The code of the same notebooks for datatrove's reader, compressed the way that is best for it."""
    import zstandard

    out.mkdir()
    for number, unit in enumerate(folder.units()):
        rows = read_rows(folder.parts("read", unit.name), ["id", "code"])
        lines = [json.dumps({"id": row["id"], "text": "\n".join(row["code"])}) for row in rows]
        packed = zstandard.ZstdCompressor(1).compress("\n".join(lines).encode())
        (out / f"{number:03d}.jsonl.zst").write_bytes(packed)


def _stock(work: Path, workers: int) -> None:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config, root = MinhashConfig(), work / "stock"
    reader = JsonlReader(str(work / "jsonl"))

    def launch(name: str, tasks: int, *steps: Any) -> None:
        LocalPipelineExecutor(list(steps), tasks, min(tasks, workers), str(root / "logs" / name)).run()

    sigs, dups, ids = (str(root / name) for name in ("sigs", "dups", "ids"))
    launch("sigs", 4, reader, MinhashDedupSignature(sigs, config))
    launch("dups", config.num_buckets, MinhashDedupBuckets(sigs, dups, config=config))
    launch("ids", 1, MinhashDedupCluster(dups, ids, config, save_cluster_id=True))
    writer = JsonlWriter(str(root / "kept"), compression="zstd")
    launch("kept", 4, reader, MinhashDedupFilter(ids), writer)


def _stock_quality(work: Path, truth: list[tuple[int, str]]) -> Quality:
    import zstandard

    found: dict[int, Any] = {}
    kept: dict[int, bool] = {}
    for rank, path in enumerate(sorted((work / "jsonl").iterdir())):
        lines = zstandard.ZstdDecompressor().decompress(path.read_bytes(), 1 << 32).splitlines()
        versions = [_version(json.loads(line)["id"]) for line in lines]
        clusters = dict(_pairs(work / "stock" / "ids" / f"{rank:06d}.clusters", "<2I"))
        removed = {number for (number,) in _pairs(work / "stock" / "ids" / f"{rank:06d}.remove", "<I")}
        for number, version in enumerate(versions):
            found[version] = clusters.get(number, -1 - version)
            kept[version] = number not in removed
    return measure(truth, [found[v] for v in range(len(truth))], [kept[v] for v in range(len(truth))])


def _pairs(path: Path, form: str) -> list[Any]:
    return list(struct.iter_unpack(form, path.read_bytes())) if path.exists() else []


def _our_quality(folder: RunFolder, truth: list[tuple[int, str]]) -> Quality:
    parent: dict[int, int] = {}
    for stage in ("exact", "near"):
        for path in folder.ledgers(stage):
            for line in ledger.read_lines(path)[0]:
                for item in line.commit.items if line.commit else ():
                    if item.state == ledger.REJECTED:
                        parent[_version(item.id)] = _version(item.detail.split(" of ", 1)[1])

    def root(version: int) -> int:
        while version in parent:
            version = parent[version]
        return version

    return measure(truth, [root(v) for v in range(len(truth))], [v not in parent for v in range(len(truth))])


# ----- from zips


def bench_zips(real: Path, work: Path, count: int) -> Rows:
    """Kaggle's zips, outputs and all, to deduplicated rows: one process, CPU time, all modules loaded before."""
    notebooks = real_notebooks(real)
    write_zips(Corpus(notebooks, 40, 20), work / "few")
    _cpu_by_job(work / "few", work / "few-run")
    write_zips(Corpus(notebooks, count, count // 5), work / "full")
    size = sum(info.file_size for path in (work / "full").iterdir() for info in zipfile.ZipFile(path).infolist())
    spent = _cpu_by_job(work / "full", work / "full-run")
    inflating = time.process_time()
    reader = NotebookReader(RunFolder(work / "full-run"))
    assert sum(bool(document.media) for document in reader.run()) == count
    inflating = time.process_time() - inflating
    total = sum(spent.values())
    shares = {name: round(seconds / total, 2) for name, seconds in spent.items()}
    return [
        {
            "what": f"zips to deduplicated, {size / count / 1000:.0f} kB a notebook",
            "how": "pipeline",
            "notebooks/s/core": round(count / total),
            "MB/s/core": round(size / total / 1e6),
            "share of the time": shares,
            "inflating alone": round(count / inflating),
        }
    ]


def _cpu_by_job(inputs: Path, out: Path) -> dict[str, float]:
    """Seconds of this process for each job up to the near duplicates."""
    folder, recipe, options = RunFolder(out), Recipe(tasks=1, workers=1), Options(inputs=str(inputs))
    prepare(folder, options, recipe)
    spent = {}
    for job in jobs(folder, options, recipe, until="near"):
        before = time.process_time()
        quietly(lambda job=job: execute(folder, [job], recipe))  # type: ignore[misc]
        spent[job.name] = time.process_time() - before
    return spent


# ----- many rows


def bench_scale(rows: int) -> Rows:
    """Clustering alone, of made-up band keys: 32 bands, a fifth as many clusters, a tenth of the keys disturbed."""
    code = f"from benchmarks.pipeline import synthetic_clusters; synthetic_clusters({rows})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [json.loads(done.stdout)]


def synthetic_clusters(rows: int, bands: int = 32) -> None:
    """Print what the clustering of so many rows took; in a process of its own, for its memory."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, rows // 5, size=rows, dtype=np.uint32)
    numbers = np.arange(rows, dtype=np.int64)

    def proposed() -> Any:
        for band in range(bands):
            keys = cluster.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(band)
            disturbed = rng.random(rows, dtype=np.float32) < 0.1
            keys[disturbed] = rng.integers(0, 1 << 63, size=int(disturbed.sum()), dtype=np.uint64)
            del disturbed
            yield numbers, keys

    began = time.perf_counter()
    found = link(rows, proposed(), lambda left, right: np.ones(len(left), dtype=bool))
    row = {
        "what": f"clustering of {rows:,} rows",
        "how": "pipeline",
        "wall s": round(time.perf_counter() - began, 1),
        "memory GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "clusters found": int(found.max()) + 1,
        "clusters made": len(np.unique(cluster)),
    }
    print(json.dumps(row))


def quietly(work: Callable[[], object]) -> None:
    """Run with descriptor 2 closed off: datatrove logs there."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        work()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def show(rows: Rows) -> None:
    """A table for each kind of row."""
    console = Console(width=200)
    for what in dict.fromkeys(row["what"] for row in rows):
        group = [row for row in rows if row["what"] == what]
        table = Table(title=what)
        columns = [key for key in group[0] if key != "what"]
        for column in columns:
            table.add_column(column)
        for row in group:
            table.add_row(
                *(
                    f"{row[key]:.1f}" if isinstance(row[key], float) and key == "times" else str(row[key])
                    for key in columns
                )
            )
        console.print(table)


def main() -> None:
    """Run the chosen benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["parse", "render", "dedup", "zips", "scale"], action="append")
    parser.add_argument("--notebooks", type=Path, default=Path("../shared/data/notebooks"))
    parser.add_argument("--count", type=int, default=20_000, help="notebooks in the corpus of dedup")
    parser.add_argument("--zip-count", type=int, default=3_000, help="notebooks, with outputs, in the corpus of zips")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of scale")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    work = Path(tempfile.mkdtemp(prefix="pipeline-bench-"))
    bench: dict[str, Callable[[], Rows]] = {
        "parse": lambda: bench_parse(arguments.notebooks),
        "render": lambda: bench_render(arguments.notebooks),
        "dedup": lambda: bench_dedup(arguments.notebooks, work, arguments.count, arguments.workers),
        "zips": lambda: bench_zips(arguments.notebooks, work, arguments.zip_count),
        "scale": lambda: bench_scale(arguments.rows),
    }
    try:
        rows = [row for name in arguments.only or bench for row in bench[name]()]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if arguments.json:
        print(json.dumps({"machine": platform.platform(), "cores": os.cpu_count(), "rows": rows}, indent=1))
    else:
        show(rows)


if __name__ == "__main__":
    main()
