"""What every program stands on: errors and their exit codes, signals, files that are written whole, locks,
launching.

It knows nothing of images, models or metrics, and imports nothing else of this project.
"""
