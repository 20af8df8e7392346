"""What stands in the place of L_SDS, or beside L_CLIP: controls and extensions of the paper's arm.

Imports the method and `io`; `experiment` and whatever stands above it may import it.
"""
