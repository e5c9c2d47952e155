"""Render the demo set: ``python tools/render_demo.py --help``."""

from pocket.demo import main

if __name__ == "__main__":
    main()
