"""Numbers as people write them."""

from collections.abc import Callable


def number_of(text: str, kind: Callable[[str], float] = float) -> float:
    """The number that a text says; ValueError for one that it doesn't, also where Python alone reads one
    (1_000)."""
    if "_" in text:
        raise ValueError(text)
    return kind(text)


def mean_and_deviation(mean: list[float], std: list[float]) -> str:
    """mean 0.5 0.5 0.5, standard deviation 0.5 0.5 0.5."""
    written = [" ".join(f"{value:.4g}" for value in values) for values in (mean, std)]
    return f"mean {written[0]}, standard deviation {written[1]}"


def duration(seconds: float) -> str:
    """3.2 s, 4 min 10 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size_of(number: float) -> str:
    """Of a number of bytes: 3.2 GiB, 0.5 MiB."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
