"""Whether this process was forked since `import skavi`, which imports this and not yet torch."""

import os

forked = False


def _record() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_record)
