"""Whole models and commands on a GPU, `pytest -m gpu`; the same code runs on the processor in every other run."""
