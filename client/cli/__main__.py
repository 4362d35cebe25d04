"""`python -m pagewire.client.cli`: the command where its script is not on the path."""

import sys

from pagewire.client.cli import main

sys.exit(main())
