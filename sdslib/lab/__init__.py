"""Studies of models as they are: baselines, diagnosis, what a run needs and would cost.

Imports `results` and what is below it; `show` may import it.
"""
