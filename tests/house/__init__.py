"""The rules of the house, measured on the tree: `python -m tests.house` prints every finding."""
