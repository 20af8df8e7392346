"""The knobs, their presets, and what a notebook's guard refuses and with which words."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from faults.catalog import each, fault
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sdslib.checks import models
from sdslib.checks.guard import guard, override, validate
from sdslib.checks.notebooks import MODELS, BaselineConfig, FailuresConfig
from sdslib.config import ARMS, FinetuneConfig, derive_seed, inert, mini, paper, preset
from sdslib.io import paths
from sdslib.io.families import configs_of, weights_of
from sdslib.io.paths import folder_at, project_path, project_root, shown_path
from sdslib.io.wording import ParameterError, suggest


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """A student and a teacher folder with the files that a complete one has."""
    root = tmp_path_factory.mktemp("models")
    student, teacher = root / "student", root / "teacher"
    student.mkdir()
    (student / "open_clip_config.json").write_text("{}")
    (student / "open_clip_model.safetensors").write_bytes(b"x")
    teacher.mkdir()
    for name in (*configs_of({}), *weights_of({})):
        (teacher / name).parent.mkdir(exist_ok=True)
        (teacher / name).write_text("{}")
    return {"clip_model": f"local-dir:{student}", "teacher": str(teacher)}


def problems(folders: dict[str, str], **given) -> tuple[str, ...]:
    with pytest.raises(ParameterError) as caught:
        guard(folders | given)
    assert str(caught.value).startswith("invalid parameters: ")
    assert str(caught.value) == "invalid parameters: " + "\n".join(caught.value.problems)
    return caught.value.problems


REFUSED = [
    ({"zzz": 1}, "unknown parameter 'zzz'"),
    ({"options": {"a": 1}}, "unknown parameter 'options'"),
    ({"lr": "2.5e+3"}, "lr must be a number, got '2.5e+3' (str); in YAML write 2.5e+3"),
    ({"sds_weight": True}, "sds_weight must be a number, got True (bool)"),
    ({"lr": 0}, "lr must be finite and > 0, got 0"),
    ({"batch_size": 0}, "batch_size must be a whole number ≥ 1, got 0"),
    ({"seed": -1}, "seed must be a whole number ≥ 0 and < 4294967296, got -1"),
    ({"t_max": 1000}, "t_max must be a whole number ≥ 0 and ≤ 999, got 1000"),
    ({"resume": "auto"}, "resume must be True or False, got 'auto' (str)"),
    ({"run": 7}, "run must be text, got 7 (int); with papermill write -r run 7"),
    ({"teacher_revision": float("inf")}, "so write -r teacher_revision and the text as it was"),
    ({"processes": 2, "arm": "teacher-choice"}, "leave processes at 1"),
    ({"processes": 10**9}, "processes must be a whole number ≥ 1 and ≤ 1024, got 1000000000"),
    ({"train_pairs": 4, "batch_size": 4}, "10 pairs or more, got train_pairs 4"),
    ({"runs": "é" * 128}, "is too long; a file system takes 255 bytes a name"),
    ({"runs": "a/" * 2048}, "is too long"),
    ({"teacher": "~nosuchuser/x"}, "there is no user 'nosuchuser' here"),
    ({"clip_model": "local-dir:a\0b"}, "holds a NUL character"),
    ({"run": "../x"}, "run must be letters, digits, dots, dashes and underscores, got '../x'"),
    ({"preset": "papr"}, "preset must be one of 'mini', 'paper', got 'papr'; did you mean"),
    ({"arm": "cliponly"}, "got 'cliponly'; did you mean 'clip-only'?"),
    ({"device": "tpu"}, "device must be one of 'auto', 'cpu', 'cuda', 'mps', got 'tpu'"),
    ({"clip_model": "ViT-B32"}, "unknown clip_model 'ViT-B32'; did you mean 'ViT-B-32'?"),
    ({"clip_model": "ViT-B-23"}, "unknown clip_model 'ViT-B-23'; did you mean 'ViT-B-32'?"),
    ({"clip_model": "ViT-B/32"}, "did you mean 'ViT-B-32'?"),
    ({"clip_model": "vit_b_32"}, "unknown clip_model 'vit_b_32'; did you mean 'ViT-B-32'?"),
    ({"clip_model": "ViT-B-32"}, "clip_model 'ViT-B-32' needs a clip_pretrained tag, one of 'o"),
    (
        {"clip_model": "ViT-B-32-quickgelu", "clip_pretrained": "openia"},
        "unknown clip_pretrained 'openia' for 'ViT-B-32-quickgelu'; did you mean 'openai'?",
    ),
    *(
        ({"clip_model": name, "clip_pretrained": "openai"},
         f"has QuickGELU; use clip_model '{name}-quickgelu'")
        for name in ("RN50", "ViT-B-16", "ViT-L-14-336")
    ),
    ({"tracker": "mlfow"}, "must be one of 'tensorboard', …got 'mlfow'"),
    ({"clip_model": "no/such/student"}, "clip_model folder 'no/such/student' does not exist"),
    ({"teacher": "no/such/teacher"}, "teacher folder 'no/such/teacher' does not exist"),
    ({"teacher": "tests/nothing"}, "teacher folder 'tests/nothing' does not exist"),
]  # fmt: skip


@each(
    {
        "misspelt parameter": {"sds_wieght": 0.001},
        "number as text, which YAML makes of 1e-3": {"sds_weight": "1e-3"},
        "word for a number": {"sds_weight": "high"},
        "infinite weight": {"sds_weight": float("inf")},
        "weight that is not a number": {"sds_weight": float("nan")},
        "negative weight": {"sds_weight": -1},
        "fraction of a step": {"steps": 7.5},
        "True for a count": {"steps": True},
        "empty name of a benchmark": {"benchmark": ""},
        "timesteps in the wrong order": {"t_min": 900, "t_max": 100},
        "batch larger than the data": {"train_pairs": 8},
        "code from the Hub asked for": {"trust_remote_code": True},
        "a word of another kind": {"trainable": "layernrom"},
        "name that no file system takes": {"runs": "x" * 256},
        "NUL in a path": {"runs": "a\0b"},
        "home of a user who is not there": {"runs": "~nosuchuser/runs"},
        "a billion threads": {"threads": 10**9},
        "too few pairs to fit the map": {"bridge_pairs": 5},
        "text that papermill takes for a number": {"run": 1e5},
        "both steps and epochs": {"steps": 5, "epochs": 2},
        "false captions from nowhere": {"negatives": "swpa"},
        "weight for an arm without a teacher": {"arm": "clip-only", "sds_weight": 0.1},
        "teacher's term alone, at no weight": {"arm": "sds-only", "sds_weight": 0},
        "pooled embedding of a text": {"arm": "sds-text", "bridge_input": "pooled"},
        "verdicts without the arm that reads them": {"verdicts": "data/mini/verdicts.parquet"},
        "more draws than pairs": {"arm": "teacher-choice", "choice_draws": 9, "batch_size": 4},
        "batch that processes cannot share": {"processes": 3},
        "set of parameters that is not known": {"trainable": "layernorms"},
        "tower that L_SDS does not reach": {"trainable": "text-tower"},
        "student without patches": {
            **{"arm": "fsc-clip", "clip_model": "RN50-quickgelu", "clip_pretrained": "openai"},
        },
        "a teacher's folder without its parts": {"teacher": "tests"},
    },
    *REFUSED,
)
def test_a_wrong_parameter_is_named_with_the_way_out(folders, given):
    (found,) = problems(folders, **given)
    return "invalid parameters: " + found


def test_one_set_of_parameters_has_one_name_and_one_id():
    for one, other in (("bias", "bias+bias"), ("bias+projection", "projection+bias")):
        first, second = (FinetuneConfig(trainable=text) for text in (one, other))
        assert first.identity() == second.identity()
    assert FinetuneConfig(trainable="layernorm").trainable == "layernorm"


@pytest.mark.parametrize("arm", ["clip-only", "hard-negatives", "teacher-choice"])
def test_few_pairs_are_enough_where_no_map_is_fitted(arm):
    weight = 1.0 if arm == "teacher-choice" else 0.0
    assert FinetuneConfig(arm=arm, sds_weight=weight, bridge_pairs=5).bridge_pairs == 5
    assert FinetuneConfig(bridge_start="random", bridge_pairs=5).bridge_pairs == 5


def test_a_list_of_names_longer_than_a_path_is_no_folder(tmp_path):
    assert folder_at(",".join(["mini-sds-0123456789"] * 40)) is None
    assert folder_at("a\0b") is None
    assert folder_at(str(tmp_path)) == tmp_path


@fault("several faults at once")
def test_all_problems_are_told_at_once(folders):
    found = problems(folders, stpes=3, sds_weight=-1, t_min=900, t_max=2, clip_model="ViT-B-33")
    assert [text.split()[0] for text in found] == ["unknown", "sds_weight", "t_min", "unknown"]
    return "\n".join(found)


def test_any_value_of_runs_that_can_be_made_is_taken(tmp_path):
    assert validate(FinetuneConfig, {"runs": str(tmp_path / "a" / "b")}).runs.endswith("b")


def test_a_student_without_weights_and_a_teacher_without_unet_are_refused(folders, tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (found,) = problems(folders, clip_model=str(tmp_path))
    assert "has no weights; put open_clip_model.safetensors there" in found
    shutil.copytree(folders["teacher"], tmp_path / "teacher")
    (tmp_path / "teacher/unet/config.json").unlink()
    (found,) = problems(folders, teacher=str(tmp_path / "teacher"))
    assert "has no unet/config.json" in found


def test_none_means_as_the_preset_says(folders):
    config = guard(folders | dict.fromkeys(["steps", "lr", "arm", "run"]))
    assert config == validate(FinetuneConfig, folders)
    assert (config.steps, config.lr) == (mini().steps, mini().lr)


def test_a_whole_number_is_accepted_for_a_number(folders):
    config = guard(folders | {"sds_weight": 1})
    assert config.sds_weight == 1.0
    assert isinstance(config.sds_weight, float)


def test_epochs_replace_the_steps_of_the_preset_and_the_reverse(folders):
    assert guard(folders | {"epochs": 2}).steps is None
    given = folders | {"preset": "paper", "steps": 9}
    assert (guard(given).steps, guard(given).epochs) == (9, None)


def test_a_notebook_with_steps_and_no_epochs_takes_steps():
    assert guard({"steps": 9}, "ablate_weight").steps == 9


def test_preset_paper_is_the_papers_recipe():
    config = guard({"preset": "paper"})
    assert config == paper() == preset("paper")
    assert (config.clip_model, config.clip_pretrained) == ("ViT-B-16-quickgelu", "openai")
    assert config.teacher == "CompVis/stable-diffusion-v1-4"
    assert (config.epochs, config.batch_size, config.lr) == (5, 32, 5e-5)
    assert (config.sds_weight, config.precision) == (1e-3, "bf16")


def test_a_local_student_needs_no_tag_of_the_preset(folders):
    config = guard(folders | {"preset": "paper"})
    assert config.clip_pretrained is None


def test_another_notebook_takes_its_models_from_the_preset_and_keeps_its_own_defaults():
    config = guard({"preset": "paper"}, "baseline")
    assert (config.clip_model, config.benchmark) == ("ViT-B-16-quickgelu", "all")
    assert config.batch_size == BaselineConfig.model_fields["batch_size"].default


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_notebook_refuses_a_misspelt_name(model, folders):
    given = {k: v for k, v in folders.items() if k in MODELS[model].model_fields}
    guard(dict(given), model)
    with pytest.raises(ParameterError, match="unknown parameter 'sead'; did you mean 'seed'"):
        guard(given | {"sead": 1}, model)


def test_an_unknown_notebook_is_named():
    with pytest.raises(ParameterError, match="got 'finetun'; did you mean 'finetune'"):
        guard({}, "finetun")


def test_what_papermill_and_ipython_put_into_the_namespace_is_left_alone(folders, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    noise = {"In": [], "Out": {}, "exit": 1, "quit": 1, "get_ipython": 1, "open": open}
    noise |= {"display": 1, "_ih": [], "__name__": "x", "PAPERMILL_INPUT_PATH": "a", "guard": guard}
    assert guard(folders | noise | {"json": json, "Path": Path}) == guard(dict(folders))
    assert warnings.formatwarning("as it is", UserWarning, "x.py", 3) == "as it is\n"
    assert warnings.formatwarning("old", FutureWarning, "x.py", 3) == "FutureWarning: old\n"


@pytest.mark.parametrize(
    ("arm", "ratio", "told"),
    [
        ("sds", 0.0014, "L_SDS is inert at sds_weight 0.001: its gradient is 0.14% of L_CLIP's; "
                        "sds_weight 0.07 would make it 10%"),
        ("teacher-choice", 1e-4, "L_choice is inert at"),
        ("sds", 0.02, None), ("clip-only", 0.0, None), ("sds", float("nan"), None),
    ],
)  # fmt: skip
def test_a_term_that_does_nothing_is_named_with_a_weight_that_would(arm, ratio, told):
    said = inert(FinetuneConfig(arm=arm, sds_weight=0.001), ratio)
    assert said.startswith(told) if told else said == ""


def test_the_guard_cell_can_be_run_again_in_a_used_kernel(folders):
    namespace = folders | {"run": "mine", "seed": 3}
    first = guard(namespace)
    namespace |= {"config": first, "run": object(), "history": [1, 2], "table": 5}
    assert guard(namespace) == first
    namespace["seed"], namespace["run"] = 4, "other"
    assert guard(namespace) == override(first, seed=4, run="other")
    namespace["sds_wieght"] = 0.1
    with pytest.raises(ParameterError, match="did you mean 'sds_weight'"):
        guard(namespace)


@pytest.mark.parametrize("arm", ["sds", "shuffled-captions", "random-teacher", "latent-regression"])
def test_weight_zero_is_the_clip_only_arm_with_the_same_identity(folders, arm):
    zero = guard(folders | {"arm": arm, "sds_weight": 0, "t_min": 400, "sds_gradient": "residual"})
    control = guard(folders | {"arm": "clip-only"})
    assert zero.arm == "clip-only"
    assert zero.identity() == control.identity()


def test_the_control_of_any_run_is_one_override_away(folders):
    config = guard(folders | {"sds_weight": 0.5, "seed": 2})
    control = override(config, arm="clip-only")
    assert (control.sds_weight, control.seed) == (0, 2)
    assert control.identity() == override(config, sds_weight=0).identity()


def test_the_identity_keeps_what_changes_numbers_and_drops_what_does_not(folders):
    config = guard(dict(folders))
    same = override(config, device="cpu", threads=2, num_workers=3, run="x", resume=False)
    assert same.identity() == config.identity()
    for change in ({"seed": 1}, {"lr": 0.5}, {"t_min": 21}, {"precision": "bf16"}, {"steps": 2}):
        assert override(config, **change).identity() != config.identity()


RIVALS_READ = {"negatives_each": 3, "negative_weight": 0.5}
# What an arm with a teacher's term reads of the knobs that not all of them do.
_DENOISES = {"sds_gradient", "sds_reduction", "sds_space", "t_min", "bridge_start"}
SOME_READ = {
    **{name: _DENOISES for name, arm in ARMS.items() if arm.sds and arm.denoises},
    "sds-margin": {"sds_reduction", "t_min", "bridge_start", "negatives"},
    "latent-regression": {"sds_reduction", "bridge_start"},
    "teacher-choice": {"t_min", "choice_draws", "negatives"},
    "clip-only": set(),
    "hard-negatives": {"negatives"},
    **{arm: {"negatives", *RIVALS_READ} for arm in ("ce-clip", "fsc-clip", "degla")},
}


@pytest.mark.parametrize("arm", ARMS)
def test_what_an_arm_reads_moves_its_identity_and_what_it_does_not_read_does_not(folders, arm):
    config = override(guard(dict(folders)), arm=arm)
    changes = {"sds_gradient": "residual", "sds_reduction": "mean", "t_min": 100, **RIVALS_READ,
               "bridge_start": "random", "choice_draws": 2, "negatives": "swap",
               "sds_space": "v"}  # fmt: skip
    moved = {
        name
        for name, value in changes.items()
        if override(config, **{name: value}).identity() != config.identity()
    }
    assert moved == SOME_READ[arm]


def test_what_is_left_out_for_a_test_set_counts_and_what_is_only_told_does_not(folders):
    config = guard(dict(folders))
    told = {"apart_from": "mini:aro-relation", "vg_image_data": "other.json"}
    assert override(config, **told).identity() == config.identity()
    left_out = override(config, overlap="exclude")
    assert left_out.identity() != config.identity()
    for name, value in told.items():
        assert override(left_out, **{name: value}).identity() != left_out.identity()


def test_a_choice_takes_its_noises_from_the_pairs_that_the_teacher_sees(folders):
    """Rounded as the loop rounds them, and at least one."""
    config = override(guard(dict(folders)), arm="teacher-choice", batch_size=8, choice_draws=2)
    assert override(config, sds_share=0.25).choice_draws == 2
    assert override(config, choice_draws=8).choice_draws == 8
    for wrong, seen in (({"sds_share": 0.25, "choice_draws": 3}, 2), ({"sds_share": 0.01}, 1),
                        ({"choice_draws": 9}, 8)):  # fmt: skip
        with pytest.raises(ParameterError, match=f"as many pairs a batch; the teacher sees {seen}"):
            override(config, **wrong)
    assert override(config, arm="sds", sds_share=0.01, sds_weight=1.0).choice_draws == 2


def test_override_is_as_strict_as_the_guard(folders):
    config = guard(dict(folders))
    with pytest.raises(ParameterError, match="unknown parameter 'sds_wight'"):
        override(config, sds_wight=1)
    assert override(config, epochs=3).steps is None
    assert config.steps == mini().steps


def test_a_config_is_frozen_and_knows_no_other_names():
    with pytest.raises(ValidationError, match="frozen"):
        mini().lr = 1.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        FinetuneConfig(sds_wieght=1)
    with pytest.raises(ValidationError, match="t_min must not be above t_max"):
        FinetuneConfig(t_min=3, t_max=2)


def test_an_unknown_preset_is_named():
    with pytest.raises(ParameterError, match="got 'papper'; did you mean 'paper'"):
        preset("papper")


def test_a_path_below_the_root_is_kept_relative_so_that_ids_agree_between_machines(folders):
    root = project_root()
    given = {"clip_model": f"local-dir:{root}/data/mini/student"}
    assert FinetuneConfig(**given).clip_model == "local-dir:data/mini/student"
    assert FinetuneConfig(**folders).teacher == folders["teacher"]


def test_paths_are_meant_from_the_root_whatever_the_working_folder(monkeypatch, tmp_path):
    root = project_root()
    monkeypatch.chdir(tmp_path)
    assert project_root() == root
    assert project_path("tests") == root / "tests"
    assert shown_path(root / "tests" / "x.json") == "tests/x.json"
    assert shown_path(Path("/elsewhere/x.json")) == "/elsewhere/x.json"


@fault("started outside the project")
def test_without_a_root_the_message_says_where_to_start(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "paths.py"))
    with pytest.raises(FileNotFoundError) as caught:
        project_root()
    return caught.value


def test_open_clips_names_and_tags_agree_with_open_clip_itself():
    open_clip = pytest.importorskip("open_clip")
    names, tags = models._open_clip_names(), models._open_clip_tags()
    assert set(open_clip.list_models()) <= names
    for model, tag in open_clip.list_pretrained():
        assert tag in tags[model.removesuffix("-quickgelu")]


@given(st.integers(0, 2**32 - 1), st.text(max_size=20), st.lists(st.integers(0, 10**6), max_size=3))
def test_a_derived_seed_is_63_bits_and_depends_on_everything(seed, purpose, index):
    value = derive_seed(seed, purpose, *index)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, purpose, *index)
    others = [
        derive_seed(seed + 1, purpose, *index),
        derive_seed(seed, purpose + "x", *index),
        derive_seed(seed, purpose, *index, 0),
    ]
    assert len({value, *others}) == 4


def test_derived_seeds_are_pinned_for_good():
    assert derive_seed(0, "order", 0) == 8257676712268907911
    assert derive_seed(7, "noise", 3, 11) == 3140431161564919690


def test_derived_bits_are_balanced():
    draws = [derive_seed(0, "balance", i) for i in range(2000)]
    shares = [sum(d >> bit & 1 for d in draws) / len(draws) for bit in range(63)]
    assert max(abs(s - 0.5) for s in shares) < 0.06  # five standard errors


_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


@given(st.dictionaries(st.sampled_from(sorted(FinetuneConfig.model_fields)) | st.text(), _values))
def test_whatever_is_injected_gives_a_config_or_a_parameter_error(folders, values):
    try:
        config = guard(folders | values)
    except ParameterError:
        return
    assert FinetuneConfig(**config.model_dump()) == config


@given(st.sampled_from(sorted(FinetuneConfig.model_fields)), st.data())
def test_a_name_with_two_letters_swapped_finds_its_way_back(name, data):
    at = data.draw(st.integers(0, len(name) - 2))
    typo = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    if typo not in FinetuneConfig.model_fields and len(name) > 4:
        assert suggest(typo, FinetuneConfig.model_fields) == name


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from sdslib import guard; import sdslib.io.runs, sdslib.io.progress\n"
        "try: guard({'preset': 'paper', 'clip_model': 'ViT-B32'})\n"
        "except ValueError: pass\n"
        "print({'torch', 'open_clip', 'diffusers', 'pandas', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_papermill_ends_with_the_guards_message_and_a_failing_exit_code(tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("sds_weight = None\nseed = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            'from sdslib import guard\n\nconfig = guard(globals(), "finetune")'
        ),
    ]
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    nbformat.write(book, tmp_path / "in.ipynb")
    words = ["in.ipynb", "out.ipynb", "-p", "preset", "paper", "-p", "sds_wieght", "0.001"]
    done = subprocess.run(
        [sys.executable, "-m", "papermill", *words, "--no-progress-bar"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "invalid parameters: unknown parameter 'sds_wieght'; did you mean 'sds_weight'?"
    )


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_whose_package_is_missing_is_one_clear_line(monkeypatch, tracker):
    find = models.importlib.util.find_spec
    monkeypatch.setattr(
        models.importlib.util, "find_spec", lambda name: None if name == tracker else find(name)
    )
    with pytest.raises(ParameterError, match=f"tracker '{tracker}' needs .*install .*{tracker}"):
        validate(FinetuneConfig, {"tracker": tracker})


PAPERS_STUDENTS = [
    *((f"{name}-quickgelu", "openai") for name in
      ("RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")),
    ("ViT-B-16", "laion400m_e32"),
    ("coca_ViT-B-32", "laion2b_s13b_b90k"),
    ("coca_ViT-L-14", "laion2b_s13b_b90k"),
]  # fmt: skip
PAPERS_TEACHERS = [
    "CompVis/stable-diffusion-v1-4",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1",
]


@pytest.mark.parametrize(("name", "tag"), PAPERS_STUDENTS)
@pytest.mark.parametrize("teacher", PAPERS_TEACHERS)
def test_every_student_and_teacher_of_the_paper_goes_by_its_name(name, tag, teacher):
    given = {"preset": "paper", "clip_model": name, "clip_pretrained": tag, "teacher": teacher}
    config = guard(given | {"teacher_revision": "main"})
    assert (config.clip_model, config.clip_pretrained, config.teacher) == (name, tag, teacher)


@pytest.mark.parametrize("model", [FinetuneConfig, BaselineConfig, FailuresConfig])
def test_what_changes_no_number_is_no_part_of_the_identity(model):
    plain = model().identity()
    assert model(threads=3, device="cpu").identity() == plain
    assert model(seed=3).identity() != plain
