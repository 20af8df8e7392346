"""What is kept: a changed bit, a world that cannot be drawn, a name that is another file's."""

from saving import saved

from faults.catalog import fault, refused
from sdslib.io.run import RunError
from sdslib.io.sources import DataError
from sdslib.miniworld import files
from sdslib.results import sweep


@fault("bit that changed in a file that a run keeps")
def test_a_changed_bit(tmp_path):
    kept = saved(tmp_path)
    path = kept.path / "params.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    return refused(RunError, lambda: kept.params)


@fault("mini-world that cannot be drawn")
def test_an_undrawn_world(tmp_path):
    (tmp_path / "file").write_text("")
    return refused(DataError, files.ensure_world, tmp_path / "file" / "world")


@fault("summary that would replace another file")
def test_a_summary_elsewhere(capsys):
    words = ["notebooks/02_finetune.ipynb", "--seeds", "1", "--summary", "notes.md"]
    assert sweep.main(words) == 2
    return capsys.readouterr().err
