"""Which files a bridge reads, and that no file's name ever depends on another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchbridge_plugin.config import BridgeConfig, from_environment, from_mapping
from benchbridge_plugin.errors import ConfigError, SourceInvalid, SourceMissing
from benchbridge_plugin.files import BenchmarkFile, Files, Place


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("results")


def look(*entries: str, known: dict[str, Place] | None = None, ledger: str | None = None) -> list[BenchmarkFile]:
    return Files(entries, ledger=ledger).look(known or {})


def names(*entries: str) -> dict[str, str]:
    """name -> path, of those that are read"""
    return {file.name: file.path for file in look(*entries) if file.error is None}


# -- which ----------------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_its_benchmark_files_and_a_pattern_is_what_it_matches() -> None:
    """A folder has those directly in it, by their endings; `**` goes down."""
    put("runs/a.duckdb", "runs/b.DB", "runs/c.parquet", "runs/notes.txt", "runs/.half.parquet", "runs/deep/d.duckdb")
    assert set(names("runs")) == set(names("runs/")) == {"a", "b", "c"}
    assert set(names("runs/*.duckdb")) == {"a"}
    assert set(names("runs/[bc].*")) == {"b", "c"}
    assert set(names("runs/**/*.duckdb")) == {"a", "deep/d"}


def test_a_ledger_and_a_write_ahead_log_are_never_taken_for_results() -> None:
    """Nor what SQLite, an upgrade and a key put beside a ledger, nor a ledger of whatever name that this bridge has."""
    put(*(f"runs/a.duckdb{end}" for end in ("", ".wal", ".bridge.sqlite", ".bridge.sqlite-wal", ".bridge.sqlite.v1.backup", ".bridge.key")))
    put("runs/own.db", "runs/own.db-wal")
    assert [file.path for file in look("runs/*", ledger="runs/own.db")] == ["runs/a.duckdb"]
    assert [file.path for file in look("runs", ledger="runs/own.db")] == ["runs/a.duckdb"]


def test_a_path_that_is_there_wins_over_its_reading_as_a_pattern() -> None:
    """`run[1].duckdb` is that file; without it, `run1.duckdb`. A ledger beside it says that it was a file before, and is one that is missing now."""
    put("run1.duckdb")
    assert names("run[1].duckdb") == {"run1": "run1.duckdb"}
    put("run[1].duckdb")
    assert names("run[1].duckdb") == {"run[1]": "run[1].duckdb"}
    Path("run[1].duckdb").rename("run[1].duckdb.bridge.sqlite")
    assert names("run[1].duckdb") == {"run[1]": "run[1].duckdb"}


def test_a_file_is_read_once_whatever_leads_to_it() -> None:
    """By two entries, or by a link: the one that is named, else the one that is no link."""
    put("runs/2026.duckdb")
    Path("runs/1-latest.duckdb").symlink_to("2026.duckdb")
    assert names("runs") == {"2026": "runs/2026.duckdb"}
    assert names("runs", "runs/*.duckdb", "runs/2026.duckdb") == {"2026": "runs/2026.duckdb"}
    assert names("runs", "runs/1-latest.duckdb") == {"1-latest": "runs/1-latest.duckdb"}


def test_a_directory_named_like_a_file_is_no_folder_of_files() -> None:
    """A path that ends like a file is one, so that nothing changes its meaning when a file is replaced by a directory."""
    put("results.parquet/part-0.parquet")
    assert names("results.parquet", "x.duckdb") == {"results": "results.parquet", "x": "x.duckdb"}
    assert names("results.parquet/*") == {"part-0": "results.parquet/part-0.parquet"}


# -- names ----------------------------------------------------------------------------------------------------------------------------------


def test_a_file_keeps_its_name_when_others_come_and_go() -> None:
    """Named alone, in a list, by its folder or by a pattern in it, it is called by its stem."""
    put("runs/a.duckdb")
    assert Files(["runs/a.duckdb"]).name == "a"
    for entries in (
        ["runs/a.duckdb", "b.duckdb"],
        ["b.duckdb", "runs/a.duckdb"],
        ["runs"],
        ["runs/*.duckdb"],
        ["runs/*"],
        ["r*ns/a.duckdb"],
    ):
        (file,) = (file for file in look(*entries) if file.path == "runs/a.duckdb")
        assert file.name == ("runs/a" if entries == ["r*ns/a.duckdb"] else "a")
        put("runs/b.duckdb", "runs/a.db", "other/a.duckdb")
        assert file in look(*entries, known={file.name: file.place})
        for path in ("runs/b.duckdb", "runs/a.db", "other/a.duckdb"):
            Path(path).unlink()


def test_below_a_pattern_with_folders_the_folder_is_part_of_the_name() -> None:
    """Two files of one stem are told apart, and each would be called so if it were alone."""
    put("runs/x/h100.duckdb", "runs/y/h100.duckdb")
    assert names("runs/*/h100.duckdb") == {"x/h100": "runs/x/h100.duckdb", "y/h100": "runs/y/h100.duckdb"}
    Path("runs/x/h100.duckdb").unlink()
    assert names("runs/*/h100.duckdb") == {"y/h100": "runs/y/h100.duckdb"}


def test_of_two_files_of_one_name_the_one_that_had_it_keeps_it() -> None:
    """The other is told what to do. It does not matter which of them sorts first; without a past, the first one has it."""
    put("new/h100.duckdb", "old/h100.duckdb")
    entries = ("new/*.duckdb", "old/*.duckdb")
    first, second = look(*entries)
    assert (first.path, first.error, second.path) == ("new/h100.duckdb", None, "old/h100.duckdb")
    known = {"h100": Place("old/h100.duckdb", "old/*.duckdb")}
    kept, refused = look(*entries, known=known)
    assert (kept.path, kept.error) == ("old/h100.duckdb", None)
    assert isinstance(refused.error, ConfigError)
    assert "new/h100.duckdb is not read: old/h100.duckdb has the name 'h100' already." in str(refused.error)
    assert "pattern" in refused.error.guidance
    Path("old/h100.duckdb").unlink()
    (moved,) = look(*entries, known=known)
    assert (moved.path, moved.error) == ("new/h100.duckdb", None)


def test_a_file_that_was_known_and_is_gone_stays_on_the_list() -> None:
    """As long as its entry is configured. One that is named is looked for anyway."""
    put("runs/a.duckdb")
    known = {name: Place(f"runs/{name}.duckdb", "runs/*.duckdb") for name in ("a", "b", "c")} | {"z": Place("z.duckdb", "elsewhere/*")}
    Path("runs/c.duckdb").mkdir()
    a, b, c = look("runs/*.duckdb", known=known)
    assert (a.error, type(b.error), type(c.error)) == (None, SourceMissing, SourceInvalid)
    assert "There is no benchmark file at runs/b.duckdb any more." in str(b.error)
    assert "runs/c.duckdb is a directory now" in str(c.error)


def test_a_name_that_no_database_takes_is_shown_in_another_spelling() -> None:
    """A file name of bytes that are no text must not stop the others."""
    Path("runs").mkdir()
    put("runs/a\udcff.duckdb", "runs/b.duckdb")
    assert set(names("runs")) == {"a\ufffd", "b"}


# -- the configuration ----------------------------------------------------------------------------------------------------------------------


def test_a_config_has_a_text_or_a_list_and_shows_what_it_was_given() -> None:
    """In the environment a JSON list is a list; commas and brackets are legal in a path."""
    assert from_mapping({"benchmark_db_path": ["a.duckdb", "runs/*"]}, where="x").redacted()["benchmark_db_path"] == ["a.duckdb", "runs/*"]
    assert from_mapping({"benchmark_db_path": Path("a.duckdb")}, where="x").redacted()["benchmark_db_path"] == "a.duckdb"
    for text, meant in (
        ('["a.duckdb", "b,c"]', ["a.duckdb", "b,c"]),
        ("a,b.duckdb", "a,b.duckdb"),
        ("[ab]*.duckdb", "[ab]*.duckdb"),
        ("[1]", "[1]"),
    ):
        assert from_environment({"BENCHBRIDGE_BENCHMARK_DB_PATH": text}) == {"benchmark_db_path": meant}


def test_one_file_in_a_list_is_that_file() -> None:
    """Its name and its ledger are what they would be without the brackets."""
    alone, listed = (from_mapping({"benchmark_db_path": value}, where="x") for value in ("runs/a.duckdb", ["runs/a.duckdb"]))
    assert alone.resolved_source_name == listed.resolved_source_name == "a"
    assert alone.resolved_ledger_url == listed.resolved_ledger_url == "sqlite:///runs/a.duckdb.bridge.sqlite"
    assert not listed.files.several
    both = from_mapping({"benchmark_db_path": ["runs/a.duckdb", "runs/b.duckdb"]}, where="x")
    assert (both.files.several, both.resolved_ledger_url) == (True, alone.resolved_ledger_url)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("runs", "runs.bridge.sqlite"),
        ("runs/", "runs.bridge.sqlite"),
        ("runs/*.duckdb", "runs.bridge.sqlite"),
        ("runs/**/*.duckdb", "runs.bridge.sqlite"),
        ("*.duckdb", "benchmarks.bridge.sqlite"),
        ("../*.duckdb", "../benchmarks.bridge.sqlite"),
        (".", "benchmarks.bridge.sqlite"),
    ],
)
def test_the_ledger_of_several_files_is_beside_their_folder(entry: str, place: str) -> None:
    """The same for the folder and for a pattern in it."""
    Path("runs").mkdir()
    assert BridgeConfig(benchmark_db_path=entry).resolved_ledger_url == f"sqlite:///{place}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"benchmark_db_path": []}, "name at least one file"),
        ({"benchmark_db_path": ["a.duckdb", " "]}, "text that is not blank"),
        ({"benchmark_db_path": ["a.duckdb", 5]}, "text or a list of texts"),
        ({"benchmark_db_path": {"a": 1}}, "text or a list of texts"),
        (
            {"benchmark_db_path": ["x/a.duckdb", "y/a.parquet"]},
            "x/a.duckdb and y/a.parquet would both be called 'a'; rename one, or use a common pattern",
        ),
        ({"benchmark_db_path": ["a.duckdb", "b.duckdb"], "source_name": "lab"}, "as long as source_name is set"),
        ({"benchmark_db_path": "*.duckdb", "source_name": "lab"}, "as long as source_name is set"),
    ],
)
def test_what_makes_no_sense_is_said_with_what_to_do(settings: dict[str, object], says: str) -> None:
    """What, where, and how to do better."""
    with pytest.raises(ConfigError) as caught:
        from_mapping(settings, where="bridge.json")
    assert says in caught.value.message
    assert "benchmark_db_path in bridge.json" in caught.value.message
    assert caught.value.guidance
