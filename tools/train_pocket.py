"""Train the pocket model from scratch: ``python tools/train_pocket.py --help``."""

from pocket.train import main

if __name__ == "__main__":
    main()
