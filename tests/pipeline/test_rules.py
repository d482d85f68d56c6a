"""The rules, one by one and on 60 notebooks labelled by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from runs import notebook, program, shared

from pipeline.language import other_language
from pipeline.notebook import NotebookError, parse
from pipeline.run_folder import RunFolder
from pipeline.stage import Item, Rejected
from pipeline.stages.read import _columns
from pipeline.stages.rules import Rules, RuleSettings

LABELS = Path(__file__).parent / "files" / "labels.jsonl"


def verdict(raw: bytes, settings: RuleSettings = RuleSettings(), **about: Any) -> Rejected | dict[str, Any]:  # noqa: B008
    row = {**_columns(parse(raw)), "kernel_version": None, **about}
    found: Rejected | dict[str, Any] = Rules(RunFolder(Path("unused")), settings).decide(Item("", "", row))
    return found


def reason(raw: bytes, **more: Any) -> str:
    found = verdict(raw, **more)
    return found.reason if isinstance(found, Rejected) else ""


READS = program(1)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (notebook(*READS), ""),
        (notebook(*READS, language="R"), "not_python"),
        (notebook(*READS, outputs=False), "no_outputs"),
        (notebook(markdown="# Only prose"), "only_markdown"),
        (notebook(), "no_code"),
        (notebook("pd.read_csv('a.csv')"), "too_short"),
        (notebook(*READS, "x = 1\n" * 100_000), "too_long"),
        (notebook(*program(1)[1:]), "reads_no_data"),
        (notebook("t = pd.read_csv('https://host/a.csv')", *program(1)[1:]), "data_only_at_urls"),
        (notebook("t = load_iris()", *program(1)[1:]), "only_packaged_data"),
        (notebook(*READS, "from peft import LoraConfig"), "trains_language_models"),
        (notebook(*READS, "model = transformers.AutoModelForCausalLM.from_pretrained(x)"), "trains_language_models"),
        (notebook("print 'a'", "print 'b'", "print 'c'", "pd.read_csv('a.csv')" + "\n#" * 100), "python2"),
        (notebook("x y z", "a b c", "d e (", "pd.read_csv('a.csv')" + "\n#" * 100), "not_python"),
        (notebook(*READS, markdown="Este cuaderno analiza los datos de la encuesta y muestra que el ingreso de las familias es más alto en el norte del país, pero no en las ciudades que se han estudiado con esta muestra de la población."), "not_english"),  # noqa: E501
        (notebook(*READS, markdown="このノートブックでは、タイタニック号の乗客データを分析し、生存率と年齢や性別の関係を調べます。"), "not_english"),  # noqa: E501
    ],
)  # fmt: skip
def test_rules(raw: bytes, expected: str) -> None:
    assert reason(raw) == expected


def test_a_list_of_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("17\n23\n")
    settings = RuleSettings(ids_file=str(tmp_path / "ids.txt"))
    assert reason(notebook(*READS), settings=settings, kernel_version=23) == ""
    assert reason(notebook(*READS), settings=settings, kernel_version=24) == "not_in_list"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The quick look at this data shows that the price of a house is a matter of its place, and not of its size or age, as we will see in the plots.", None),  # noqa: E501
        ("Short.", None),
        ("Wir laden die Daten und sehen, dass der Preis der Häuser nicht von der Größe abhängt, sondern von der Lage, wie auch die Karten zeigen werden, die wir für das Land erstellt haben.", "german"),  # noqa: E501
        ("В этом ноутбуке мы анализируем данные о пассажирах Титаника и строим модель выживания.", "a script that is not Latin"),  # noqa: E501
        ("α β γ" * 3, None),
    ],
)  # fmt: skip
def test_language(text: str, found: str | None) -> None:
    assert other_language(text) == found


def test_sixty_notebooks_labelled_by_hand() -> None:
    """The labels say whether a notebook is worth asking about: Python 3, English, shows results, reads data, analyses."""  # noqa: E501
    folder = shared("notebooks")
    labels = [json.loads(line) for line in LABELS.read_text().splitlines()]
    assert len(labels) == 60
    wrong, kept = [], 0
    for label in labels:
        try:
            keeps = not isinstance(verdict((folder / label["file"]).read_bytes()), Rejected)
        except NotebookError:
            keeps = False
        kept += keeps
        if keeps != label["keep"]:
            wrong.append((label["file"], keeps))
    should = sum(label["keep"] for label in labels)
    right = kept - sum(keeps for _, keeps in wrong)
    precision, recall = right / kept, right / should
    assert (precision, recall) >= (0.95, 0.95), wrong
    print(f"precision {precision:.3f}, recall {recall:.3f} ({should} of 60 should be kept)")
