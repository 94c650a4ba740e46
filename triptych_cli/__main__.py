"""`python -m triptych_cli`."""

import sys

from triptych_cli.entry import main

sys.exit(main())
