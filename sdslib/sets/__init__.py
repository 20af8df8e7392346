"""The sets that people train and measure on, one file each, and which of them a run needs.

    winoground  two images, two captions of the same words
    aro         relations, attributes and order
    sugarcrepe  false captions of seven kinds, and two true ones against a false
    choices     other sets of one image and several captions, in parts: VALSE, What'sUp, NegBench
    grids       other sets of two images and two captions
    packaged    ARO and SugarCrepe as mteb's packages on the Hub hold them
    zero_shot   classes as captions
    retrieval   which caption belongs to which image of them all
    origins     whose each set is, its licence and size, and the way to get it
    image_tables  rows with images inside: parquet and arrow
    pair_files  image-caption pairs in the forms that people keep them in
    roles       which sets a run trains on, chooses on, reports, and must not do worse on
    shuffles    ARO's order negatives, made once and frozen
    overlap     training images that a test set holds, told by their COCO ids
    text_only   baselines that see no image: the caption's length, its likelihood

Imports the method and the wings before it; `experiment` and what stands above may import it. The
core finds a set by its name, in a table of `benchmarks`.
"""
