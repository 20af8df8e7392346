"""The sets beside Winoground, and which of them a run needs.

    roles      which sets a run trains on, chooses on, reports, and must not do worse on
    shuffles   ARO's order negatives, made once and frozen
    overlap    training images that a test set holds, told by their COCO ids
    text_only  baselines that see no image: the caption's length, its likelihood

Imports the method and the wings before it; `experiment` and what stands above may import it.
"""
