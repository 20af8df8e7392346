"""The embedded default: scenes drawn in the file formats of the real sets, and two small models.

    drawing  draws the mini-world in the file formats of the real sets
    models   trains and examines the mini-world's student and teacher

Imports the method and `io`; `sets` and what stands above it may import it.
"""
