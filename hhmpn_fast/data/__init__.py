"""Data sets: the on-disk form, converters, and the planted generator."""
