"""The toys are files for copies of the tree: their tests run there."""

collect_ignore_glob = ["new_*"]
