"""What the entry points run: a job, its task (classification or regression), its training, its search."""
