"""Captions that lie: a share of the training captions have a false one in place of the truth."""

import pyarrow as pa
import pytest

from sdslib.arms.negatives import load_negatives
from sdslib.arms.noise import noisy
from sdslib.config import FinetuneConfig
from sdslib.pairs import Pairs
from sdslib.sets import roles

DRAWN = ["a red circle left of a blue square", "a blue circle above a green star", "a red circle"]
SAID = ["A brown dog next to a white cat.", "A man in a red shirt rides a black horse.", "Snow."]


def pairs(captions, count=200):
    rows = {"id": [str(n) for n in range(count)], "name": [f"{n}.png" for n in range(count)]}
    table = pa.table(rows | {"captions": [list(captions)] * count})
    return Pairs(table, lambda row: row["name"].encode(), "some")


def lies(share, captions=DRAWN, seed=0, **given):
    config = FinetuneConfig(caption_noise=share, seed=seed, batch_size=2, **given)
    changed, truth = noisy(pairs(captions), config), list(captions)
    found = {(i, k) for i in range(200) for k, c in enumerate(changed.captions(i)) if c != truth[k]}
    return found, changed, config


@pytest.mark.parametrize(("captions", "source"), [(DRAWN, "mini"), (SAID, "swap")])
def test_a_share_of_the_captions_that_can_lie_does(captions, source):
    found, changed, config = lies(0.3, captions, negatives=source)
    assert 0.2 < len(found) / 400 < 0.4  # the third caption of each image has no false one
    assert {k for _, k in found} == {0, 1}
    by_image = [i for i, _ in found]
    assert {by_image.count(i) for i in by_image} == {1, 2}  # an image's captions lie apart
    false = load_negatives(config)
    for index, place in found:
        assert changed.captions(index)[place] in false.of(captions[place])


def test_more_noise_keeps_the_lies_of_less_and_another_seed_has_others():
    few, many, others = lies(0.15)[0], lies(0.45)[0], lies(0.15, seed=1)[0]
    assert few < many
    assert few != others


def test_the_images_stay_and_without_noise_everything_does():
    changed = lies(0.3)[1]
    assert [changed.ref(n).data() for n in (0, 7)] == [b"0.png", b"7.png"]
    true = pairs(DRAWN)
    assert changed.fingerprint != true.fingerprint
    assert noisy(true, FinetuneConfig()) is true


def test_captions_that_cannot_lie_are_told():
    (told,) = roles.cautions(lies(0.3)[2], lies(0.3)[1])
    assert "33% of the captions have no false one and stay true, so that 20% lie" in told
    able = pairs(DRAWN[:2])
    assert roles.cautions(FinetuneConfig(caption_noise=0.3, batch_size=2), able) == []


def test_noise_is_in_a_runs_identity_only_where_there_is_some():
    plain, noisy_one = FinetuneConfig(), FinetuneConfig(caption_noise=0.3)
    assert "caption_noise" not in plain.identity()
    assert noisy_one.identity()["caption_noise"] == 0.3


def test_a_run_trains_on_the_lies():
    """The parameter was in ids for a while before any pair heard of it."""
    true, told = (roles.load_data(FinetuneConfig(caption_noise=share)) for share in (0.0, 0.3))
    said = [list(data.pairs.all_captions()) for data in (true, told)]
    assert 0.25 < sum(a != b for a, b in zip(*said, strict=True)) / len(said[0]) < 0.35
    keys = [{**data.fingerprints()} for data in (true, told)]
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"pairs"}
