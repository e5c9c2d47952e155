"""Train a pocket-size ViT on the pocket model: ``python tools/train_pocket_vit.py --help``."""

from pocket.vit import main

if __name__ == "__main__":
    main()
