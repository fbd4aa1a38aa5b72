"""Data sets: opening them in every form, decoding, checking and splitting."""

from bigtransfer.data.forms import open_dataset
from bigtransfer.data.sources import ImageSet, Splits, native_size

__all__ = ["ImageSet", "Splits", "native_size", "open_dataset"]
