"""Scores of images with captions beside CLIP's cosine, which `evaluate` has.

    diffusion   minus the teacher's denoising error, over draws shared by all cells
    sequential  the same with as many draws as an item needs to be settled

Imports the method and `io`; whatever stands above may import it.
"""
