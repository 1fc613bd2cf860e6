"""The same photograph, or the same patient, in two splits.

Copies are found by fingerprints of the images, patients by columns or names.
"""
