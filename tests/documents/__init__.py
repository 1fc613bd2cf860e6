"""The documents are checked against the programs; some of their text is made from them.

    python -m tests.documents            names the pages and tables that are not as they would be made
    python -m tests.documents --write    writes them
"""
