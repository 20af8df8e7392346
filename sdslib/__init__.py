"""SDS-CLIP: fine-tune CLIP with `L_CLIP + sds_weight * L_SDS`, a frozen diffusion model as teacher.

The rooms in reading order; each imports only from floors strictly below its own.

floor 0, arithmetic and tools
    losses      what the student is taught: tensors in, one value per pair out
    metrics     which items are right, with intervals and paired tests
    config      every knob once, and the guard that checks a notebook's parameters
    images      pictures read safely, or an error that says why not
    sources     rows from files, checked against a schema
    storage     files that survive a kill, tables read with care, and the lock of a folder
    state       modules and optimizers as flat named tensors
    progress    how far a long job is
    processes   several processes that train one model: parts of a batch, gathered, averaged
    page        pieces of HTML that refer to nothing outside the page
    readable    tables of results as people read them
floor 0.5, materials drawn, fetched and checked
    checks      what a caption and a folder of weights must satisfy before a model sees them
    hub         models and data sets of the Hub: one commit, hashes checked, refusals told apart
    miniworld   draws the mini-world in the file formats of the real sets
    shuffles    ARO's order negatives, made once and frozen
    shards      samples of WebDataset tar files, here or behind http
floor 1, parties
    student     CLIP behind `encode_images`, `encode_texts` and `scale`; what trains is data
    teacher     Stable Diffusion, frozen, behind `embed_texts`, `encode_images`, `predict_noise`
    bridge      the linear map from CLIP's embedding to the teacher's latent, and its start
    pairs       image-caption pairs and the order in which they are seen
    benchmarks  Winoground, ARO, SugarCrepe, zero-shot: items with images, captions, answer
    runs        a run's folder: parameters, status, history, scores, weights
    tables      scores in, tables out
    figures     a table in, a figure out
floor 2, verbs
    live        training as it goes: curves that grow
    train       the objective and the loop
    evaluate    scorers and score grids
    overlap     training images that a test set holds, told by their COCO ids
    negatives   false captions of the words of a true one
    studies     finished runs by setting and seed: means, paired differences, by tag
    failures    which inequality of an item failed, by how much, and what flipped
    document    text, tables and figures in order, as one HTML page and as a PDF
    launch      one run in several processes of this machine, and its news
floor 2.5, what the whole jobs are about
    sets        which sets a run trains on, chooses on, reports, and must not do worse on
floor 3, whole jobs, as the notebooks call them
    recheck     near ties of a half-precision teacher, decided again in full
    blind       baselines that see no image: the caption's length, its likelihood
    minimodels  trains and examines the mini-world's student and teacher
    experiment  one fine-tuning, from loading to the paired comparison
    probes      one image and any captions: margins, words that decide, hardest re-orderings
    atlas       every item of a set with what each model does to it, as a page and as a widget
floor 4, studies of models as they are
    rehearsal   what a run would cost, by a few steps at full size with random weights
    baseline    student and teacher on every benchmark at hand
    cases       which finished runs belong together, and their controls
    cells       a grid over a notebook's parameters: checked, and named by the ids of its runs
    diagnosis   what a student encodes, what h_w carries, what moves it, which t tell
floor 5, studies that rest on other studies
    doctor      what a run needs, what of it is here, and how to get the rest
    casebook    from score files or runs to the atlas of their failures
    modelcard   the card beside a run's weights, and the push to the Hub
    sweep       many runs of one notebook, each a papermill process, here or on Ray
floor 6, for a person to play with, and to hand on
    demo        any picture against any captions, as a page and as a widget
    ablations   which runs an ablation needs, and its tables and figures
    publish     what stands behind a published figure; its tables, rebuilt and retrained
    report      from finished runs to the page and the PDF that are handed on
"""

__version__ = "0.1.0"
