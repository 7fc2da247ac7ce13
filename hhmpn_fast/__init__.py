"""HHMPN message passing over packed ragged modalities."""

from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged

__version__ = "0.1.0"
__all__ = ["InputError", "Ragged", "__version__"]
