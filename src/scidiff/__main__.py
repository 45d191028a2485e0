"""``python -m scidiff``: the command line without an installed script, as ``accelerate launch -m scidiff`` needs it."""

import sys

from scidiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
