"""``python -m pvp_fast`` is ``pvp-fast``; torchrun starts it with ``-m pvp_fast``."""

from pvp_fast.cli import main

if __name__ == "__main__":
    main()
