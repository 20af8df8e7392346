"""The card beside a run's weights says what they are; nothing is sent unless somebody asks."""

import re

import httpx2
import open_clip
import pytest
from finished import finish
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sdslib.checks.guard import validate
from sdslib.checks.notebooks import ReportConfig
from sdslib.config import ARMS, FinetuneConfig
from sdslib.io import storage
from sdslib.io.wording import ParameterError
from sdslib.results import comparison, finetuned, formatting, objectives, settings
from sdslib.show import modelcard, report


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    control = finish(root, "clip-only", weights=True)
    return finish(root, weights=True), control


@pytest.fixture(scope="module")
def card(runs):
    return ModelCard.load(modelcard.write(*runs))


def test_the_card_gives_the_tables_own_figures(runs, card):
    table = finetuned.before_after(settings.score_tables(*runs)).query("tag == 'all'")
    told = table[table["model"] == "sds"].set_index("metric")
    assert {r.metric_type for r in card.data.eval_results} == {"text", "image", "group"}
    for result in card.data.eval_results:
        assert result.metric_value == round(told.loc[result.metric_type, "accuracy"], 4)
    for row in table.itertuples():
        assert formatting.share(row.accuracy, row.low, row.high) in card.text
    paired = comparison.paired(settings.score_tables(*runs)).query("tag == 'all'")
    for row in paired.itertuples():
        assert formatting.gap(row) in card.text
        assert f"| {100 * row.mdd:.1f} |" in card.text


def test_the_card_says_what_it_is_made_of_and_warns_of_the_mini_world(runs, card):
    assert card.data.library_name == "open_clip"
    assert card.data.license == "mit"
    assert "mini-world" in card.data.tags
    assert "no evidence about" in card.text
    for words in ("data/mini/student", "data/mini/teacher", runs[0].name, "150 steps of 32 pairs"):
        assert words in card.text
    assert "{{" not in card.content
    assert "{%" not in card.content


def test_the_weights_and_their_manifest_stay_as_they_are(runs):
    before = {p: p.read_bytes() for p in runs[0].weights.iterdir()}
    assert modelcard.write(*runs) == runs[0].path / "README.md"
    assert storage.manifest_problem(runs[0].weights) is None
    assert {p: p.read_bytes() for p in runs[0].weights.iterdir()} == before
    assert runs[0].finished


def test_the_lines_that_load_the_student_do(card):
    code = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    names = {}
    exec(code, names)
    assert isinstance(names["model"], open_clip.CLIP)
    assert names["tokenizer"]("a red circle").shape == (1, 16)


def test_a_card_without_a_control_claims_none(runs):
    text = str(modelcard.card(runs[0]))
    assert "sds against untouched" in text
    assert "L_CLIP only" not in text


def test_weights_made_from_others_carry_the_others_licence(tmp_path):
    real = finish(tmp_path, clip_model="hf-hub:laion/some-clip", train_data="a.json::b",
                  teacher="owner/sd", teacher_revision="main")  # fmt: skip
    card = modelcard.card(real)
    assert card.data.license == "other"
    assert card.data.base_model == "laion/some-clip"
    assert "`owner/sd`, weights `main`" in card.text


def test_every_arm_says_what_it_is_taught_by():
    assert set(objectives.OBJECTIVES) == set(ARMS)
    for name, arm in ARMS.items():
        config = FinetuneConfig.model_construct(**{**FinetuneConfig().model_dump(), "arm": name})
        told, teacher = objectives.method(config), objectives.taught_by(config, "the model")
        assert ("the model" in teacher) == (arm.sds is not None)
        assert told.startswith(f"{objectives.objective_in_words(config)}, where ")
        assert ("gradient of L_SDS goes through" in told) == bool(arm.sds and arm.denoises)
        assert (objectives.own_term(config) in report.TERMS) == (arm.sds is not None)


def test_a_run_taught_by_verdicts_is_said_to_be(tmp_path):
    given = {"sds_weight": 0.01, "verdicts": "data/mini/verdicts.parquet"}
    run = finish(tmp_path, "teacher-choice", items=20, **given)
    for text in (str(modelcard.card(run)), report.build(*reporting(tmp_path)).page):
        told = "L_CLIP + 0.01 * L_choice, arm teacher-choice, where L_choice is"
        assert told in text.replace("`", "")
        assert "its verdicts, made before: data/mini/verdicts.parquet" in text
        assert "goes through the UNet" not in text
        assert "L_SDS" not in text


def reporting(root):
    config = ReportConfig(runs=str(root), examples=0)
    return config, settings.collect(config)


class Api:
    """Keeps what would have been sent; `fault` is raised in place of a commit."""

    def __init__(self, fault=None):
        self.calls, self.fault = [], fault

    def create_repo(self, repo, **options):
        self.calls.append((repo, options))

    def create_commit(self, repo, operations, commit_message):
        if self.fault is not None:
            raise self.fault
        self.calls.append((repo, {o.path_in_repo: o for o in operations}))
        return type("Done", (), {"repo_url": f"https://hub/{repo}"})()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setattr(modelcard, "get_token", lambda: "hf_x")


def test_a_push_sends_weights_and_card_in_one_commit_to_a_private_repository(runs, token):
    api = Api()
    assert modelcard.push(runs[0], "me/student", runs[1], api) == "https://hub/me/student"
    (made, options), (repo, sent) = api.calls
    assert (made, repo) == ("me/student", "me/student")
    assert options == {"private": True, "exist_ok": True}
    weights = {p.relative_to(runs[0].weights).as_posix() for p in runs[0].weights.rglob("*.*")}
    assert set(sent) == {"README.md", *weights}
    card = sent["README.md"].path_or_fileobj.decode()
    assert 'open_clip.create_model_from_pretrained("hf-hub:me/student")' in card
    assert "hf_x" not in card


ANSWER = httpx2.Response(403, request=httpx2.Request("POST", "https://hub/api"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set; unset it"),
        (HfHubHTTPError("403 Forbidden", response=ANSWER), "refused 'me/x': 403"),
        (httpx2.ConnectError("no route to host"), "cannot be reached for 'me/x' .no route to host"),
    ],
)
def test_a_push_that_fails_says_why(fault, message, runs, token):
    with pytest.raises(modelcard.PushError, match=message):
        modelcard.push(runs[0], "me/x", api=Api(fault))


def test_without_a_token_nothing_is_sent(runs, monkeypatch):
    monkeypatch.setattr(modelcard, "get_token", lambda: None)
    api = Api()
    with pytest.raises(modelcard.PushError, match="no token for 'me/x'; export HF_TOKEN"):
        modelcard.push(runs[0], "me/x", api=api)
    assert not api.calls


def test_damaged_weights_are_not_sent(tmp_path, token):
    run = finish(tmp_path, weights=True, items=20)
    (run.weights / "open_clip_config.json").write_text("{}")
    api = Api()
    with pytest.raises(modelcard.PushError, match=r"weights are not whole .open_clip_config"):
        modelcard.push(run, "me/x", api=api)
    assert not api.calls


@pytest.mark.parametrize("name", ["student", "a/b/c", "/x", "me/", "https://hub/me/x"])
def test_what_is_no_repository_of_the_hub_is_refused(name):
    with pytest.raises(ParameterError, match="push_to must be a repository of the Hub, owner/name"):
        validate(ReportConfig, {"push_to": name})
