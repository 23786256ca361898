"""Small networks on equinox; a network takes one point, and is mapped over batches."""

from probgen.nets.attention import Transformer
from probgen.nets.constant import Constant, trainable
from probgen.nets.masked import MaskedMLP
from probgen.nets.mlp import MLP, Conditioned
from probgen.nets.modulated import Modulated
from probgen.nets.ordered_net import OrderedNet
from probgen.nets.residual import Residual
from probgen.nets.row_encoder import RowEncoder
from probgen.nets.symbol_net import SymbolNet
from probgen.nets.time_features import TimeFeatures

__all__ = [
    "MLP",
    "Conditioned",
    "Constant",
    "MaskedMLP",
    "Modulated",
    "OrderedNet",
    "Residual",
    "RowEncoder",
    "SymbolNet",
    "TimeFeatures",
    "Transformer",
    "trainable",
]
