"""A folder or a CSV becomes one table of images, and the table becomes samples in the order of their steps.

After that nothing depends on where a sample came from.
"""
