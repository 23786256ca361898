"""Causal questions and sensitivity analysis on programs, graphs and data."""

from probgen.causal.adjusted_study import AdjustedStudy
from probgen.causal.adjustment import adjustment_sets, efficient_adjustment_set, is_adjustment_set
from probgen.causal.adjustment_question import Adjustment
from probgen.causal.aipw import AIPW
from probgen.causal.analysis import Analysis, Band, Contour, Curves, Line, Mark, Measure, Scenario
from probgen.causal.asymmetric_learners import Expectile, LinearQuantile
from probgen.causal.axioms import Axioms
from probgen.causal.balancing import Balancing, Discrepancy, EnergyDistance, MaximumMeanDiscrepancy
from probgen.causal.balke_pearl import BalkePearl
from probgen.causal.bound_scores import ScoredBounds, expectile_scores, marginal_scores, scored_bounds
from probgen.causal.cate import DRLearner, EffectModel, FittedEffect, RLearner, SLearner, TLearner, XLearner, cate
from probgen.causal.cinelli_hazlett import CinelliHazlett
from probgen.causal.confound import confound
from probgen.causal.confounded_effect import ConfoundedEffect, ConfounderPosterior
from probgen.causal.continuous_marginal_sensitivity import ContinuousMarginalSensitivity
from probgen.causal.contrast import (
    ControlledDirectEffect,
    NaturalDirectEffect,
    NaturalIndirectEffect,
    PathSpecificEffect,
    TotalEffect,
)
from probgen.causal.cross_fit import CrossFit
from probgen.causal.discrete_scm import DiscreteSCM
from probgen.causal.divergence import KL, ChiSquare, Divergence, Hellinger, TotalVariation
from probgen.causal.divergence_bounds import divergence_bounds, extreme_means
from probgen.causal.dml import InteractiveIV, PartiallyLinear, PartiallyLinearIV
from probgen.causal.e_value import EValue, bounding_factor, e_value
from probgen.causal.effect import Effect
from probgen.causal.effect_measure import (
    EffectMeasure,
    HazardRatio,
    MeanDifference,
    OddsRatio,
    RiskDifference,
    RiskRatio,
)
from probgen.causal.estimand import Estimand
from probgen.causal.estimate import Estimate
from probgen.causal.estimation import estimate
from probgen.causal.estimator import Estimator
from probgen.causal.expectile_bounds import expectile_bounds, worst_expectiles
from probgen.causal.f_sensitivity import FSensitivity
from probgen.causal.fitted_program import FittedProgram
from probgen.causal.front_door import conditional_front_doors, front_door_sets, is_front_door
from probgen.causal.g_formula import GFormula, Standardization
from probgen.causal.graph import CausalGraph
from probgen.causal.graph_source import graph
from probgen.causal.hedge import Hedge, RecantingDistrict
from probgen.causal.identify import identify
from probgen.causal.implications import (
    GTest,
    ImplicationCheck,
    Independence,
    IndependenceTest,
    PartialCorrelation,
    TestResult,
    check_implications,
    implications,
)
from probgen.causal.instruments import conditional_instruments, instruments, is_instrument
from probgen.causal.invalid_instrument import Constant, InvalidInstrument
from probgen.causal.ipw import IPW
from probgen.causal.learners import Linear, LinearIndex, Logistic
from probgen.causal.linear_effect import LinearEffect
from probgen.causal.loss_bounds import LossBounds
from probgen.causal.manski import Manski, imbens_manski
from probgen.causal.marginal_bounds import (
    continuous_marginal_bounds,
    marginal_bounds,
    marginal_effect_bounds,
    quantile_balancing,
    weighted_bounds,
)
from probgen.causal.marginal_sensitivity import MarginalSensitivity
from probgen.causal.matched_pairs import MatchedPairs
from probgen.causal.matching import Matching
from probgen.causal.omitted_variable import OmittedVariableBias, RieszEstimate
from probgen.causal.outcome_model import ByArm, Joint, OutcomeModel
from probgen.causal.overlap import Overlap, Trim
from probgen.causal.pair_statistic import PairStatistic, SignedRank, SignTest
from probgen.causal.panel import PanelPartiallyLinear
from probgen.causal.posterior_bias import PosteriorBias
from probgen.causal.problem import Problem
from probgen.causal.query import Query
from probgen.causal.refutation import (
    Bootstrap,
    DummyOutcome,
    PlaceboTreatment,
    RandomCommonCause,
    Refutation,
    SubsetOfData,
    refute,
)
from probgen.causal.regression import PartialR2, Regression
from probgen.causal.response_program import ResponseProgram
from probgen.causal.robustness import benchmark_bound, extreme_robustness_value, robustness_value
from probgen.causal.rosenbaum import RosenbaumBounds, amplification, gamma_of_amplification
from probgen.causal.sensitivity import Sensitivity, sensitivity
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.streaming_gmm import MomentState, StreamedMoments, StreamingGMM, random_scaling_quantile
from probgen.causal.study import Study
from probgen.causal.target import ATE, ATO, ATT, Target
from probgen.causal.tmle import TMLE
from probgen.causal.verification import Verification
from probgen.causal.weighting import Weighting
from probgen.causal.weights_r2 import WeightsR2
from probgen.causal.worlds import Worlds, worlds
from probgen.program.interventions import FromWorld, Intervention, NewMechanism
from probgen.program.structural import GumbelMax, Independent, Monotone

__all__ = [
    "AIPW",
    "ATE",
    "ATO",
    "ATT",
    "IPW",
    "KL",
    "TMLE",
    "AdjustedStudy",
    "Adjustment",
    "Analysis",
    "Axioms",
    "Balancing",
    "BalkePearl",
    "Band",
    "Bootstrap",
    "ByArm",
    "CausalGraph",
    "ChiSquare",
    "CinelliHazlett",
    "ConfoundedEffect",
    "ConfounderPosterior",
    "Constant",
    "ContinuousMarginalSensitivity",
    "Contour",
    "ControlledDirectEffect",
    "CrossFit",
    "Curves",
    "DRLearner",
    "Discrepancy",
    "DiscreteSCM",
    "Divergence",
    "DummyOutcome",
    "EValue",
    "Effect",
    "EffectMeasure",
    "EffectModel",
    "EnergyDistance",
    "Estimand",
    "Estimate",
    "Estimator",
    "Expectile",
    "FSensitivity",
    "FittedEffect",
    "FittedProgram",
    "FromWorld",
    "GFormula",
    "GTest",
    "GumbelMax",
    "HazardRatio",
    "Hedge",
    "Hellinger",
    "ImplicationCheck",
    "Independence",
    "IndependenceTest",
    "Independent",
    "InteractiveIV",
    "Intervention",
    "InvalidInstrument",
    "Joint",
    "Line",
    "Linear",
    "LinearEffect",
    "LinearIndex",
    "LinearQuantile",
    "Logistic",
    "LossBounds",
    "Manski",
    "MarginalSensitivity",
    "Mark",
    "MatchedPairs",
    "Matching",
    "MaximumMeanDiscrepancy",
    "MeanDifference",
    "Measure",
    "MomentState",
    "Monotone",
    "NaturalDirectEffect",
    "NaturalIndirectEffect",
    "NewMechanism",
    "OddsRatio",
    "OmittedVariableBias",
    "OutcomeModel",
    "Overlap",
    "PairStatistic",
    "PanelPartiallyLinear",
    "PartialCorrelation",
    "PartialR2",
    "PartiallyLinear",
    "PartiallyLinearIV",
    "PathSpecificEffect",
    "PlaceboTreatment",
    "PosteriorBias",
    "Problem",
    "Query",
    "Question",
    "RLearner",
    "RandomCommonCause",
    "RecantingDistrict",
    "Refutation",
    "Regression",
    "ResponseProgram",
    "RieszEstimate",
    "RiskDifference",
    "RiskRatio",
    "RosenbaumBounds",
    "SLearner",
    "Scenario",
    "ScoredBounds",
    "Sensitivity",
    "SensitivityModel",
    "SignTest",
    "SignedRank",
    "Standardization",
    "StreamedMoments",
    "StreamingGMM",
    "Study",
    "SubsetOfData",
    "TLearner",
    "Target",
    "TestResult",
    "TotalEffect",
    "TotalVariation",
    "Trim",
    "Verification",
    "Weighting",
    "WeightsR2",
    "Worlds",
    "XLearner",
    "adjustment_sets",
    "amplification",
    "benchmark_bound",
    "bounding_factor",
    "cate",
    "check_implications",
    "conditional_front_doors",
    "conditional_instruments",
    "confound",
    "continuous_marginal_bounds",
    "divergence_bounds",
    "e_value",
    "efficient_adjustment_set",
    "estimate",
    "expectile_bounds",
    "expectile_scores",
    "extreme_means",
    "extreme_robustness_value",
    "front_door_sets",
    "gamma_of_amplification",
    "graph",
    "identify",
    "imbens_manski",
    "implications",
    "instruments",
    "is_adjustment_set",
    "is_front_door",
    "is_instrument",
    "marginal_bounds",
    "marginal_effect_bounds",
    "marginal_scores",
    "quantile_balancing",
    "random_scaling_quantile",
    "refute",
    "robustness_value",
    "scored_bounds",
    "sensitivity",
    "weighted_bounds",
    "worlds",
    "worst_expectiles",
]
