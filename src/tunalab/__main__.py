"""`python -m tunalab`."""

import sys

from tunalab.cli import main

sys.exit(main())
