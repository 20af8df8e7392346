"""SDS-CLIP: fine-tune CLIP with `L_CLIP + sds_weight * L_SDS`, a frozen diffusion model as teacher.

The rooms in reading order; each imports only from floors strictly below its own.

floor 0, arithmetic
    losses      what the student is taught: tensors in, one value per pair out
    metrics     which items are right, with intervals and paired tests
    config      every knob once, and the guard that checks a notebook's parameters
floor 1, parties
    student     CLIP behind `encode_images`, `encode_texts` and `scale`; what trains is data
    teacher     Stable Diffusion, frozen, behind `embed_texts`, `encode_images`, `predict_noise`
    bridge      the linear map from CLIP's embedding to the teacher's latent, and its start
    pairs       image-caption pairs and the order in which they are seen
    benchmarks  Winoground, ARO, SugarCrepe, zero-shot: items with images, captions, answer
    miniworld   draws the mini-world in the file formats of the real sets
    runs        a run's folder: parameters, status, history, scores, weights
    figures     a table in, a figure out
floor 2, verbs
    train       the objective and the loop
    evaluate    scorers, score grids, and the tables made of them
floor 3, press
    demo        widgets and their static twins
    sweep       many runs of one notebook
"""

__version__ = "0.1.0"
