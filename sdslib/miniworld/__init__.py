"""The embedded default: scenes drawn in the file formats of the real sets, and two small models.

    sets     what it offers by its name: sets, pairs, a tagger, words for false captions
    drawing  draws the mini-world in the file formats of the real sets
    models   trains and examines the mini-world's student and teacher

Imports `sets` and what stands before it; `lab` and `show` may import it, the core finds it by the
name `mini` in `io.worlds`.
"""
