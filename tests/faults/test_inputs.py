"""Pictures, captions and tables as people hand them over: each odd one is named, none is fatal."""

import json
import shutil

import pytest
import test_images as pictures
from test_benchmarks import crepe, karpathy, old_winoground  # noqa: F401
from test_pairs import KARPATHY, coco, encoded, hub_like, png, shade  # noqa: F401
from test_shards import one, write_shard

from faults.catalog import fault
from sdslib.checks.captions import VocabularyError
from sdslib.checks.guard import validate
from sdslib.config import FinetuneConfig
from sdslib.io.images import ImageError, open_image
from sdslib.io.sources import DataError, check_caption
from sdslib.io.wording import ParameterError
from sdslib.pairs import load_pairs
from sdslib.sets.aro import coco_order
from sdslib.sets.pair_files import dataset_pairs
from sdslib.sets.sugarcrepe import sugarcrepe
from sdslib.sets.winoground import winoground
from sdslib.student import load_student


def refused(call, *args, error=DataError):
    with pytest.raises(error) as caught:
        call(*args)
    return caught.value


@fault(
    17,
    "32-bit pixels",
    "depth.tiff: I pixels from 0 to 255 have no known white; convert it to 8-bit RGB",
)
def test_32_bit_pixels():
    data = pictures.deep_tiff([0, 255], 32, kind=2)
    return refused(open_image, data, "depth.tiff", error=ImageError)


# --- sets of pairs -------------------------------------------------------------------------------


@fault(
    29,
    "pattern in the name of a shard's folder",
    "no shard …: there is no folder …, taken as it is written; give a folder, "
    "shards/{000..099}.tar or shards/*.tar, only the last name a pattern",
)
def test_a_pattern_in_a_folders_name(tmp_path):
    (tmp_path / "run1").mkdir()
    write_shard(tmp_path / "run1" / "0.tar", one("a", 1))
    return refused(load_pairs, str(tmp_path / "run[12]" / "*.tar"))


@fault(
    29,
    "shard whose members belong to no sample",
    "has no samples: 0.tar: 1 members are neither image nor caption and are left out, as "
    "'s0.input.jpg' (key 's0' ends at the first dot, 'input.jpg' is no ending that is read)",
)
def test_a_shard_without_a_sample(tmp_path):
    write_shard(tmp_path / "0.tar", [("s0.input.jpg", png(shade(1)))])
    return refused(load_pairs, str(tmp_path / "0.tar"))


@fault(29, "two images of one sample", "0.tar: sample 'a' has two images, the other is 'a.jpg'")
def test_two_images_of_one_sample(tmp_path):
    write_shard(tmp_path / "0.tar", [*one("a", 1), ("a.jpg", png(shade(2)))])
    return refused(load_pairs, str(tmp_path / "0.tar"))


@fault(
    23,
    "rows of a data set without an image",
    "who/what:train[1].image: has no image, nor have 1 more of 4 rows; leave them out of the set "
    "or fetch it again",
)
def test_rows_without_an_image():
    rows = [{"image": encoded(i) if i % 2 == 0 else None, "caption": f"t {i}"} for i in range(4)]
    return refused(dataset_pairs, hub_like(rows), "who/what:train")


@fault(
    18,
    "missing images",
    "add_att.json[0].filename: '000000000000.jpg' does not exist in …; fetch it or correct the "
    "annotation; 2 of 2 images are missing (they are COCO's val2017, "
    "http://images.cocodataset.org/zips/val2017.zip)",
)
def test_missing_images(crepe, tmp_path):  # noqa: F811
    (tmp_path / "elsewhere").mkdir()
    return refused(sugarcrepe, crepe, tmp_path / "elsewhere")


@fault(
    18,
    "Winoground without its images",
    "old/images is not a folder; put Winoground's images there",
)
def test_winoground_without_its_images(tmp_path):
    shutil.rmtree(old_winoground(tmp_path / "old") / "images")
    return refused(winoground, str(tmp_path / "old"))


@fault(
    23,
    "Git-LFS pointer in place of captions",
    "captions_train2017.json is a Git LFS pointer, not the data; run git lfs pull",
)
def test_a_pointer_in_place_of_captions(coco):  # noqa: F811
    coco[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return refused(load_pairs, f"{coco[0]}::{coco[1]}")


@fault(
    23,
    "Karpathy's file of all splits",
    "dataset_coco.json: is Karpathy's file of all splits, of which one is needed; give a list of "
    '{"image": …, "caption": [ … ]} as coco_karpathy_test.json or flickr30k_test.json are',
)
def test_karpathys_file_of_all_splits(coco, tmp_path):  # noqa: F811
    (tmp_path / "dataset_coco.json").write_text(json.dumps(KARPATHY))
    return refused(load_pairs, f"{tmp_path / 'dataset_coco.json'}::{coco[1]}")


@fault(
    62,
    "order negatives without spaCy",
    "negatives for real captions need spaCy's en_core_web_sm (…): `pip install spacy` and `python "
    "-m spacy download en_core_web_sm`; or put a file of frozen negatives in their place: …",
)
def test_order_negatives_without_spacy(karpathy, monkeypatch):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    return refused(coco_order, karpathy)


# --- captions ------------------------------------------------------------------------------------


@fault(19, "caption without a word", "has no word: …")
@pytest.mark.parametrize(
    "text", ["&nbsp;", "&amp;nbsp;", "\ufeff", "?!", " - \u200b", "\u0301", "…"]
)
def test_a_caption_without_a_word(text):
    return refused(check_caption, text, error=ValueError)


@fault(22, "word without an end", "has a word of 1001 characters; the limit is 1000")
def test_a_word_without_an_end():
    return refused(check_caption, "a " + "x" * 1001, error=ValueError)


@pytest.mark.parametrize("text", ["3", "→", "♥", "Q&amp;A", "&eacute;", "二", "?a"])
def test_a_sign_or_one_letter_is_a_caption(text):
    assert check_caption(text) == text


@fault(
    22,
    "caption with a mark of the tokenizer",
    "caption 'a red circle <end> left of a blue square' has '<end>', a mark of …'s tokenizer and "
    "no word; write it otherwise",
)
def test_a_caption_with_a_mark_of_the_tokenizer():
    own = load_student("local-dir:data/mini/student", None)
    text = "a red circle <end> left of a blue square"
    return refused(own.tokenize, [text], error=VocabularyError)


# --- parameters ----------------------------------------------------------------------------------


@fault(4, "empty name of a benchmark", "benchmark must not be empty")
def test_an_empty_benchmark():
    return refused(validate, FinetuneConfig, {"benchmark": ""}, error=ParameterError)
