"""The ledger: what counts after a crash, and what it refuses."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import ledger
from pipeline.ledger import DONE, FAILED, REJECTED, Header, LedgerError, Outcome, UnitLedger
from pipeline.parts import read_rows
from pipeline.run_folder import RunFolder, Unit
from pipeline.stage import Item, Rejected, Row, Stage

HEADER = Header(stage="s", unit="u", version=1, config="null", basis="b")


def opened(root: Path, header: Header = HEADER) -> UnitLedger:
    return UnitLedger(root / "ledger" / "u.jsonl", root / "parts", header)


def commit(book: UnitLedger, *outcomes: Outcome) -> None:
    done = sum(outcome.state == DONE for outcome in outcomes)
    part = book.part_name() if done else None
    if part:
        (book.parts / part).write_bytes(b"rows")
    book.commit(list(outcomes), part, done, "")


def test_an_account_that_adds_up(tmp_path: Path) -> None:
    with opened(tmp_path) as book:
        commit(book, Outcome("a", "1", DONE), Outcome("b", "2", REJECTED, "empty"))
        commit(book, Outcome("c", "3", FAILED, "OSError: no"))
        book.end(3)
    total = ledger.tally(book.path)
    assert (total.done, total.rejected, total.failed, total.ended) == (1, 1, 1, 1)
    assert total.reasons == {"empty": 1, "failed: OSError": 1}
    assert ledger.digest(book.path)
    assert len(ledger.committed_parts(book.path)) == 1


def test_an_account_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as book:
        commit(book, Outcome("a", "1", DONE))
        with pytest.raises(LedgerError, match="2 items came in, but 1 have an outcome"):
            book.end(2)
    assert ledger.digest(book.path) is None


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_half_a_line_is_as_if_it_was_never_written(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path) as book:
        commit(book, Outcome("a", "1", DONE))
        whole = book.path.read_bytes()
        commit(book, Outcome("b", "2", DONE))
    content = book.path.read_bytes()
    book.path.write_bytes(content[:-cut])
    assert ledger.tally(book.path).done == 1
    assert len(list((tmp_path / "parts").iterdir())) == 2
    with opened(tmp_path) as book:
        assert book.path.read_bytes() == whole
        assert set(book.outcomes) == {("a", "1")}
        assert len(list((tmp_path / "parts").iterdir())) == 1, "the part without a commit is gone"
        commit(book, Outcome("b", "2", DONE))
    assert book.path.read_bytes() == content, "the same work gives the same bytes"


def test_a_part_without_commit_and_a_piece_of_one_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as book:
        name = book.part_name()
    (tmp_path / "parts" / name).write_bytes(b"x")
    (tmp_path / "parts" / f"{name}.tmp").write_bytes(b"x")
    (tmp_path / "parts" / "u2.00000000.00000.parquet").write_bytes(b"another unit's")
    opened(tmp_path).close()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["u2.00000000.00000.parquet"]


def test_damage_in_the_middle_is_no_crash(tmp_path: Path) -> None:
    with opened(tmp_path) as book:
        commit(book, Outcome("a", "1", DONE))
        commit(book, Outcome("b", "2", DONE))
    lines = book.path.read_bytes().split(b"\n")
    book.path.write_bytes(b"\n".join([lines[0], lines[1][:-4], *lines[2:]]))
    with pytest.raises(LedgerError, match="line 2"):
        opened(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(LedgerError, match="another process"):
        opened(tmp_path)
    opened(tmp_path).close()


class Table(Stage):
    """Doubles numbers; what `broken` holds fails, negative ones are rejected."""

    name = "table"
    version = 1
    schema = pa.schema([("id", pa.string()), ("key", pa.string()), ("twice", pa.int64())])
    batch_items = 2
    takes_over = True

    def __init__(self, folder: RunFolder, numbers: list[int]) -> None:
        super().__init__(folder)
        self.numbers, self.broken, self.decided = numbers, set[int](), list[int]()

    def units(self) -> list[Unit]:
        return [Unit(name="all", source="", kind="list")]

    def basis(self, unit: Unit) -> str:
        return str(self.numbers)

    def items(self, unit: Unit) -> Any:
        return (Item(f"n{n}", str(n), n) for n in self.numbers)

    def decide(self, item: Item) -> Row | Rejected:
        self.decided.append(item.payload)
        if item.payload in self.broken:
            raise RuntimeError("broken")
        if item.payload < 0:
            return Rejected("negative")
        return {"id": item.id, "key": item.key, "twice": 2 * item.payload}


def rows(folder: RunFolder) -> list[int]:
    return [row["twice"] for row in read_rows(folder.all_parts("table"))]


def test_a_failure_is_written_down_and_tried_again_three_times(tmp_path: Path) -> None:
    folder, stage = RunFolder(tmp_path), Table(RunFolder(tmp_path), [1, 2, -3, 4, 5])
    stage.broken = {2, 4}
    stage.run()
    assert rows(folder) == [2, 10]
    stage.decided, stage.broken = [], {4}
    stage.run()
    assert (stage.decided, sorted(rows(folder))) == ([2, 4], [2, 4, 10])
    stage.run()
    stage.decided = []
    stage.run()
    assert stage.decided == [], "three times is enough"
    total = folder.tally("table")
    assert (total.done, total.rejected, total.failed) == (3, 1, 1)


def test_a_changed_input_takes_over_what_still_holds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    Table(folder, [1, 2, -3]).run()
    stage = Table(folder, [2, -3, 7])
    stage.run()
    assert stage.decided == [7]
    assert rows(folder) == [4, 14]
    assert folder.tally("table").items == 3
    assert len(list(folder.parts_folder("table").iterdir())) == len(list(folder.all_parts("table"))), (
        "old parts are gone"
    )


def test_another_version_takes_nothing_over(tmp_path: Path) -> None:
    Table(RunFolder(tmp_path), [1, 2]).run()
    stage = Table(RunFolder(tmp_path), [1, 2])
    stage.version = 2
    stage.run()
    assert stage.decided == [1, 2]


def test_a_machine_error_is_no_items_failure(tmp_path: Path) -> None:
    stage = Table(RunFolder(tmp_path), [1, 2, 3])

    def full(item: Item) -> Row | Rejected:
        raise OSError(28, "No space left on device")

    stage.decide = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space"):
        stage.run()
    assert RunFolder(tmp_path).tally("table").items == 0


def test_two_items_that_are_one_are_found_out(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="Two items have the same id and content"):
        Table(RunFolder(tmp_path), [1, 1]).run()
