"""Disk, network and other processes: what everything else stands on.

    wording      how a problem is told
    paths        paths as people write them
    images       pictures read safely, or an error that says why not
    sources      rows from files, checked against a schema
    worlds       what a world of its own brings, as `mini`: sets, pairs, words
    shards       samples of WebDataset tar files, here or behind http
    hub          models and data sets of the Hub: one commit, hashes checked, refusals told apart
    families     what each family of teachers is made of
    model_files  what a caption and a folder of weights must satisfy before a model sees them
    storage      files that survive a kill, their checksums, and tables read with care
    lock         who has a folder, and whether that process still lives
    state        modules and optimizers as flat named tensors
    identity     what makes two runs the same, and what one was computed with
    shared       what runs have in common, kept by content and checked
    pictures     pictures as a model is shown them, a byte a value
    history      the rows of a run, a line each
    run          a run's folder: parameters, status, history, scores, weights
    trackers     what accelerate's trackers are told
    runs         the runs that there are: opened, found, listed, verified
    progress     how far a long job is
    distributed  several processes that train one model: parts of a batch, gathered, averaged
    launch       one run in several processes of this machine, and its news
    exits        with which status a program ends, and why
    stopping     a signal is obeyed after a step
    lazy         names of things in rooms further up

Imports nothing else of the library; whatever stands above may import it.
"""
