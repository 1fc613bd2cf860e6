"""Several labels an image: each label's metrics are those of two classes, on the images where it is known."""
