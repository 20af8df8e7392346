"""Many runs together.

    settings    finished runs by setting: seeds together, each beside its control, in words
    objectives  what each arm's objective is in words
    studies     what settings show over seeds: means, paired differences, by tag, trade-offs
    grid        a grid over a notebook's parameters: checked, and named by the ids of its runs
    sweep       many runs of one notebook: which are to do, run, failed, and how they stand
    tuning      arms tuned alike, on validation
    executors   where the cells of a sweep run: processes here, or tasks of a Ray cluster
    ablations   which runs an ablation needs, and its tables
    publish     what stands behind a published figure: kept, read and trained again
    failures    which inequality of an item failed, by how much, and what flipped
    answers     the answer to a notebook's question, in a sentence
    formatting  numbers, intervals and tables of results as people read them
    takeaway    what stands below figures and tables, to download and to copy
    finetuned   what one finished run says beside its controls
    side_by_side  all runs in a table, and a few set by set on the items that they share
    comparison  two models on the same items, and score grids in files
    statistics  intervals over seeds and items

Imports `experiment` and what stands before it; `lab` and `show` may import it.
"""
