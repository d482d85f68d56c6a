"""Meta Kaggle's tables, as they are and as they are not."""

from pathlib import Path

import pytest

from pipeline.metakaggle import KernelTable, MetadataError, prepare

DUMP = {
    # 101 was run with version 5 of ann/wines (DatasetVersions.Id 900) and in a competition, 102 with team/glass.
    # DatasourceVersionId is another numbering: 900 there is a version of bob/trap.
    "KernelVersionDatasetSources": "Id,KernelVersionId,SourceDatasetVersionId\n1,101,900\n2,102,901\n",
    "DatasetVersions": (
        "Id,DatasetId,DatasourceVersionId,CreatorUserId,LicenseName,CreationDate,VersionNumber,Title,Slug,TotalUncompressedBytes\n"
        '900,50,777,1,CC0-1.0,01/02/2024,5.0,"Wines, red\nand white",wines,100.0\n901,51,778,1,MIT,01/02/2024,2,Glass,glass,\n'  # noqa: E501
        "902,52,900,1,MIT,01/02/2024,1,Trap,trap,1\n"
    ),
    "Datasets": "Id,CreatorUserId,OwnerUserId,OwnerOrganizationId\n50,1,1.0,\n51,1,,9.0\n52,1,2,\n",
    "Users": "Id,UserName,DisplayName\n1,ann,Ann\n2,bob,Bob\n",
    "Organizations": "Id,Name,Slug\n9,Team,team\n",
    "KernelVersionCompetitionSources": "Id,KernelVersionId,SourceCompetitionId\n1,101,3136\n",
    "Competitions": "Id,Slug,Title\n3136,titanic,Titanic\n",
    "KernelVersions": (
        "Id,ScriptId,ParentScriptVersionId,ScriptLanguageId,Title,TotalVotes\n101,11,,8,Red wines,3\n102,12,,1,In R,\n103,13,,8,Fork,0\n104,14,,8,Other,0\n"  # noqa: E501
    ),
    "Kernels": "Id,ForkParentKernelVersionId,TotalVotes\n11,,12\n12,,0\n13,101.0,1\n14,,0\n",
    "KernelLanguages": "Id,Name,DisplayName,IsNotebook\n1,R,R,False\n8,IPython Notebook,Python,True\n",
}


def write_dump(folder: Path, **changes: str | None) -> Path:
    folder.mkdir()
    for name, content in {**DUMP, **changes}.items():
        if content is not None:
            (folder / f"{name}.csv").write_text(content, encoding="utf-8")
    return folder


def table(tmp_path: Path, **changes: str | None) -> KernelTable:
    prepare(write_dump(tmp_path / "meta", **changes), tmp_path / "out")
    return KernelTable(tmp_path / "out")


def test_versions_are_joined_on_their_own_id(tmp_path: Path) -> None:
    found = table(tmp_path)
    sources = [(row["kind"], row["ref"], row["version"], row["licence"], row["bytes"]) for row in found.sources(101)]
    assert sources == [("competition", "titanic", None, None, None), ("dataset", "ann/wines", 5, "CC0-1.0", 100)]
    assert [row["ref"] for row in found.sources(102)] == ["team/glass"], "an organization's slug, not a user's"
    assert found.sources(103) == []


def test_kernels(tmp_path: Path) -> None:
    found = table(tmp_path)
    assert found.find(101) == {"votes": 12, "forked_from": None, "title": "Red wines", "language": "python"}
    assert found.find(102) == {"votes": 0, "forked_from": None, "title": "In R", "language": "r"}
    forked = found.find(103)
    assert forked and forked["forked_from"] == 101
    assert found.find(999) is None


def test_columns_are_found_by_name_and_a_missing_one_is_named(tmp_path: Path) -> None:
    moved = "Slug,Extra,Id\ntitanic,1,3136\n"
    assert table(tmp_path, Competitions=moved).sources(101)[0]["ref"] == "titanic"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Users": "Id,Username\n1,ann\n"}, r"Users.csv has no column 'UserName' \(did it become 'Username'\?\)"),
        ({"Kernels": "Id,TotalVotes\n11,1\n"}, "Kernels.csv has no column 'ForkParentKernelVersionId'"),
        ({"Datasets": None}, "Datasets.csv does not exist"),
    ],
)
def test_missing(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        table(tmp_path, **changes)


@pytest.mark.parametrize("name", ["KernelVersionDatasetSources", "KernelVersionCompetitionSources", "Organizations"])
def test_an_empty_file_is_a_table_without_rows(tmp_path: Path, name: str) -> None:
    found = table(tmp_path, **{name: ""})
    assert found.find(101)
    expected = {"KernelVersionDatasetSources": ["titanic"], "KernelVersionCompetitionSources": ["ann/wines"]}
    assert [row["ref"] for row in found.sources(101)] == expected.get(name, ["titanic", "ann/wines"])


def test_prepared_once(tmp_path: Path) -> None:
    first = table(tmp_path).digest
    before = (tmp_path / "out" / "kernels.parquet").stat().st_mtime_ns
    prepare(tmp_path / "meta", tmp_path / "out")
    assert (tmp_path / "out" / "kernels.parquet").stat().st_mtime_ns == before
    (tmp_path / "meta" / "Users.csv").write_text("Id,UserName\n1,anna\n")
    prepare(tmp_path / "meta", tmp_path / "out")
    assert KernelTable(tmp_path / "out").digest != first
