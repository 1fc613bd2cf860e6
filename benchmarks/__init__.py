"""Speed and memory, each against the plain way of doing the same, in one run. Start with
benchmarks/speed.py."""
