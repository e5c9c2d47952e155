"""Render the demo set: ``python tools/render_demo.py --pictograms DIR --out pvp_fast/demo/scenes``."""

from pocket.demo import main

if __name__ == "__main__":
    main()
