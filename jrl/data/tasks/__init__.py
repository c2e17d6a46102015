"""Self-contained tasks: data made by a seed, of which the right answers or rewards are known.

Each file has a `Config`, an `example` drawn from it, and `load`, which prepares a data set of
tensorflow-datasets on first use and opens one of its splits.
"""
