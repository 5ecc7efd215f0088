"""`python -m attncheck.cli`, where the console script is not on the path."""

import sys

from attncheck.cli import main

if __name__ == "__main__":
    sys.exit(main())
