"""Several processes on one job: the group in and out, what ranks tell each other, models and checkpoints in
shards.

One process is the same with a world of one.
"""
