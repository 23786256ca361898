r"""Variational autoencoders (Kingma and Welling 2014): a latent-variable model whose decoder is a network, and a guide
that is computed from the datum.

The model is :math:`z \sim p(z)`, :math:`x \mid z \sim p(x \mid z)`, in one level or several, given a condition or not;
what is trained is a bound of :math:`\log p(x)` (see the objectives), which is never called ``log_prob``. A linear model
with normal noise is probabilistic principal component analysis, whose maximum likelihood has a closed form (Tipping and
Bishop 1999) where the bound is tight: the tests check it there.

Such a model can ignore its latent variable (posterior collapse): wherever the decoder alone explains the data, or an
entry of the latent variable gains less likelihood than its divergence costs. ``LearnedVAE.report`` counts the *active
units*, those whose posterior mean varies with the datum (Burda et al. 2016), and estimates the mutual information of
datum and latent variable under the guide.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from probgen.base.errors import DataError, MethodError, ProbgenWarning
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.hamiltonian import HamiltonianMoves
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.latent_objective import ELBO, InfoVAE, LatentObjective, log_weights, mean_log_weight
from probgen.generative.latent_report import LatentReport, report_of
from probgen.generative.learned import Exactness, Learned
from probgen.generative.likelihood import BernoulliLikelihood, GaussianLikelihood, Likelihood, mean_of
from probgen.generative.standardisation import Standardisation
from probgen.generative.vae_net import Amortised, Encoder, LatentPrior, StandardNormal, VAENet
from probgen.nets import MLP, Constant, trainable

__all__ = ["VAE", "LearnedRealVAE", "LearnedVAE", "LogEvidence"]

_UNUSED = 0.05
"""Mutual information, in nats, below which a latent variable is not used."""


class VAE(Family):
    """A variational autoencoder.

    Attributes:
        likelihood: Of the data given the latent variable.
        latent: Length of the latent variable; for several levels their lengths, the top one first.
        objective: What training maximises: ``ELBO()``, ``IWAE(draws)``, ``InfoVAE(alpha, scale)``, ``ForwardChi2()``.
        encoder: ``Amortised()``, or ``GradientOrigin()`` for none.
        prior: Of the top level: ``StandardNormal()``, or ``Relevance()`` for learned variances (ARD).
        width: Length of the hidden layers of the decoder.
        depth: Number of hidden layers of the decoder; 0 for a linear map.
    """

    likelihood: Likelihood = eqx.field(static=True, default=GaussianLikelihood())
    latent: int | tuple[int, ...] = eqx.field(static=True, default=8)
    objective: LatentObjective = eqx.field(static=True, default=ELBO())
    encoder: Encoder = eqx.field(static=True, default=Amortised())
    prior: LatentPrior = eqx.field(static=True, default=StandardNormal())
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar = Training(weight_decay=0.0)

    @property
    def discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the data are integers: as the likelihood says."""
        return self.likelihood.discrete

    @property
    def levels(self) -> tuple[int, ...]:
        """Lengths of the levels, the top one first."""
        return (self.latent,) if isinstance(self.latent, int) else tuple(self.latent)

    def check(self, spec: Spec) -> None:
        parts = {"likelihood": Likelihood, "objective": LatentObjective, "encoder": Encoder, "prior": LatentPrior}
        for name, kind in parts.items():
            if not isinstance(getattr(self, name), kind):
                raise MethodError(
                    f"VAE got {name}={getattr(self, name)!r}, expected an object of class {kind.__name__}, such as "
                    f"{getattr(VAE(), name)!r}."
                )
        if not self.levels or not all(isinstance(size, int) and size > 0 for size in self.levels):
            raise MethodError(f"VAE got latent={self.latent!r}, expected a positive int, or a tuple of them.")
        if self.width < 1 or self.depth < 0:
            raise MethodError(f"VAE got width={self.width} and depth={self.depth}, expected >= 1 and >= 0.")
        self.likelihood.check(spec)
        self.objective.check()
        self.encoder.check(len(self.levels))
        simple = len(self.levels) == 1 and isinstance(self.prior, StandardNormal)
        if isinstance(self.objective, InfoVAE) and not simple:
            raise MethodError(
                f"InfoVAE compares the aggregate posterior with a standard normal prior, got latent={self.latent} and "
                f"prior={self.prior!r}. Give one level and StandardNormal(), or another objective."
            )
        self.prior.check()

    def build(self, key: PRNGKey, spec: Spec) -> VAENet:
        key_encoder, key_decoder, *keys = jax.random.split(key, 1 + len(self.levels))
        given = 0 if spec.condition is None else math.prod(spec.condition)
        levels = self.levels
        features, outputs = self.likelihood.features_size(spec), self.likelihood.outputs(spec)
        return VAENet(
            units=Standardisation(spec.shape),
            given_units=None if spec.condition is None else Standardisation(spec.condition),
            encoder=self.encoder.build(key_encoder, levels, features, given),
            priors=tuple(
                MLP(k, above + given, 2 * size, self.width, self.depth, zero=True)
                for k, above, size in zip(keys, levels[:-1], levels[1:], strict=True)
            ),
            log_scale=self.prior.build(levels[0]),
            decoder=MLP(key_decoder, levels[-1] + given, outputs, self.width, self.depth),
            noise=self.likelihood.noise(spec),
            count=Constant(jnp.ones((), jnp.float32)),
            latent=levels,
            likelihood=self.likelihood,
            prior=self.prior,
            spec=spec,
        )

    def adapt(self, key: PRNGKey, net: VAENet, x: Array, condition: Array | None) -> VAENet:
        net = eqx.tree_at(lambda n: n.count.value, net, jnp.asarray(x.shape[0], jnp.float32))
        if condition is not None and net.given_units is not None:
            net = eqx.tree_at(lambda n: n.given_units, net, net.given_units.adapted(condition))
        if self.discrete:
            return net
        net = eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))
        return eqx.tree_at(lambda n: n.noise, net, self.likelihood.adapted(net.noise, x))

    def loss(self, key: PRNGKey, net: VAENet, x: Array, condition: Array | None, now: Now) -> Scalar:
        return self.objective.loss(key, net, x, condition)

    def distribution(self, net: VAENet, spec: Spec) -> LearnedVAE:
        return (LearnedVAE if self.discrete else LearnedRealVAE)(self, spec, net)


class LogEvidence(NamedTuple):
    """An estimate of log densities by importance sampling: below the truth on average, and closer with more draws.

    Attributes:
        log_p: The estimates.
        error: Standard errors of the estimates, from the spread of the weights; too small where the guide misses part
            of the posterior.
        ess: Effective number of draws of each.
    """

    log_p: Array
    error: Array
    ess: Array


class LearnedVAE(Learned):
    """The law of a variational autoencoder: draws and a bound; ``estimate`` for a better one.

    ``model`` and ``guide`` are NumPyro programs over a plate of data, with the trained networks as they are.
    """

    offers: ClassVar = {"sample": Exactness.exact, "bound": Exactness.bound}

    family: VAE
    net: VAENet

    @property
    def support(self) -> constraints.Constraint:
        if not self.family.discrete:
            return super().support
        binary = isinstance(self.family.likelihood, BernoulliLikelihood)
        entry = constraints.boolean if binary else constraints.integer_interval(0, self.spec.values - 1)
        return constraints.independent(entry, self.event_dim)

    def draw(self, key: PRNGKey) -> Array:
        key_latent, key_datum = jax.random.split(key)
        z = self.net.push(jax.random.normal(key_latent, (sum(self.net.latent),)), self.condition)
        return jnp.asarray(self.net.law(z, self.condition).sample(key_datum))

    def bound(self, key: PRNGKey, value: Array, draws: int = 1) -> Array:
        """An unbiased estimate of a lower bound of the log density, shape that of ``value`` without the event.

        Args:
            key: Randomness.
            value: Data.
            draws: Draws of the guide per datum: with more the bound is tighter (importance-weighted).
        """
        self._ready("bound")
        return self._keyed(key, value, lambda here, key, x: here.bound_at(key, x, draws))

    def bound_at(self, key: PRNGKey, x: Array, draws: int = 1) -> Scalar:
        return mean_log_weight(log_weights(key, self.net, x, self.condition, draws).log_w)

    def estimate(
        self,
        key: PRNGKey,
        value: Array,
        draws: int = 1000,
        *,
        moves: HamiltonianMoves | None = None,
        from_prior: bool = False,
    ) -> LogEvidence:
        """The log density, estimated by importance sampling; with infinitely many draws it is exact.

        With ``moves`` that is annealed importance sampling (Neal 2001; Wu, Burda, Salakhutdinov and Grosse 2017): each
        draw is carried to the posterior through intermediate laws, and its weight stays unbiased whatever their number.
        It is for guides that miss part of the posterior. From the prior the estimate owes nothing to the guide, and so
        is a check of it.

        Args:
            key: Randomness.
            value: Data.
            draws: Draws per datum, at least 2.
            moves: ``HamiltonianMoves(temperatures=...)``; ``None`` for none.
            from_prior: Whether draws begin at the prior rather than at the guide.
        """
        self._ready("bound")
        if draws < 2:
            raise MethodError(f"estimate got draws={draws}, expected at least 2. Use 1000 or more.")
        if moves is not None and not isinstance(moves, HamiltonianMoves):
            raise MethodError(
                f"estimate got moves={moves!r}, expected HamiltonianMoves(temperatures=10), say, or None."
            )

        def at(here: LearnedVAE, key: PRNGKey, x: Array) -> LogEvidence:
            if moves is None and not from_prior:
                log_w = log_weights(key, here.net, x, here.condition, draws).log_w
            else:
                log_w = here._annealed(key, x, draws, moves, from_prior)
            shares = jax.nn.softmax(log_w)
            squares = jnp.sum(shares**2)
            error = jnp.sqrt(jnp.maximum(squares - 1 / draws, 0.0) * draws / (draws - 1))
            return LogEvidence(mean_log_weight(log_w), error, 1 / squares)

        return self._keyed(key, value, at)

    def _annealed(self, key: PRNGKey, x: Array, draws: int, moves: HamiltonianMoves | None, from_prior: bool) -> Array:
        """Log weights of draws of the guide or the prior after ``moves``, shape ``(draws,)``."""
        net, c = self.net, self.condition

        def drawn(noise: Array) -> Array:
            return net.push(noise, c) if from_prior else net.infer_from(noise, x, c)

        def ratio(z: Array) -> tuple[Scalar, Scalar]:
            log_p, log_likelihood = net.log_prior(z, c), net.log_likelihood(z, x, c)
            if from_prior:
                return log_p, log_likelihood
            log_q = net.log_q(z, x, c)
            return log_q, log_p + log_likelihood - log_q

        dim, dtype = sum(net.latent), net.features(x).dtype

        def one(key: PRNGKey) -> Scalar:
            key_start, key_moves = jax.random.split(key)
            z = drawn(jax.random.normal(key_start, (dim,), dtype))
            if moves is None:
                return ratio(z)[1]
            return moves(key_moves, z, ratio, drawn(jnp.zeros(dim, dtype)))[1]

        return jax.vmap(one)(jax.random.split(key, draws))

    def infer(self, key: PRNGKey, value: Array) -> Array:
        """A draw of the guide for each datum, shape ``(..., dim)``."""
        self._ready("bound")
        return self._keyed(key, value, lambda here, key, x: here.net.infer(key, x, here.condition))

    def encode(self, value: Array) -> Array:
        """The mean of the guide for each datum, shape ``(..., dim)``, each level with the one above at its mean."""
        self._ready("bound")
        return self.pointwise(lambda here, x: here._mean(x), (jnp.asarray(value), self.event_dim))

    def decode(self, z: Array) -> Array:
        """The mean of the data given latent variables of shape ``(..., dim)``; for categories their probabilities."""
        self._ready("sample")
        return self.pointwise(lambda here, z: mean_of(here.net.law(z, here.condition)), (jnp.asarray(z), 1))

    def _mean(self, x: Array) -> Array:
        noise = jnp.zeros(sum(self.net.latent), self.net.features(x).dtype)
        return self.net.infer_from(noise, x, self.condition)

    def _keyed(self, key: PRNGKey, value: Array, function: Callable[..., Any]) -> Any:
        value = jnp.asarray(value)
        batch = jnp.broadcast_shapes(self.batch_shape, value.shape[: value.ndim - self.event_dim])
        return self.pointwise(function, (jax.random.split(key, batch), 0), (value, self.event_dim))

    # -- diagnosis -----------------------------------------------------------------------------------------------------

    def report(self, key: PRNGKey, value: Array) -> LatentReport:
        """How the latent variable is used; a ``ProbgenWarning`` if it is not (posterior collapse).

        Args:
            key: Randomness.
            value: Data, shape ``(n, *event_shape)``; with conditions ``n`` of those must have been ``given``. Costs
                grow with the square of ``n``: 500 will do.
        """
        self._ready("bound")
        value = jnp.asarray(value)
        if value.ndim != self.event_dim + 1 or value.shape[0] < 2:
            raise DataError(
                f"report got data of shape {value.shape}, expected (n, {', '.join(map(str, self.event_shape))})."
            )
        report = report_of(key, self, value)
        if not bool(report.active.any()) or report.mutual_information < _UNUSED:
            warnings.warn(
                f"the latent variable is not used (posterior collapse): {int(report.active.sum())} of "
                f"{report.active.size} units are active, and it carries {float(report.mutual_information):.2g} nats "
                f"about the datum. Weaken the decoder, lower the noise of the likelihood, or train with "
                f"objective=InfoVAE(), which does not penalise that information.",
                ProbgenWarning,
                stacklevel=2,
            )
        return report

    def signal_to_noise(
        self, key: PRNGKey, value: Array, objective: LatentObjective | None = None, replicates: int = 100
    ) -> Array:
        """Mean over the weights of the encoder of ``|mean| / standard deviation`` of the gradient of an objective.

        Args:
            key: Randomness.
            value: A batch, shape ``(n, *event_shape)``.
            objective: Whose gradient; the family's own if ``None``.
            replicates: Independent gradients; without any signal the answer is about ``0.8 / sqrt(replicates)``.
        """
        self._ready("bound")
        objective = self.family.objective if objective is None else objective
        weights, fixed = eqx.partition(self.net.encoder, trainable(self.net.encoder))

        def loss(weights: Any, key: PRNGKey) -> Scalar:
            net = eqx.tree_at(lambda n: n.encoder, self.net, eqx.combine(weights, fixed))
            return objective.loss(key, net, jnp.asarray(value), self.condition)

        found = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(weights, jax.random.split(key, replicates))
        flat = jnp.concatenate([leaf.reshape(replicates, -1) for leaf in jax.tree.leaves(found)], 1)
        spread = flat.std(0)
        return jnp.mean(jnp.abs(flat.mean(0)) / jnp.where(spread > 0, spread, 1.0))

    # -- as programs ---------------------------------------------------------------------------------------------------

    def with_params(self, name: str = "weights") -> LearnedVAE:
        """Within a program: the same model with the ``numpyro.param`` site ``name`` for its weights, so that ``pg.SVI``
        trains them with all else that the program has. Model and guide share them::

            def program(x):
                start.with_params().model(x)


            def guide(x):
                start.with_params().guide(x)

        and ``start.with_weights(tree["params"]["weights"].values)`` is what came of it.

        Args:
            name: Of the site, a flat vector that begins at the weights as they are.
        """
        value = numpyro.param(name, self._weights()[0])
        return self.with_weights(jnp.asarray(value))

    def with_weights(self, weights: Array) -> LearnedVAE:
        """The same model with other weights.

        Args:
            weights: All of them (of decoder, guide, noise, prior), flat, in the order of ``with_params``.

        Raises:
            DataError: If they are not as many.
        """
        flat, restored = self._weights()
        weights = jnp.asarray(weights, flat.dtype)
        if weights.shape != flat.shape:
            raise DataError(
                f"the weights have shape {weights.shape}, expected {flat.shape}. Take those of a program in which this "
                f"model stood with_params()."
            )
        here = copy.copy(self)
        here.net = restored(weights)
        return here

    def _weights(self) -> tuple[Array, Callable[[Array], VAENet]]:
        """The weights, flat, and from such a vector to a network."""
        weights, fixed = eqx.partition(self.net, trainable(self.net))
        flat, restored = ravel_pytree(weights)
        return flat, lambda flat: eqx.combine(restored(flat), fixed)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the latent sites, the top level first: ``z``, or ``z1, z2, ...``."""
        return ("z",) if len(self.net.latent) == 1 else tuple(f"z{i + 1}" for i in range(len(self.net.latent)))

    def model(self, x: Array | None = None, condition: Array | None = None, count: int = 1) -> Array:
        """The model as a NumPyro program over a plate ``data``, with sites ``z`` (see ``sites``) and ``x``.

        Args:
            x: Data, shape ``(n, *event_shape)``; ``None`` to simulate.
            condition: Their conditions.
            count: How many to simulate, without data and conditions.
        """
        given = x if x is not None else condition
        with numpyro.plate("data", count if given is None else given.shape[0]) as rows:
            above = self._levels(rows, lambda i, row, above: self.net.prior_at(i, above, _row(condition, row)))
            outputs = jax.vmap(
                lambda z, row: self.net.decoder(jnp.concatenate([z, self.net.given(_row(condition, row))]))
            )(above, rows)
            law = self.family.likelihood.law(outputs, self.net.noise, self.net.units, self.spec)
            return jnp.asarray(numpyro.sample("x", law, obs=x))

    def guide(self, x: Array, condition: Array | None = None, count: int = 1) -> None:
        """The guide as a NumPyro program with the arguments of ``model``."""
        with numpyro.plate("data", x.shape[0]) as rows:
            self._levels(
                rows, lambda i, row, above: self.net.guide_at(i, above, jnp.asarray(x)[row], _row(condition, row))
            )

    def _levels(self, rows: Array, at: Callable[..., tuple[Array, Array]]) -> Array:
        """Sample the latent sites; the bottom one."""
        above = jnp.zeros((rows.shape[0], 0))
        for level, name in enumerate(self.sites):
            loc, log_scale = jax.vmap(lambda row, above, level=level: at(level, row, above))(rows, above)
            above = jnp.asarray(numpyro.sample(name, dist.Normal(loc, jnp.exp(log_scale)).to_event(1)))
        return above


def _row(condition: Array | None, row: Array) -> Array | None:
    return None if condition is None else jnp.asarray(condition)[row]


class LearnedRealVAE(LearnedVAE):
    """The same for real data, whose draws are a map of standard normal noise (of latent variable and datum)."""

    offers: ClassVar = {**LearnedVAE.offers, "noise_map": Exactness.exact}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that ``noise_map`` takes: that of the latent variable, then that of the datum, flat."""
        return (sum(self.net.latent) + math.prod(self.event_shape),)

    def push(self, z: Array) -> Array:
        size = sum(self.net.latent)
        law = self.net.law(self.net.push(z[:size], self.condition), self.condition)
        return law.mean + jnp.sqrt(law.variance) * z[size:].reshape(self.event_shape)
