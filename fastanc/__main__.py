"""`python -m fastanc` is the `fastanc` command."""

import sys

from fastanc.cli import main

sys.exit(main())
