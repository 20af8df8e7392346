"""What stands in the place of L_SDS, or beside L_CLIP: controls, and extensions of the paper's arm.

    negatives  false captions of the words of a true one
    trainable  which of the student's parameters train

Imports the method and `io`; `sets`, `experiment` and what stands above may import it.
"""
