"""What is refused before anything heavy is loaded.

    notebooks      the parameters of each notebook
    models         whether the models that are named can be there
    guard          checks a notebook's parameters, and says all that is wrong with them
    captions       what a caption must satisfy before a tokenizer sees it
    student_files  what a student is loaded from
    teacher_files  what a teacher is loaded from
    fingerprints   what a run's models are, by content

Imports `config` and `io`; whatever stands above may import it.
"""
