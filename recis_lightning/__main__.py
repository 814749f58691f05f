"""`python -m recis_lightning fit ...` is `recis fit ...`: what torchrun and Lightning start on each rank."""

import sys

from recis_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
