"""Tables read from files that somebody else wrote: what is wrong is said in declared errors."""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.parsers import CORPUS

from sdslib import tables
from sdslib.io import storage
from sdslib.results import comparison


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = pd.DataFrame({"id": ["a", "b", "c"], "x": [1.0, float("nan"), 3.0]})
    table.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(storage.read_frame(tmp_path / "t.parquet"), table)


def test_columns_are_read_alone_and_in_the_order_asked(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2], "c": [3]}), tmp_path / "t.parquet")
    found = storage.read_parquet(tmp_path / "t.parquet", ["c", "a"])
    assert found.column_names == ["c", "a"]
    with pytest.raises(ValueError, match=r"columns missing: d, e$"):
        storage.read_parquet(tmp_path / "t.parquet", ["a", "e", "d"])


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    table = pa.table([[1.0], [2.0], [3.0]], names=["id", "s_0_0", "s_0_0"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"columns named twice: s_0_0$"):
        storage.read_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"columns named twice: s_0_1$"):
        storage.read_frame(CORPUS / "parquet" / "renamed")


@pytest.fixture
def told(monkeypatch):
    """What was synced and renamed, in order: ("sync", name) and ("rename", old, new)."""
    events, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def renamed(old, new):
        events.append(("rename", Path(old).name, Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return events


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells what a handle is open on")
def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_before_all_goes_on(
    tmp_path, told
):
    (tmp_path / "folder").mkdir()
    storage.write_bytes(tmp_path / "folder" / "f.json", b"{}")
    (_, part), (_, old, new), (_, folder) = told
    assert [event[0] for event in told] == ["sync", "rename", "sync"]
    assert (part, old, new, folder) == (part, part, "f.json", "folder")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells what a handle is open on")
def test_a_folder_is_on_the_disk_file_by_file_before_its_manifest_and_its_name(tmp_path, told):
    with storage.staged_folder(tmp_path / "above" / "final") as stage:
        (stage / "inner").mkdir()
        for name in ("a.bin", "inner/b.bin"):
            (stage / name).write_bytes(b"x")
    manifest = next(n for n, e in enumerate(told) if e[0] == "rename" and e[2] == storage.MANIFEST)
    final = told.index(("rename", stage.name, "final"))
    assert {("sync", "a.bin"), ("sync", "b.bin"), ("sync", "inner")} <= set(told[:manifest])
    assert ("sync", stage.name) in told[manifest:final]
    assert told[final + 1 :] == [("sync", "above")]


def test_staging_survives_a_failure_without_leftovers(tmp_path):
    with pytest.raises(ValueError, match="half"), storage.staged_folder(tmp_path / "x") as stage:
        raise ValueError(f"half, with {(stage / 'a').write_text('a')} letter")
    assert list(tmp_path.iterdir()) == []


def test_whatever_a_reader_trips_over_becomes_a_declared_error():
    with pytest.raises(ValueError, match="KeyError: 'x'"), storage.declared():
        {}["x"]
    with pytest.raises(ValueError, match="MemoryError"), storage.declared():
        raise MemoryError("malloc of size 1099511627776 failed")
    with pytest.raises(FileNotFoundError), storage.declared():
        Path("/nowhere").read_bytes()


@pytest.mark.parametrize("read", [storage.read_parquet, storage.read_frame])
def test_no_memory_is_taken_for_rows_that_are_not_there(read, monkeypatch):
    """The row group of this file claims 310,954,096,255 rows, its footer one."""
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match="contradicts itself about the number of rows"):
        read(CORPUS / "parquet" / "row-groups")


def test_more_cells_than_anybody_scores_are_refused_before_they_are_read(tmp_path, monkeypatch):
    pq.write_table(pa.table({"a": [1, 2], "b": [3, 4]}), tmp_path / "t.parquet")
    monkeypatch.setattr(storage, "MOST_CELLS", 4)
    assert storage.read_parquet(tmp_path / "t.parquet").num_rows == 2
    monkeypatch.setattr(storage, "MOST_CELLS", 3)
    with pytest.raises(ValueError, match="claims more than 3 cells"):
        storage.read_parquet(tmp_path / "t.parquet")


def test_text_that_is_no_utf_8_is_refused(tmp_path):
    broken = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")
    )
    pq.write_table(pa.table({"id": broken}), tmp_path / "t.parquet")
    for read in (storage.read_parquet, storage.read_frame):
        with pytest.raises(ValueError, match=r"(?i)utf-?8"):
            read(tmp_path / "t.parquet")


def test_pandas_metadata_that_is_no_json_is_a_declared_error(tmp_path):
    table = pa.table({"id": ["a"]}).replace_schema_metadata({"pandas": "{"})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="Expecting property name"):
        storage.read_frame(tmp_path / "t.parquet")


def test_scores_whose_ids_are_lists_are_refused(tmp_path):
    table = pa.table({"id": [["a"], ["b"]], "s_0_0": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(tables.TableError, match="ids must be text or numbers"):
        comparison.read_scores(tmp_path / "t.parquet")
