"""From a data set to a trained model and its results: the trainer, runs on disk, evaluation, prediction, reports.

Arrows: commands (runs, evaluate, predict) -> trainer, report -> checkpoint -> model and data. Nothing here is imported
by the model, the ops or the data sets.
"""
