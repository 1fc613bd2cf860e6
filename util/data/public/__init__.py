"""Public data sets as their owners publish them become folders that training reads; the demo's images are
drawn.

Each set is a row of one table with a reader of its own.
"""
