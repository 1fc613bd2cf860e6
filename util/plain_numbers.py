"""Numbers as people write them."""


def number_of(text: str, kind=float):
    """The number that a text says; ValueError for one that it doesn't, also where Python alone reads one (1_000)."""
    if "_" in text:
        raise ValueError(text)
    return kind(text)
