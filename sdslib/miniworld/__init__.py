"""The embedded default: scenes drawn in the file formats of the real sets, and two small models.

Imports the method and `io`; `sets` and whatever stands above it may import it.
"""
