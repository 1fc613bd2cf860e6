"""What users, disks and strangers can hand to the programs: a table of cases, the same for the tests and for
the page.

    python -m tests.bad_input            prints docs/what_can_go_wrong.md
    python -m tests.bad_input --write    writes it

A `Row` is a line of that page: what happens, what the program says or does, what to do. A `Case` makes one
thing of its row's kind and starts a program on it. tests/end_to_end/test_bad_input.py runs every case and
holds the program to its row.
"""
