"""`python -m minifocal` is `minifocal`."""

import sys

from minifocal.cli import main

if __name__ == "__main__":
    sys.exit(main())
