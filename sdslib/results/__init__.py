"""Many runs together: sweeps, which runs belong together, ablations, published studies.

Imports `experiment` and what is below it; `lab` and `show` may import it.
"""
