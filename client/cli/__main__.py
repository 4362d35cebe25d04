"""The command as `python -m pagewire.client.cli`, which scripts use too; it is that of `python -m pagewire.client`."""

import sys

from pagewire.client.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
