"""`python -m jrl` is `jrl`."""

from jrl.cli import main

if __name__ == "__main__":
    main()
