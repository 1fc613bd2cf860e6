"""The flags of all programs: how they are read, checked, stored and compared with those of an earlier run.

Nothing heavy is imported here, so that `--help` answers at once.
"""
