"""What a classification and a regression do each its own way; the rest of a job is the same for both."""
