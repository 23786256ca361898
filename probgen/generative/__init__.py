"""Distributions from generative models: paths, denoisers, samplers, and what can be made of them."""

from probgen.generative.corrected import Corrected, Correction, Guided, Particles, Product, Tempered, Tilted
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser, GaussianMixture, Guidance, Posterior
from probgen.generative.diffusion import Diffusion, LearnedDenoiser, LearnedDiffusion
from probgen.generative.family import Family, Now, Solved, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.path import VE, VP, Cosine, Path, Rectified, SubVP, even_log_snr, even_times
from probgen.generative.sampler import DDIM, DPM2M, EulerMaruyama, Heun, Sampler, UniPC, flow_log_density, sample_path
from probgen.generative.saving import load, save
from probgen.generative.superposition import Both, Either, Superposed
from probgen.generative.training import fit

__all__ = [
    "DDIM",
    "DPM2M",
    "VE",
    "VP",
    "Both",
    "Corrected",
    "Correction",
    "Cosine",
    "DenoisedDistribution",
    "Denoiser",
    "Diffusion",
    "Either",
    "EulerMaruyama",
    "Exactness",
    "Family",
    "GaussianMixture",
    "Guidance",
    "Guided",
    "Heun",
    "Learned",
    "LearnedDenoiser",
    "LearnedDiffusion",
    "Now",
    "Particles",
    "Path",
    "Posterior",
    "Product",
    "Rectified",
    "Sampler",
    "Solved",
    "Spec",
    "SubVP",
    "Superposed",
    "Tempered",
    "Tilted",
    "Training",
    "UniPC",
    "even_log_snr",
    "even_times",
    "fit",
    "flow_log_density",
    "load",
    "sample_path",
    "save",
]
