"""Run the command line as ``python -m nlora_lab``, for launchers that start modules."""

import sys

from nlora_lab.cli.main import main

sys.exit(main())
