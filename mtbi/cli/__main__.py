"""`python -m mtbi.cli`: the `mtbi` command where the package is not installed."""

import sys

from mtbi.cli.command import main

sys.exit(main())
