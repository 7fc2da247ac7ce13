"""The whole model against its peers: a plan of cells, each timed in a child process, and the report of docs/bench."""
