"""`python -m launcher submit RECIPE --nodes 8 …`: submit a run to Slurm, or print its script."""

from __future__ import annotations

import sys

from launcher.submit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
