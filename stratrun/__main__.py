"""``python -m stratrun`` is the command ``stratrun``, also for torchrun: ``torchrun ... -m stratrun``."""

import sys

from stratrun.cli import main

if __name__ == "__main__":
    sys.exit(main())
