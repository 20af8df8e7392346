"""Many runs together.

    studies     finished runs by setting and seed: means, paired differences, by tag
    cases       which finished runs belong together, and their controls
    grid        a grid over a notebook's parameters: checked, and named by the ids of its runs
    sweep       many runs of one notebook, each a papermill process, here or on Ray
    ablations   which runs an ablation needs, and its tables and figures
    publish     what stands behind a published figure; its tables, rebuilt and retrained
    failures    which inequality of an item failed, by how much, and what flipped
    formatting  tables of results as people read them
    finetuned   what one finished run says beside its controls
    comparison  two models on the same items, and score grids in files
    statistics  intervals over seeds and items

Imports `experiment` and what stands before it; `lab` and `show` may import it.
"""
