"""Distributions from generative models: paths, denoisers, samplers, and what can be made of them."""

from probgen.generative.absorbing_diffusion import AbsorbingDiffusion, LearnedAbsorbingDiffusion
from probgen.generative.any_subset import AnySubset, LearnedAnySubset, speculate
from probgen.generative.autoencoder import Autoencoder, LearnedAutoencoder
from probgen.generative.autoregressive_layers import AutoregressiveLayers
from probgen.generative.bayesian_flow import BayesianFlow, BeliefProcess, LearnedBayesianFlow
from probgen.generative.blackout import Blackout, LearnedBlackout, births
from probgen.generative.boltzmann import DeepBoltzmann, LearnedBoltzmann
from probgen.generative.born_machine import BornMachine, LearnedBornMachine
from probgen.generative.calibrated_denoiser import CalibratedDenoiser, calibrated
from probgen.generative.cfg_plus_plus import CFGPlusPlus
from probgen.generative.chain_bound import ChainBound, chain_bound
from probgen.generative.chow_liu import ChowLiu, LearnedChowLiu
from probgen.generative.circuit import Circuit, LearnedCircuit
from probgen.generative.classifier_guidance import ClassifierGuidance
from probgen.generative.closest_joint import ClosestJoint, closest_joint, unary_conditionals
from probgen.generative.code_law import CodeLaw, GaussianCode, SymbolCode
from probgen.generative.code_prior import CodePrior, LearnedCodePrior
from probgen.generative.coded_diffusion import CodedDiffusion, LearnedCodedDiffusion
from probgen.generative.condition_dropout import ConditionDropout, LearnedConditionDropout
from probgen.generative.conditional_energies import ConditionalEnergies, LearnedConditionalEnergies
from probgen.generative.conditional_transport import ConditionalTransport, LearnedGenerator, conditional_transport_cost
from probgen.generative.consistency import Consistency, LearnedConsistency
from probgen.generative.consistency_trajectory import ConsistencyTrajectory, LearnedTrajectory, TrajectoryDenoiser
from probgen.generative.continuous_adjoint import ContinuousAdjoint
from probgen.generative.continuous_flow import ContinuousFlow, LearnedContinuousFlow
from probgen.generative.contrastive import ContrastiveEncoder, LearnedContrastiveEncoder
from probgen.generative.controlled import Controlled, LearnedControlled
from probgen.generative.corrected import Corrected, Correction, Guided, Particles, Product, Tempered, Tilted
from probgen.generative.corruption import (
    AbsorbingCorruption,
    Corruption,
    GaussianCorruption,
    NeighbourCorruption,
    UniformCorruption,
)
from probgen.generative.coupled_mixture import CoupledMixture, LearnedCoupledMixture
from probgen.generative.coupling import ConditionalOT, Coupling, EntropicOT, GivenPairs, Independent, OptimalTransport
from probgen.generative.coupling_layers import CouplingLayers
from probgen.generative.d3pm import D3PM, LearnedD3PM
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser, GaussianMixture, Guidance, Posterior
from probgen.generative.dequantized_flow import DequantizedFlow, LearnedDequantizedFlow
from probgen.generative.diffuse_vae import DiffuseVAE, LearnedDiffuseVAE
from probgen.generative.diffusion import Diffusion, LearnedDenoiser, LearnedDiffusion
from probgen.generative.diffusion_classifier import class_log_probs
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete
from probgen.generative.discrete_process import DiscreteProcess
from probgen.generative.dpm_solver_v3 import DPMSolverV3, ModelStatistics, model_statistics
from probgen.generative.embedded_denoiser import ClampedDenoiser, EmbeddedDenoiser, EmbeddedTable
from probgen.generative.embedded_diffusion import EmbeddedDiffusion, LearnedEmbeddedDiffusion
from probgen.generative.ended import Ended
from probgen.generative.energy import Energy, GaussianEnergy, LearnedEnergy, NeuralEnergy
from probgen.generative.energy_model import Compositional, LearnedEnergyModel, NoiseContrast
from probgen.generative.entropic_transport import EntropicTransport, LearnedPlan
from probgen.generative.event import Event, EventDenoiser, Happened
from probgen.generative.exposure_bias import EpsilonScaling, ExposureBias, exposure_bias
from probgen.generative.family import Family, Now, Solved, Spec, Training
from probgen.generative.flow import Flow, LearnedFlow
from probgen.generative.flow_layers import Bijection, FlowLayers
from probgen.generative.flow_matching import FlowMatching, LearnedVelocity, VelocityDenoiser
from probgen.generative.flow_transform import FlowTransform
from probgen.generative.from_flowjax import FromFlowjax, LearnedFlowjax, from_flowjax
from probgen.generative.gan import GAN, LearnedGAN
from probgen.generative.glauber import Glauber, LearnedGlauber, heat_bath
from probgen.generative.graph_vae import GraphVAE, LearnedGraphVAE
from probgen.generative.guidance import block_mean, kept, observed_mixture
from probgen.generative.guidance_free import GuidanceFree, LearnedGuidanceFree
from probgen.generative.guided_distillation import GuidedDistillation
from probgen.generative.hard_consistency import HardConsistency
from probgen.generative.idempotent_network import IdempotentNetwork, LearnedIdempotent
from probgen.generative.implicit import Implicit, LearnedImplicit
from probgen.generative.integral_circuit import (
    GaussianUnits,
    IntegralCircuit,
    IntegralUnits,
    LearnedIntegralCircuit,
    NeuralUnits,
)
from probgen.generative.interpolant import (
    GaussianInterpolant,
    Interpolant,
    InterpolantField,
    Straight,
    Trigonometric,
    interpolant_path,
)
from probgen.generative.latent_model import LatentModel, LearnedLatentModel
from probgen.generative.latent_objective import ELBO, IWAE, ForwardChi2, InfoVAE, LatentObjective
from probgen.generative.latent_ode import LatentODE, LearnedLatentODE
from probgen.generative.latent_report import LatentReport
from probgen.generative.latent_tree import HiddenChowLiu, RandomRegions, Structure
from probgen.generative.learned import Exactness, Learned
from probgen.generative.learned_encoder import LearnedEncoder
from probgen.generative.likelihood import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, Likelihood
from probgen.generative.linear_path import CompleteRecipe, LinearPath, phase_space, spatial
from probgen.generative.marginal_model import LearnedMarginalModel, MarginalModel
from probgen.generative.mixture_density import LearnedMixtureDensity, MixtureDensity
from probgen.generative.moment_control import MomentControlled, moment_control
from probgen.generative.monotone_boltzmann import LearnedMonotoneBoltzmann, MeanField, MonotoneBoltzmann
from probgen.generative.multimarginal import LearnedMarginals, LearnedSimplexField, Multimarginal
from probgen.generative.multimodal_diffusion import JointDenoiser, LearnedMultimodal, MultimodalDiffusion
from probgen.generative.multivariate_diffusion import (
    Ancestral,
    LearnedMultivariateDiffusion,
    LinearDenoiser,
    LinearStep,
    MixtureMean,
    MultivariateDiffusion,
    ReverseSDE,
)
from probgen.generative.nested_diffusion import LearnedNested, NestedDiffusion
from probgen.generative.neural_divergence import Critic, NeuralDivergence, neural_divergence
from probgen.generative.ode_solver import AdaptiveSteps, EulerSteps, HeunSteps, OdeSolver, RungeKuttaSteps
from probgen.generative.paired_flow import PairedFlow, couple
from probgen.generative.path import VE, VP, Cosine, Path, Rectified, SubVP, even_log_snr, even_times, karras_times
from probgen.generative.phase_bridge import LearnedPhaseBridge, PhaseBridge, phase_step
from probgen.generative.poisson_flow import LearnedPoissonFlow, PoissonFlow, PoissonKernel
from probgen.generative.principal_components import LearnedComponents, PrincipalComponents
from probgen.generative.process_diffusion import (
    LearnedProcessDiffusion,
    OUNoise,
    ProcessDiffusion,
    ProcessNoise,
    ProcessUnits,
    SmoothNoise,
)
from probgen.generative.progressive_distillation import ProgressiveDistillation, two_as_one
from probgen.generative.quantised_autoencoder import LearnedQuantised, QuantisedAutoencoder
from probgen.generative.refinement import refine
from probgen.generative.replacement import Replacement
from probgen.generative.sampler import (
    DDIM,
    DPM2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Sampler,
    UniPC,
    flow_log_density,
    sample_path,
    trajectory,
)
from probgen.generative.saving import load, save
from probgen.generative.scalar_transform import Affine, LogisticMixture, ScalarTransform, Spline
from probgen.generative.self_supervised_vae import Downscaled, LearnedSelfSupervisedVAE, SelfSupervisedVAE, Summary
from probgen.generative.simplex import GaussianMarginals, SimplexField, SimplexPath, path_cost, shorter_path
from probgen.generative.sliced_flow import LearnedSlicedFlow, SlicedFlow
from probgen.generative.snapshot_bridge import DriftFamily, LearnedDynamics, LinearDrift, LotkaVolterra, SnapshotBridge
from probgen.generative.source import NearCondition, NormalSource, Samples, Source
from probgen.generative.step_unrolled import LearnedStepUnrolled, StepUnrolled, unrolled_loss
from probgen.generative.stochastic_interpolant import (
    LearnedField,
    LearnedInterpolant,
    StochasticInterpolant,
    schroedinger_bridge,
)
from probgen.generative.structured_vae import (
    ChainPrior,
    HiddenMarkov,
    LearnedStructuredVAE,
    LinearDynamics,
    StructuredVAE,
)
from probgen.generative.superposition import Both, Either, Superposed
from probgen.generative.table import DiscreteTarget, Ising, Table
from probgen.generative.tractable import Tractable
from probgen.generative.training import fit
from probgen.generative.training_free import TrainingFree, published_strength
from probgen.generative.transformer_layers import TransformerLayers
from probgen.generative.unmasking import Unmasked, any_order_bound, ordered_log_prob, random_ranks, unmask
from probgen.generative.vae import VAE, LearnedRealVAE, LearnedVAE, LogEvidence
from probgen.generative.vae_net import Amortised, Encoder, GradientOrigin, LatentPrior, Relevance, StandardNormal
from probgen.generative.von_mises_fisher import VonMisesFisher

__all__ = [
    "D3PM",
    "DDIM",
    "DPM2M",
    "ELBO",
    "GAN",
    "IWAE",
    "VAE",
    "VE",
    "VP",
    "AbsorbingCorruption",
    "AbsorbingDiffusion",
    "AdaptiveSteps",
    "Affine",
    "Amortised",
    "Ancestral",
    "AnySubset",
    "Autoencoder",
    "AutoregressiveLayers",
    "BayesianFlow",
    "BeliefProcess",
    "BernoulliLikelihood",
    "Bijection",
    "Blackout",
    "BornMachine",
    "Both",
    "CFGPlusPlus",
    "CalibratedDenoiser",
    "CategoricalLikelihood",
    "ChainBound",
    "ChainPrior",
    "ChowLiu",
    "Circuit",
    "ClampedDenoiser",
    "ClassifierGuidance",
    "ClosestJoint",
    "CodeLaw",
    "CodePrior",
    "CodedDiffusion",
    "CompleteRecipe",
    "Compositional",
    "ConditionDropout",
    "ConditionalEnergies",
    "ConditionalOT",
    "ConditionalTransport",
    "Consistency",
    "ConsistencyTrajectory",
    "ContinuousAdjoint",
    "ContinuousFlow",
    "ContrastiveEncoder",
    "Controlled",
    "Corrected",
    "Correction",
    "Corruption",
    "Cosine",
    "CoupledMixture",
    "Coupling",
    "CouplingLayers",
    "Critic",
    "DPMSolverV3",
    "DeepBoltzmann",
    "DenoisedDistribution",
    "Denoiser",
    "DequantizedFlow",
    "DiffuseVAE",
    "Diffusion",
    "DiscreteFamily",
    "DiscreteProcess",
    "DiscreteTarget",
    "Downscaled",
    "DriftFamily",
    "Either",
    "EmbeddedDenoiser",
    "EmbeddedDiffusion",
    "EmbeddedTable",
    "Encoder",
    "Ended",
    "Energy",
    "EntropicOT",
    "EntropicTransport",
    "EpsilonScaling",
    "EulerMaruyama",
    "EulerSteps",
    "Event",
    "EventDenoiser",
    "Exactness",
    "ExposureBias",
    "Family",
    "Flow",
    "FlowLayers",
    "FlowMatching",
    "FlowTransform",
    "ForwardChi2",
    "FromFlowjax",
    "GaussianCode",
    "GaussianCorruption",
    "GaussianEnergy",
    "GaussianInterpolant",
    "GaussianLikelihood",
    "GaussianMarginals",
    "GaussianMixture",
    "GaussianUnits",
    "GivenPairs",
    "Glauber",
    "GradientOrigin",
    "GraphVAE",
    "Guidance",
    "GuidanceFree",
    "Guided",
    "GuidedDistillation",
    "Happened",
    "HardConsistency",
    "Heun",
    "HeunSteps",
    "HiddenChowLiu",
    "HiddenMarkov",
    "IdempotentNetwork",
    "Implicit",
    "Independent",
    "InfoVAE",
    "IntegralCircuit",
    "IntegralUnits",
    "Interpolant",
    "InterpolantField",
    "Ising",
    "JointDenoiser",
    "LatentModel",
    "LatentODE",
    "LatentObjective",
    "LatentPrior",
    "LatentReport",
    "Learned",
    "LearnedAbsorbingDiffusion",
    "LearnedAnySubset",
    "LearnedAutoencoder",
    "LearnedBayesianFlow",
    "LearnedBlackout",
    "LearnedBoltzmann",
    "LearnedBornMachine",
    "LearnedChowLiu",
    "LearnedCircuit",
    "LearnedCodePrior",
    "LearnedCodedDiffusion",
    "LearnedComponents",
    "LearnedConditionDropout",
    "LearnedConditionalEnergies",
    "LearnedConsistency",
    "LearnedContinuousFlow",
    "LearnedContrastiveEncoder",
    "LearnedControlled",
    "LearnedCoupledMixture",
    "LearnedD3PM",
    "LearnedDenoiser",
    "LearnedDequantizedFlow",
    "LearnedDiffuseVAE",
    "LearnedDiffusion",
    "LearnedDiscrete",
    "LearnedDynamics",
    "LearnedEmbeddedDiffusion",
    "LearnedEncoder",
    "LearnedEnergy",
    "LearnedEnergyModel",
    "LearnedField",
    "LearnedFlow",
    "LearnedFlowjax",
    "LearnedGAN",
    "LearnedGenerator",
    "LearnedGlauber",
    "LearnedGraphVAE",
    "LearnedGuidanceFree",
    "LearnedIdempotent",
    "LearnedImplicit",
    "LearnedIntegralCircuit",
    "LearnedInterpolant",
    "LearnedLatentModel",
    "LearnedLatentODE",
    "LearnedMarginalModel",
    "LearnedMarginals",
    "LearnedMixtureDensity",
    "LearnedMonotoneBoltzmann",
    "LearnedMultimodal",
    "LearnedMultivariateDiffusion",
    "LearnedNested",
    "LearnedPhaseBridge",
    "LearnedPlan",
    "LearnedPoissonFlow",
    "LearnedProcessDiffusion",
    "LearnedQuantised",
    "LearnedRealVAE",
    "LearnedSelfSupervisedVAE",
    "LearnedSimplexField",
    "LearnedSlicedFlow",
    "LearnedStepUnrolled",
    "LearnedStructuredVAE",
    "LearnedTrajectory",
    "LearnedVAE",
    "LearnedVelocity",
    "Likelihood",
    "LinearDenoiser",
    "LinearDrift",
    "LinearDynamics",
    "LinearPath",
    "LinearStep",
    "LogEvidence",
    "LogisticMixture",
    "LotkaVolterra",
    "MarginalModel",
    "MeanField",
    "MixtureDensity",
    "MixtureMean",
    "ModelStatistics",
    "MomentControlled",
    "MonotoneBoltzmann",
    "Multimarginal",
    "MultimodalDiffusion",
    "MultivariateDiffusion",
    "NearCondition",
    "NeighbourCorruption",
    "NestedDiffusion",
    "NeuralDivergence",
    "NeuralEnergy",
    "NeuralUnits",
    "NoiseContrast",
    "NormalSource",
    "Now",
    "OUNoise",
    "OdeSolver",
    "OptimalTransport",
    "PairedFlow",
    "Particles",
    "Path",
    "PhaseBridge",
    "PoissonFlow",
    "PoissonKernel",
    "Posterior",
    "PredictorCorrector",
    "PrincipalComponents",
    "ProcessDiffusion",
    "ProcessNoise",
    "ProcessUnits",
    "Product",
    "ProgressiveDistillation",
    "QuantisedAutoencoder",
    "RandomRegions",
    "Rectified",
    "Relevance",
    "Replacement",
    "ReverseSDE",
    "RungeKuttaSteps",
    "Sampler",
    "Samples",
    "ScalarTransform",
    "SelfSupervisedVAE",
    "SimplexField",
    "SimplexPath",
    "SlicedFlow",
    "SmoothNoise",
    "SnapshotBridge",
    "Solved",
    "Source",
    "Spec",
    "Spline",
    "StandardNormal",
    "StepUnrolled",
    "StochasticInterpolant",
    "Straight",
    "Structure",
    "StructuredVAE",
    "SubVP",
    "Summary",
    "Superposed",
    "SymbolCode",
    "Table",
    "Tempered",
    "Tilted",
    "Tractable",
    "Training",
    "TrainingFree",
    "TrajectoryDenoiser",
    "TransformerLayers",
    "Trigonometric",
    "UniPC",
    "UniformCorruption",
    "Unmasked",
    "VelocityDenoiser",
    "VonMisesFisher",
    "any_order_bound",
    "births",
    "block_mean",
    "calibrated",
    "chain_bound",
    "class_log_probs",
    "closest_joint",
    "conditional_transport_cost",
    "couple",
    "even_log_snr",
    "even_times",
    "exposure_bias",
    "fit",
    "flow_log_density",
    "from_flowjax",
    "heat_bath",
    "interpolant_path",
    "karras_times",
    "kept",
    "load",
    "model_statistics",
    "moment_control",
    "neural_divergence",
    "observed_mixture",
    "ordered_log_prob",
    "path_cost",
    "phase_space",
    "phase_step",
    "published_strength",
    "random_ranks",
    "refine",
    "sample_path",
    "save",
    "schroedinger_bridge",
    "shorter_path",
    "spatial",
    "speculate",
    "trajectory",
    "two_as_one",
    "unary_conditionals",
    "unmask",
    "unrolled_loss",
]
