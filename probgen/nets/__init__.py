"""Small networks on equinox; a network takes one point, and is mapped over batches."""

from probgen.nets.constant import Constant, trainable
from probgen.nets.mlp import MLP, Conditioned
from probgen.nets.time_features import TimeFeatures

__all__ = ["MLP", "Conditioned", "Constant", "TimeFeatures", "trainable"]
