"""Run the command line with `python -m openapi_tools`."""

import sys

from .cli import main

sys.exit(main())
