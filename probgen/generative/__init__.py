"""Distributions from generative models: paths, denoisers, samplers, and what can be made of them."""

from probgen.generative.corrected import Corrected, Correction, Guided, Particles, Product, Tempered, Tilted
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser, GaussianMixture, Guidance, Posterior
from probgen.generative.path import VE, VP, Cosine, Path, Rectified, SubVP, even_log_snr, even_times
from probgen.generative.sampler import DDIM, DPM2M, EulerMaruyama, Heun, Sampler, UniPC, flow_log_density, sample_path
from probgen.generative.superposition import Both, Either, Superposed

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
    "Either",
    "EulerMaruyama",
    "GaussianMixture",
    "Guidance",
    "Guided",
    "Heun",
    "Particles",
    "Path",
    "Posterior",
    "Product",
    "Rectified",
    "Sampler",
    "SubVP",
    "Superposed",
    "Tempered",
    "Tilted",
    "UniPC",
    "even_log_snr",
    "even_times",
    "flow_log_density",
    "sample_path",
]
