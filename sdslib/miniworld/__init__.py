"""The embedded default: scenes drawn in the file formats of the real sets, and two small models.

    sets       what it offers by its name: sets, pairs, a tagger, words for false captions
    drawing    what a scene is, how it is drawn, and what is said of it
    composing  scenes that a reader composes
    files      the files of the real sets' formats that scenes are drawn to
    recipe     how long they are trained, at which rates, on which t and captions
    models     its student and teacher, and the training of their parts
    examine    what its files and models hold, for its notebook

Imports `sets` and what stands before it; `lab` and `show` may import it, the core finds it by the
name `mini` in `io.worlds`.
"""
