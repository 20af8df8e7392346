"""The families of teachers beyond Stable Diffusion 1 and 2, a row of `io.families` each.

    texts  what several text encoders make of a caption, in one tensor
    sdxl   Stable Diffusion XL
    flow   rectified flow as noise, what the families below share
    sd3    Stable Diffusion 3 and 3.5
    flux   FLUX.1

Imports the method, whose `teacher` finds a family's class by its row; whatever stands above may
import it.
"""
