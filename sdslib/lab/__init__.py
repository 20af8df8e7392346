"""Studies of models as they are, and what a run needs and would cost.

    baseline       student and teacher on every benchmark at hand
    conventions    where peers count otherwise, with both figures
    scoreboard     the student on every set at hand in one table, with what captions alone reach
    near_ties      near ties of a half-precision teacher, decided again in full
    verdicts       the teacher's verdicts on training pairs, by several processes and after a kill
    probes         what a student's towers encode of scenes and of their swaps, by linear probes
    relevance      where in a picture a word is seen, by students and by the teacher
    diagnosis      that, what h_w carries, what moves a student, which t tell
    doctor         what a run needs, what of it is here, and how to get the rest
    dry_run        what a run would cost, by a few steps at full size with random weights
    rescore        finished runs on more sets, with their starts and controls
    random_models  models of a real architecture with random weights
    checkpoints    those of open_clip's training, as folders that a run takes
    to_transformers  a student as transformers' CLIPModel

Imports `results` and what stands before it; `show` may import it.
"""
