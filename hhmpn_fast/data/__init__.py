"""Data sets on disk, the converters that make them, and the generator of planted sets."""

from hhmpn_fast.data.convert import convert
from hhmpn_fast.data.shards import read_metadata
from hhmpn_fast.data.splits import Modality, Split, carve_validation
from hhmpn_fast.data.store import Batch, Dataset
from hhmpn_fast.data.writer import write

__all__ = ["Batch", "Dataset", "Modality", "Split", "carve_validation", "convert", "read_metadata", "write"]
