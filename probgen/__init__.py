"""Probabilistic programs in NumPyro, and every way to answer questions with them.

A model is written once, as a NumPyro program. ``pg.Model`` adds data and labels; ``pg.infer`` answers, by any method,
as one ArviZ DataTree.
"""

import importlib
from typing import Any

from probgen.amortized.amortize import amortize
from probgen.amortized.composed_score import ComposedScore
from probgen.amortized.estimator import NPE, ConsistencyPosterior, FlowMatching, ScorePosterior
from probgen.amortized.gnpe import GNPE
from probgen.amortized.importance_sampling import ImportanceSampling
from probgen.amortized.joint import Joint
from probgen.amortized.nle import NLE
from probgen.amortized.nre import NRE
from probgen.amortized.path_posterior import PathPosterior
from probgen.amortized.pfn import PFN
from probgen.backends.registry import register as register_backend
from probgen.base.errors import (
    DataError,
    Ended,
    MethodError,
    ModelError,
    NotIdentified,
    ProbgenError,
    ProbgenWarning,
    StoreError,
)
from probgen.check.check import check
from probgen.feynman_kac.conditional import Ancestry
from probgen.feynman_kac.guiding import guide
from probgen.feynman_kac.markov_tree import SDE, MarkovTree
from probgen.feynman_kac.resampling import SSP, Killing, Multinomial, Residual, Stratified, Systematic
from probgen.infer.chees import ChEES
from probgen.infer.discrete_gibbs import DiscreteHMCGibbs, MixedHMC
from probgen.infer.ensemble import AIES, ESS
from probgen.infer.exact import Exact
from probgen.infer.feynman_kac import FeynmanKac
from probgen.infer.feynman_kac_training import FeynmanKacTraining
from probgen.infer.forward_chi2 import ForwardChi2
from probgen.infer.guides import BNAF, ELBO, IAF, IWAE, FullRank, LowRank, MeanField, Renyi
from probgen.infer.hmcecs import HMCECS
from probgen.infer.infer import RunFailed, infer
from probgen.infer.langevin import MALA, Barker
from probgen.infer.laplace import Laplace
from probgen.infer.mclmc import MCLMC, AdjustedMCLMC
from probgen.infer.meads import MEADS
from probgen.infer.methods import methods
from probgen.infer.nested_sampling import NestedSampling
from probgen.infer.neutra import NeuTra
from probgen.infer.nuts import HMC, NUTS
from probgen.infer.particle_filter import ParticleFilter
from probgen.infer.particle_gibbs import ParticleGibbs
from probgen.infer.pathfinder import Pathfinder
from probgen.infer.pmmh import PMMH
from probgen.infer.predict import log_likelihood, predict, simulate
from probgen.infer.random_walk import RandomWalk
from probgen.infer.sgmcmc import SGHMC, SGLD, SGNHT
from probgen.infer.slice import EllipticalSlice
from probgen.infer.smc import SMC, DataTempering
from probgen.infer.smc2 import SMC2
from probgen.infer.smoothing import FFBS, Genealogy
from probgen.infer.stein import SVGD
from probgen.infer.stein_vi import SteinVI
from probgen.infer.svi import SVI
from probgen.kernels.moves import DifferentialEvolution
from probgen.program.hamiltonian import Hamiltonian
from probgen.program.interventions import do, from_world
from probgen.program.model import Model
from probgen.program.proposals import Auxiliary, Bootstrap, Guided, LocallyLinear
from probgen.program.rao_blackwellised import RaoBlackwellised
from probgen.report.html import report
from probgen.run.archive import load
from probgen.run.compiled import use_compilation_cache

__version__ = "0.1.0"

__all__ = [
    "AIES",
    "BNAF",
    "ELBO",
    "ESS",
    "FFBS",
    "GNPE",
    "HMC",
    "HMCECS",
    "IAF",
    "IWAE",
    "MALA",
    "MCLMC",
    "MEADS",
    "NLE",
    "NPE",
    "NRE",
    "NUTS",
    "PFN",
    "PMMH",
    "SDE",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "SMC",
    "SMC2",
    "SSP",
    "SVGD",
    "SVI",
    "AdjustedMCLMC",
    "Ancestry",
    "Auxiliary",
    "Barker",
    "Bootstrap",
    "ChEES",
    "ComposedScore",
    "ConsistencyPosterior",
    "DataError",
    "DataTempering",
    "DifferentialEvolution",
    "DiscreteHMCGibbs",
    "EllipticalSlice",
    "Ended",
    "Exact",
    "FeynmanKac",
    "FeynmanKacTraining",
    "FlowMatching",
    "ForwardChi2",
    "FullRank",
    "Genealogy",
    "Guided",
    "Hamiltonian",
    "ImportanceSampling",
    "Joint",
    "Killing",
    "Laplace",
    "LocallyLinear",
    "LowRank",
    "MarkovTree",
    "MeanField",
    "MethodError",
    "MixedHMC",
    "Model",
    "ModelError",
    "Multinomial",
    "NestedSampling",
    "NeuTra",
    "NotIdentified",
    "ParticleFilter",
    "ParticleGibbs",
    "PathPosterior",
    "Pathfinder",
    "ProbgenError",
    "ProbgenWarning",
    "RandomWalk",
    "RaoBlackwellised",
    "Renyi",
    "Residual",
    "RunFailed",
    "ScorePosterior",
    "SteinVI",
    "StoreError",
    "Stratified",
    "Systematic",
    "amortize",
    "check",
    "do",
    "from_world",
    "guide",
    "infer",
    "load",
    "log_likelihood",
    "methods",
    "predict",
    "register_backend",
    "report",
    "simulate",
    "use_compilation_cache",
]


def __getattr__(name: str) -> Any:
    if name in ("causal", "testing"):  # not everyone needs them, and all would wait for them
        return importlib.import_module(f"probgen.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
