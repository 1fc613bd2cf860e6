"""Many runs: a search by Optuna, a grid of runs from a file, and the comparison of their results.

Each run is a process of one of the main programs.
"""
