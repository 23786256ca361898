"""Probabilistic programs in NumPyro, and every way to answer questions with them.

A model is written once, as a NumPyro program. ``pg.Model`` adds data and labels; ``pg.infer`` answers, by any method, as one ArviZ DataTree.
"""

from probgen.backends.registry import register as register_backend  # noqa: F401
from probgen.base.errors import DataError as DataError
from probgen.base.errors import Ended as Ended
from probgen.base.errors import MethodError as MethodError
from probgen.base.errors import ModelError as ModelError
from probgen.base.errors import NotIdentified as NotIdentified
from probgen.base.errors import ProbgenError as ProbgenError
from probgen.base.errors import ProbgenWarning as ProbgenWarning
from probgen.base.errors import StoreError as StoreError
from probgen.infer.infer import RunFailed as RunFailed
from probgen.infer.infer import infer as infer
from probgen.infer.nuts import HMC as HMC
from probgen.infer.nuts import NUTS as NUTS
from probgen.program.model import Model as Model
from probgen.run.compiled import use_compilation_cache as use_compilation_cache

__version__ = "0.1.0"
