"""One image file becomes the tensor that a model takes: decoded, read as it is shown, cropped, resized,
augmented, cached.

What is found out about the files of a data set is remembered here, too.
"""
