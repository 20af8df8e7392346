"""False captions: of word lists, by swaps, from files."""

from sdslib.arms.negatives import named


def test_the_word_lists_exchange_colors_or_shapes_or_both():
    found, caption = named("mini"), "a red circle left of a blue square"
    assert found.of(caption) == (
        "a blue circle left of a red square",
        "a red square left of a blue circle",
        "a blue square left of a red circle",
    )
    assert found.kinds(caption) == ("color", "shape", "both")
    assert {found.pick(caption, seed) for seed in range(20)} == {*found.of(caption)}
    assert found.of("a red circle") == ()
    assert found.pick("a red circle", 3) == "a red circle"


def test_swaps_are_other_captions_of_the_same_words():
    found = named("swap").of("A brown dog sits next to a white cat.")
    assert "A white dog sits next to a brown cat." in found
    assert "A brown cat sits next to a white dog." in found
