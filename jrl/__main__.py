"""`python -m jrl` is `jrl`."""

from jrl.cli import main

__all__ = []

if __name__ == "__main__":
    main()
