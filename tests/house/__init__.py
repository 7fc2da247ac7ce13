"""The rules of the house, measured on the tree: `PYTHONPATH=tests python -m house` prints every finding."""
