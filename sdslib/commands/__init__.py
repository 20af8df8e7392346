"""`sdsclip`, also `python -m sdslib`: notebooks and studies as verbs of one command line.

    verbs        what each verb does with what was given
    program      from the words of a command line to a verb and its parameters

It imports all of the library once a verb needs it, and is imported by nothing.
"""
