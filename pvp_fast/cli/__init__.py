"""The command line: ``pvp-fast COMMAND``, each in a module of its own, listed in ``app``.

Exit codes: 0 all is well, 1 an error (one sentence on stderr), 2 wrong usage, 3 done, but some
images could not be read, 130 interrupted, 141 the reader of stdout went away (``| head``).
Results go to stdout, everything else to stderr.
"""

from pvp_fast.cli.app import main, run

__all__ = ["main", "run"]
