"""The code on these pages runs as doctests: ``pytest docs``."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore_glob = ["*.py", "_build/*", "auto_examples/*", "generated/*", "gallery/*"]
