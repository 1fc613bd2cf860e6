"""Weight files: found or fetched, read without running anything, fitted to a model tensor by tensor.

Checkpoints of this project are written and checked here.
"""
