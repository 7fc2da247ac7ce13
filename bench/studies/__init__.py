"""What training shows: the demo, the planted check of the four ablations, and the table of real sets."""
