"""What stands in the place of L_SDS, or beside L_CLIP: controls, and extensions of the paper's arm.

    controls   shuffled captions, a regression on the latent, hard negatives
    rivals     CE-CLIP, FSC-CLIP, and one like DeGLA
    rival_losses  their losses
    text       L_SDS on the text embedding too
    margin     a caption against a false one, by the denoising error
    choice     the student chooses as the teacher does
    verdicts   what the teacher has said of training pairs, in a file
    negatives  false captions of a true one: from word lists, by swaps, or from a file
    swaps      two words or phrases of a caption swapped
    phrases    the noun phrases of a caption, by a tagger
    negative_files  NegCLIP's, CE-CLIP's, and our own
    noise      a share of the training captions made false
    trainable  which of the student's parameters train

Imports the method and `io`; `sets`, `experiment` and what stands above may import it.
"""
