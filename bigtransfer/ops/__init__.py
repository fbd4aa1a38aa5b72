"""The two operations BiT adds to a ResNet: weight standardization, and GroupNorm followed by ReLU."""

from bigtransfer.ops.plain import group_norm_relu, standardize

__all__ = ["group_norm_relu", "standardize"]
