"""Which images exist: data sets in every form, their decoding, checking and splitting."""

from bigtransfer.data.forms import cache_folder, open_anything, open_dataset, open_images
from bigtransfer.data.sources import ImageSet, Splits, native_size, together

__all__ = [
    "ImageSet",
    "Splits",
    "cache_folder",
    "native_size",
    "open_anything",
    "open_dataset",
    "open_images",
    "together",
]
