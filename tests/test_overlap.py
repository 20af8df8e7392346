"""Training images that a test set holds: told by id, reported in the run, left out on request."""

import tarfile

import pyarrow as pa
import pytest
import test_choices
import test_grids
from hub import layouts
from PIL import Image
from tiny import write_json

from sdslib import experiment
from sdslib.benchmarks import Benchmark, Item, load_benchmark
from sdslib.checks.guard import validate
from sdslib.config import FinetuneConfig
from sdslib.io.images import ImageRef
from sdslib.io.runs import open_run
from sdslib.io.sources import DataError, coco_id
from sdslib.pairs import Pairs, load_pairs
from sdslib.results import finetuned
from sdslib.sets import overlap
from sdslib.sets.aro import aro_relation
from sdslib.sets.overlap import Shared
from sdslib.sets.sugarcrepe import SUGARCREPE, sugarcrepe

IDS = (7, 8, 9, 10, 391895)  # of the training images; 9 and 10 are in SugarCrepe, 391895 in ARO


def picture(path):
    """A picture of its own, by the number in its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (int(path.stem) % 256, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    """A COCO split, a SugarCrepe whose images are in part of it, and an ARO that shares one."""
    train = tmp_path / "train"
    names = [f"{i:012d}.png" for i in IDS]
    for name in names:
        picture(train / "train2017" / name)
    notes = {
        "images": [{"id": i, "file_name": n} for i, n in zip(IDS, names, strict=True)],
        "annotations": [{"image_id": i, "caption": f"image {i}"} for i in IDS],
    }
    write_json(train / "annotations" / "captions_train2017.json", notes)
    rows = {
        str(i): {"filename": f"{i:012d}.jpg", "caption": "true", "negative_caption": "false"}
        for i in (9, 10, 11)
    }
    for name in SUGARCREPE:
        write_json(tmp_path / "crepe" / "data" / f"{name}.json", rows)
    for i in (9, 10, 11):
        picture(tmp_path / "crepe" / "val2017" / f"{i:012d}.jpg")
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 20, "bbox_h": 10}
    pair = {"true_caption": "a on b", "false_caption": "b on a", "relation_name": "on"}
    aro = [pair | box | {"image_path": f"{i}.png", "image_id": i} for i in (0, 1)]
    write_json(tmp_path / "aro" / "visual_genome_relation.json", aro)
    for i in (0, 1):
        picture(tmp_path / "aro" / "images" / f"{i}.png")
    known = [{"image_id": 0, "coco_id": 391895}, {"image_id": 1, "coco_id": None}]
    write_json(tmp_path / "image_data.json", [*known, {"image_id": 2, "coco_id": 8}])
    return tmp_path


@pytest.fixture
def config(folder):
    def make(**changes):
        own = {
            "train_data": str(folder / "train"),
            "benchmark": f"sugarcrepe:{folder / 'crepe'}",
            "vg_image_data": str(folder / "image_data.json"),
            "batch_size": 2,
            "bridge_start": "random",
        }
        return validate(FinetuneConfig, own | changes)

    return make


def test_coco_ids_come_from_file_names_and_for_visual_genome_from_its_own_table(folder):
    assert overlap.coco_ids(sugarcrepe(folder / "crepe")) == {"9", "10", "11"}
    aro = aro_relation(folder / "aro")
    assert overlap.coco_ids(aro, folder / "image_data.json") == {"391895"}
    for absent in (None, folder / "nothing.json"):
        with pytest.raises(DataError, match=r"which images are COCO's; fetch .*vg_image_data"):
            overlap.coco_ids(aro, absent)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("sugarcrepe++", {"0", "1"}),  # val2017's names
        ("whatsup", {"7", "14"}),  # the COCO parts alone; of Visual Genome's nothing is told
        ("valse", set()),
    ],
)
def test_sets_whose_images_are_cocos_tell_their_ids(tmp_path, name, ids):
    found = load_benchmark(f"{name}:{test_choices.MADE[name](tmp_path)}")
    assert overlap.coco_ids(found) == ids


def test_cola_is_of_visual_genome_as_aro_is(tmp_path):
    found = load_benchmark(f"cola:{test_grids.cola(tmp_path)}")
    with pytest.raises(DataError, match="cola: Visual Genome's image_data"):
        overlap.coco_ids(found)
    known = write_json(tmp_path / "image_data.json", [{"image_id": 3, "coco_id": 77}])
    assert overlap.coco_ids(found, known) == {"77"}


def test_bivlc_tells_the_ids_of_its_first_images(tmp_path):
    found = load_benchmark(f"bivlc:{layouts.bivlc(tmp_path)}")
    assert overlap.coco_ids(found) == {str(i) for i in range(6)}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("COCO_val2014_000000165831.jpg", "165831"),
        ("train2014/COCO_train2014_000000000009.jpg", "9"),
        ("VisualDialog_val2018_000000284024.jpg", None),  # a number of VisDial's own
    ],
)
def test_a_number_of_twelve_digits_is_cocos_where_the_name_says_so(name, own):
    assert coco_id(name) == own


def test_the_mini_worlds_images_have_no_ids_and_nothing_is_claimed_of_them(config):
    data = experiment.load_data(FinetuneConfig(eval_items=2, train_pairs=64))
    assert data.shared == (Shared("mini-winoground", 2400, 0, None),)
    with pytest.raises(DataError, match="tell no COCO ids"):
        experiment.load_data(FinetuneConfig(eval_items=2, overlap="exclude"))


def test_shared_images_are_counted_and_told(config):
    with pytest.warns(UserWarning, match="2 of the training images are in sugarcrepe; overlap="):
        data = experiment.load_data(config())
    assert data.shared == (Shared("sugarcrepe", 3, 3, 2),)
    assert len(data.pairs) == len(IDS)


def test_shared_images_are_left_out_on_request_before_pairs_are_counted_off(config, folder):
    aro = f"aro-relation:{folder / 'aro'}"
    data = experiment.load_data(config(overlap="exclude", apart_from=aro))
    assert data.shared == (Shared("sugarcrepe", 3, 3, 2), Shared("aro-relation", 2, 1, 1))
    assert data.pairs.ids == ["7", "8"]
    assert len(experiment.load_data(config(overlap="exclude", train_pairs=3)).pairs) == 3
    with pytest.raises(DataError, match=r"4 pairs asked for, but .* has 3"):
        experiment.load_data(config(overlap="exclude", train_pairs=4))


def test_what_cannot_be_told_is_an_error_only_where_it_was_asked(config, folder):
    aro = f"aro-relation:{folder / 'aro'}"
    blind = {"benchmark": aro, "vg_image_data": "nothing.json"}
    assert experiment.load_data(config(**blind)).shared == ()
    for asked in ({"overlap": "exclude"}, {"apart_from": "mini:winoground"}):
        with pytest.raises(DataError, match="which images are COCO's"):
            experiment.load_data(config(**blind, **asked))
    with pytest.raises(DataError, match="no benchmark 'nothing'"):
        experiment.load_data(config(apart_from="nothing"))


def test_a_report_changes_no_run_and_leaving_out_does(config):
    plain, told = config(), config(apart_from="mini:winoground")
    assert told.identity() == plain.identity()
    assert config(overlap="exclude").identity() != plain.identity()
    left = experiment.load_data(config(overlap="exclude")).fingerprints()["pairs"]
    assert left != load_pairs(plain.train_data).fingerprint


def named_pairs(*names):
    columns = {"id": [*map(str, range(len(names)))], "name": names}
    table = pa.table(columns | {"captions": [["a"]] * len(names)})
    return Pairs(table, lambda row: b"", "made here")


def of_images(*items, name="toy"):
    """A set whose items have images of these names, each name standing in several items or one."""
    made = [
        Item(str(n), tuple(ImageRef(image, bytes) for image in images), ("a", "b"))
        for n, images in enumerate(items)
    ]
    return Benchmark(name, "grid", tuple(made), len(made), "made here")


def test_images_whose_names_tell_no_id_are_kept_where_others_are_left_out():
    pairs = named_pairs(f"{7:012d}.png", "holiday.png", f"{8:012d}.png", "me.png")
    left = overlap.without(pairs, [of_images((f"{8:012d}.jpg", f"{9:012d}.jpg"))])
    assert left.ids == ["0", "1", "3"]


def test_every_image_of_an_item_is_looked_up_and_counted_once():
    test = of_images((f"{1:012d}.jpg", f"{8:012d}.jpg"), ("x.jpg", f"{8:012d}.jpg"), ("x.jpg",))
    pairs = named_pairs(f"{8:012d}.png", "x.png")
    assert overlap.coco_ids(test) == {"1", "8"}
    assert overlap.shared(pairs, [test]) == [Shared("toy", 3, 2, 1)]
    assert overlap.without(pairs, [test]).ids == ["1"]


def test_nothing_is_claimed_where_either_side_tells_no_ids():
    named, plain = f"{8:012d}.png", "x.png"
    for trained, tested in (((plain,), (named,)), ((named,), (plain,))):
        assert overlap.shared(named_pairs(*trained), [of_images(tested)])[0].shared is None
    found = overlap.shared(named_pairs(named, plain), [of_images((f"{9:012d}.png",))])
    assert found[0].shared == 0


def test_the_run_keeps_what_was_told(tmp_path):
    run = open_run(FinetuneConfig(runs=str(tmp_path)), {})
    told = [Shared("sugarcrepe", 3, 3, 2), Shared("winoground", 800, 0, None)]
    with run:
        assert finetuned.overlap_table(run).empty
        run.note(overlap=[row._asdict() for row in told])
    table = finetuned.overlap_table(run)
    assert list(table.columns) == ["set", "images", "with a COCO id", "trained on"]
    assert table["trained on"].tolist() == ["2", "cannot be told"]


def test_shards_name_their_images_too(folder, tmp_path):
    images = tmp_path / "train" / "train2017"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in IDS[:3]:
            path = write_json(tmp_path / f"{i:012d}.json", {"caption": f"image {i}"})
            tar.add(images / f"{i:012d}.png", f"{i:012d}.png")
            tar.add(path, path.name)
    assert load_pairs(str(tmp_path / "0.tar")).coco_ids == [{"7"}, {"8"}, {"9"}]


def test_an_image_that_is_there_twice_is_left_out_by_either_of_its_ids(folder, config):
    images = folder / "train" / "train2017"
    (images / f"{9:012d}.png").write_bytes((images / f"{7:012d}.png").read_bytes())
    with pytest.warns(UserWarning, match="1 images are there already under another id"):
        data = experiment.load_data(config(overlap="exclude"))
    assert data.shared == (Shared("sugarcrepe", 3, 3, 2),)
    assert data.pairs.ids == ["8", "391895"]
