"""What the commands do, from start to end: train, cross-validate, compare, search, preview, demo."""
