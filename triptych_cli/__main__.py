"""`python -m triptych_cli`."""

import sys

from triptych_cli.main import main

sys.exit(main())
