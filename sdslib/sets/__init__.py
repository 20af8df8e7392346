"""The sets that students are measured on beside Winoground, and which of them a run needs.

Imports the method and `io`; `experiment` and whatever stands above it may import it.
"""
