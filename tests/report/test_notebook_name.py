"""Names of notebooks' files: of no two episodes the same."""

from jupyter_env.report.notebook import notebook_name


def test_a_plain_id_is_its_own_name():
    assert notebook_name("penguins.ipynb#q0.teacher.1") == "penguins.ipynb#q0.teacher.1.ipynb"


def test_no_two_ids_share_a_name():
    deep = "a-repository/" + "a-folder/" * 30
    ids = [
        "a/b",
        "a_b",
        "a b",
        "é",
        "ü",
        *(f"{deep}n.ipynb#q0.{n}" for n in range(3)),
        *("x" * 150 + end for end in "yz"),
    ]
    names = {notebook_name(each) for each in ids}
    assert len(names) == len(ids)
    assert all("/" not in name and len(name.encode()) < 200 for name in names)
