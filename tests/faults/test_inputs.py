"""Pictures, captions and tables as people hand them over: each odd one is named, none is fatal."""

import pytest
import test_images as pictures
from test_pairs import encoded, hub_like, one, png, shade, write_shard

from faults.catalog import fault
from sdslib.images import ImageError, open_image
from sdslib.pairs import dataset_pairs, load_pairs
from sdslib.sources import DataError


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
