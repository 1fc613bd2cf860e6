"""Several labels an image: a CSV with a column a label, or one column of names -> the table of images.

Each label is there (1), not there (0) or not known."""
