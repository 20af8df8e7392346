"""Which sets a run trains on, chooses on, reports, and must not do worse on."""

import warnings
from pathlib import Path

import pytest

from sdslib.config import FinetuneConfig, set_name
from sdslib.io.wording import ParameterError
from sdslib.pairs import load_pairs
from sdslib.sets import roles


@pytest.fixture
def config(photos):
    def made(**given):
        start = {"train_data": photos.train_data, "benchmark": photos.winoground, "batch_size": 4}
        return FinetuneConfig(**start | photos.models | given)

    return made


def test_scores_are_kept_under_the_name_of_the_set_and_no_path_is_in_it(photos):
    sources = [photos.winoground, photos.winoground_jsonl, photos.aro_relation, photos.sugarcrepe,
               photos.zeroshot, "mini:winoground", "mini:zeroshot_color"]  # fmt: skip
    for source in sources:
        assert roles.load_set(source).name == set_name(source), source
    found = roles.load_set(f"retrieval:{photos.val_data}")
    assert (found.kind, found.name) == ("retrieval", set_name("retrieval:anything"))


def test_a_mini_benchmark_is_chosen_on_its_validation_split_and_keeps_naming_and_retrieval():
    data = roles.load_data(FinetuneConfig(eval_items=4))
    assert data.validation.name == "mini-winoground"
    assert set(data.keep) == {"mini-zeroshot-color", "mini-zeroshot-shape", "retrieval"}
    assert len(data.pairs) == len(load_pairs("mini"))


def test_the_validation_split_itself_is_never_what_is_chosen_on_when_it_is_reported():
    data = roles.load_data(FinetuneConfig(benchmark="mini:winoground:val", eval_items=4))
    assert data.validation.kind == "retrieval"
    held = {ref.name for item in data.validation.items for ref in item.images}
    trained = {data.pairs.ref(i).name for i in range(len(data.pairs))}
    assert not held & trained
    assert len(held) + len(trained) == len(load_pairs("mini"))


def test_what_is_held_out_is_the_same_for_every_seed_and_number_of_pairs():
    def held(**given):
        config = FinetuneConfig(eval_items=4, validation="held-out", **given)
        return roles.load_data(config).validation.fingerprint

    assert held() == held(seed=3) == held(train_pairs=64)


def test_too_few_pairs_hold_nothing_out_unless_asked_and_then_say_so(config):
    assert roles.load_data(config()).validation is None
    with pytest.raises(ParameterError, match="takes a tenth of the pairs, at least 10"):
        roles.load_data(config(validation="held-out"))


def test_validation_may_be_any_benchmark_or_none(config, photos):
    found = roles.load_data(config(validation=photos.aro_relation)).validation
    assert found.name == "aro-relation"
    assert roles.load_data(FinetuneConfig(eval_items=4, validation="none")).validation is None


def test_sets_to_keep_are_named_told_apart_and_left_out_on_request(config, photos):
    other = f"zeroshot:{photos.zeroshot.partition(':')[2]}"
    data = roles.load_data(config(keep=f"{photos.zeroshot}, {other},retrieval:{photos.val_data}"))
    assert list(data.keep) == ["zeroshot", "zeroshot-2", "retrieval"]
    assert set(data.scored()) == {"winoground", *data.keep}
    assert roles.load_data(config(keep="none")).keep == {}
    assert roles.load_data(config()).keep == {}  # none is at hand, and none is downloaded


def test_the_reported_set_is_not_kept_beside_itself(config, photos):
    data = roles.load_data(config(benchmark=photos.zeroshot, keep=photos.zeroshot))
    assert data.keep == {}


def test_a_set_in_its_usual_place_is_at_hand(monkeypatch, tmp_path, photos):
    assert not roles.is_at_hand("retrieval")
    parts = photos.val_data.split("::")
    monkeypatch.setattr(roles, "COCO_VAL", "::".join(parts))
    assert roles.is_at_hand("retrieval")


def test_imagenet_s_folders_get_the_names_of_their_classes_and_train_is_no_class(tmp_path):
    for number in range(1000):
        folder = tmp_path / "val" / f"n{number:08d}"
        folder.mkdir(parents=True)
        (folder / "a.JPEG").write_bytes(b"\xff")
    (tmp_path / "train").mkdir()
    found = roles.load_set(f"imagenet:{tmp_path}")
    names = roles.imagenet_classes()
    assert [item.tags["class"] for item in found.items] == list(names)
    assert found.prompts[0] == (f"a photo of a {names[0]}.",)
    assert "tench" in names[0]


def test_winoground_is_read_from_its_usual_place_by_its_name_alone(photos, monkeypatch):
    folder = Path(photos.winoground_jsonl.partition(":")[2])
    usual = {"data/winoground": folder}
    monkeypatch.setattr(
        "sdslib.sets.winoground.project_path", lambda path: usual.get(path, Path(path))
    )
    found = roles.load_set("winoground")
    assert found.label == "winoground (partial: 16 of 400)"


def test_another_set_to_keep_or_to_choose_on_is_another_run(config, photos):
    from sdslib.io.runs import identify

    ids = {
        identify(c, roles.load_data(c).fingerprints())["id"]
        for c in (config(), config(keep=photos.zeroshot), config(validation=photos.sugarcrepe))
    }
    assert len(ids) == 3


@pytest.mark.parametrize("arm", ["hard-negatives", "sds-margin", "teacher-choice"])
def test_an_arm_that_needs_false_captions_is_refused_with_their_share(config, arm):
    with pytest.raises(ParameterError, match=r"needs false captions, and \d+% of the captions"):
        roles.load_data(config(arm=arm, negatives="mini"))


def test_other_arms_and_the_mini_world_are_not_asked_for_false_captions(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        roles.load_data(config(arm="sds-text"))
    roles.load_data(FinetuneConfig(arm="teacher-choice", eval_items=4))
