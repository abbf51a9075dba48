"""``python -m nlora_lab`` is ``nlora-lab``: for launchers that start modules."""

import sys

from nlora_lab.cli.main import main

sys.exit(main())
