"""``python -m benchmarks``: run them all."""

import sys

from benchmarks.suite import main

sys.exit(main())
