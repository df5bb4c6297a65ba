"""The command line: `python -m pydist`."""

from pydist._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
