"""The benchmarks themselves: what a row says, how a ratio is timed, and the rows for a GPU."""

import json
import math
import sys

import diffusers
import numpy as np
import pytest
import tiny
import torch

from sdslib.checks.guard import override
from sdslib.checks.models import SHAPES
from sdslib.config import FinetuneConfig, preset
from sdslib.io.paths import project_root
from sdslib.lab.dry_run import Trial, stand_ins
from sdslib.miniworld import files
from sdslib.pairs import load_pairs
from sdslib.train import TrainingError

sys.path.append(str(project_root()))  # benchmarks/ is no part of the package

from benchmarks import gpu, harness, memory
from benchmarks.__main__ import ROWS
from benchmarks.__main__ import main as bench
from benchmarks.harness import Paired, Row, paired, table

# --- rows and ratios -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "must", "least", "reached"),
    [
        (2.0, 2.0, False, True),
        (1.9, 2.0, False, False),
        (1.05, 1.05, True, True),
        (1.06, 1.05, True, False),
        (math.nan, 1.0, False, False),
        (math.nan, 1.0, True, False),
        (1.0, None, False, True),
    ],
)
def test_a_row_is_reached_from_its_own_side(measured, must, least, reached):
    assert Row("X", "a row", measured, must, least=least).reached is reached


def test_the_table_says_what_falls_short_and_what_has_only_an_aim():
    rows = [
        Row("A", "ratio that is large enough", 3.14159, 2, 4, note="5 rounds"),
        Row("B", "ratio that is too large", 1.2, 1.1, 1.03, least=True),
        Row("C", "rate below its aim", 100, None, 390),
        Row("D", "hours within their aim", 0.5, None, 1, least=True),
        Row("E", "seconds", 0.123, None, least=True),
    ]
    head, *lines = table(rows).splitlines()
    assert head.split() == ["id", "row", "measured", "must", "aim", "verdict", "note"]
    assert lines[0].endswith("5 rounds")
    assert "3.14      >= 2    >= 4     reached" in lines[0]
    verdicts = ["reached", "falls short", "falls short", "reached", "measured"]
    start = head.index("verdict")
    assert [line[start : start + 11].strip() for line in lines] == verdicts
    assert "<= 1.1 " in lines[1]
    assert [row.reached for row in rows] == [True, False, True, True, True]


def test_two_pieces_of_work_run_in_turn_and_the_first_round_does_not_count():
    ran, now = [], [0.0]

    def job(name, takes):
        def work():
            ran.append(name)
            now[0] += takes * (100 if len(ran) <= 2 else 1)

        return work

    found = paired(job("a", 1.0), job("b", 3.0), 4, clock=lambda: now[0])
    assert "".join(ran) == "baabbaabba"
    assert (found.first, found.second) == ([1.0] * 4, [3.0] * 4)
    assert found.ratio == 3.0


def test_the_ratio_is_the_median_of_the_rounds_not_that_of_the_sums():
    found = Paired([1.0, 1.0, 10.0], [2.0, 3.0, 10.0])
    assert found.ratio == 2.0
    assert found.spread == "1 to 3 in 3 rounds"


def test_the_clock_of_paired_is_the_cpu_time_of_this_process():
    found = paired(lambda: harness.time.sleep(0.05), lambda: sum(range(200_000)), 1)
    assert found.first[0] < 0.03


def test_an_unknown_row_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "memroy"])
    with pytest.raises(SystemExit) as end:
        bench()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "unknown row 'memroy'" in said
    assert all(name in said for name in ROWS)


@pytest.mark.parametrize(("figure", "status"), [(2.0, 0), (0.5, 1)])
def test_a_row_that_falls_short_fails_the_bench(monkeypatch, capsys, figure, status):
    monkeypatch.setitem(ROWS, "import", lambda: [Row("X", "a row", figure, 1.0)])
    monkeypatch.setattr(files, "ensure_world", lambda: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "import"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert bench() == status
    assert ("falls short" in capsys.readouterr().out) is bool(status)


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    files.ensure_world()
    return load_pairs("mini")


def test_the_sets_of_the_memory_row_are_the_mini_world_as_often_as_it_takes(
    tmp_path, world, monkeypatch
):
    monkeypatch.setattr(memory, "load_pairs", lambda source: world.take(range(100)))
    monkeypatch.setattr(memory, "SHARD", 90)
    files = load_pairs(memory.coco(tmp_path / "coco", 210))
    streamed = load_pairs(memory.shards(tmp_path / "shards", 210))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 3
    assert len(set(files.ids)) == len(set(streamed.ids)) == len(files) == len(streamed) == 210
    for i in (0, 1, 89, 90, 99, 100, 209):
        assert files.captions(i) == streamed.captions(i) == world.captions(i % 100)
        assert np.array_equal(files.image(i), world.image(i % 100))
        assert np.array_equal(streamed.image(i), files.image(i))


@pytest.mark.slow
def test_the_memory_row_is_the_largest_over_the_smallest_peak_of_processes_that_trained(world):
    (row,) = memory.training(sizes=(64,), streamed=64, steps=1)
    assert (row.id, row.must, row.aim, row.least) == ("G12", 1.05, 1.02, True)
    assert 1 <= row.measured < 1.05
    assert row.note.startswith("64 pairs: ")
    assert "64 pairs in shards: " in row.note


@pytest.mark.slow
def test_a_training_that_fails_is_no_figure(tmp_path):
    with pytest.raises(RuntimeError, match="nowhere"):
        memory.peak(str(tmp_path / "nowhere"), 1)


# --- full size, on a GPU -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return override(
        preset("paper"),
        clip_model=f"local-dir:{tiny.save_student(root / 'student')}",
        clip_pretrained=None,
        teacher=str(tiny.save_teacher(root / "teacher")),
        device="cpu",
        precision="fp32",
        batch_size=4,
    )


@pytest.fixture(scope="module")
def models(config):
    return stand_ins(config, torch.device("cpu"))


def test_the_rows_for_a_gpu_are_those_of_any_device(config):
    rows = gpu.measure(config, rounds=1)
    assert [row.id for row in rows] == ["F1", "F2", "F3", "F4", "F5", "F6", "F7", "G5", "G6"]
    found = {row.id: row for row in rows}
    assert all(row.measured > 0 for row in rows if row.id != "F7")
    assert all(row.must is None for row in rows if row.id.startswith("F"))
    assert (found["F6"].aim, found["F5"].aim, found["F5"].least) == (390, 1, True)
    assert (found["G5"].must, found["G6"].must) == (1.10, 2.6)
    steps = 5 * (118_287 // 4)
    assert found["F5"].measured == pytest.approx(found["F1"].measured * steps / 3600)
    assert math.isnan(found["F7"].measured)  # of a CPU no roofline is known
    assert "no roofline is known for cpu" in found["F7"].note
    assert "measured" in table([found["F7"]])


@pytest.mark.slow
def test_the_rows_are_those_of_a_later_family_too(config, tmp_path):
    found = gpu.measure(override(config, teacher=str(tiny.save_xl(tmp_path / "xl"))), rounds=1)
    assert len(found) == 9
    assert all(row.measured > 0 for row in found if row.id != "F7")


def test_a_batch_that_memory_refuses_is_halved():
    def rows(batch):
        if batch > 2:
            raise torch.OutOfMemoryError
        return [batch]

    assert gpu.fitting(rows, 8) == [2]


def test_both_teachers_are_measured_and_one_that_falls_short_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "override", lambda config, **given: given["teacher"])
    monkeypatch.setattr(gpu, "measure", lambda name: [Row("X", name, len(name), 44)])
    assert (gpu.main([]), gpu.main(["--teacher", "x" * 44])) == (1, 0)
    said = capsys.readouterr().out
    assert all(said.count(name) == 2 for name in gpu.TEACHERS)


def test_the_papers_hours_are_its_steps_times_their_seconds():
    assert gpu.steps(preset("paper")) == 18_480
    assert gpu.hours(0.25, preset("paper")) == pytest.approx(1.28333, abs=1e-5)
    assert gpu.hours(3600 / 18_480, preset("paper")) == pytest.approx(1.0)


def test_a_way_that_memory_refuses_leaves_the_others(config, models, monkeypatch):
    def attempt(own, models, size, steps):
        if not own.checkpointing:
            raise TrainingError("step 1: out of memory (no); nothing of the step is kept")
        assert models.teacher.unet.is_gradient_checkpointing
        return Trial(size, 0.5, 2_000_000_000, 4.0)

    monkeypatch.setattr(gpu.dry_run, "attempt", attempt)
    rows = {row.id: row for row in gpu.training_rows(config, models, 1)}
    assert not models.teacher.unet.is_gradient_checkpointing
    assert (rows["F1"].measured, rows["F4"].measured) == (0.5, 2.0)
    assert rows["F1"].note == (
        "activations kept: out of memory; activations computed again: 0.5 s, 2 GB; "
        "8 pairs at once: out of memory"
    )
    assert math.isnan(rows["F2"].measured)
    assert math.isnan(rows["F3"].measured)


def test_another_failure_is_not_taken_for_a_want_of_memory(config, models, monkeypatch):
    def attempt(*_):
        raise TrainingError("step 1: L_SDS is not finite for pairs [0]")

    monkeypatch.setattr(gpu.dry_run, "attempt", attempt)
    with pytest.raises(TrainingError, match="not finite"):
        gpu.attempt(config, models, 1)


def test_the_share_of_the_roofline_is_what_was_computed_over_what_could_be(
    config, models, monkeypatch
):
    monkeypatch.setattr(gpu.dry_run, "name_and_memory", lambda device: ("NVIDIA H100 80GB HBM3", 1))
    monkeypatch.setattr(gpu, "timed", lambda job, clock, rounds: 4 / 390)
    monkeypatch.setattr(gpu, "flops", lambda *_: 803_273_441_280)
    speed, share = gpu.speed_rows(models.teacher, config, 1)
    assert speed.measured == pytest.approx(390)
    assert share.measured == pytest.approx(0.3966, abs=1e-4)
    assert share.note == "803.3 GFLOP an evaluation, 313 TFLOP/s; of 790"


def test_stable_diffusions_unet_takes_803_gigaflop_a_call():
    shape = json.loads((SHAPES / "stable-diffusion-v1-4/unet/config.json").read_text())
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(shape)
        z, text = torch.zeros(1, 4, 64, 64), torch.zeros(1, 77, 768)
    assert gpu.flops(unet, z, text) / 1e9 == pytest.approx(803, abs=0.5)


def test_a_time_is_the_median_without_the_first():
    ticks = iter([0.0, 50.0, 50.0, 51.0, 51.0, 54.0, 54.0, 56.0])
    assert gpu.timed(lambda: None, lambda: next(ticks), 3) == 2.0


def test_without_a_gpu_the_program_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert "no CUDA GPU on this machine; run it where" in said.err


@pytest.mark.gpu
def test_a_gpu_gives_every_row():
    assert all(row.measured > 0 for row in gpu.measure(FinetuneConfig(device="cuda"), 1)[:6])
