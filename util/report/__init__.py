"""A run's folder becomes a page, charts and words.

Everything is made of the files in the folder, so it can be made again later.
"""
