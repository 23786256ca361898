r"""Structured variational autoencoders: a graphical model over time for the latent variables, a network for what is
seen of them, and recognition networks that give potentials to the graphical model (Johnson et al. 2016; Zhao and
Linderman 2023, "Revisiting structured variational autoencoders").

A datum is a sequence :math:`x_{1:T}`. The prior is a linear-Gaussian chain or a hidden Markov chain, the likelihood
:math:`p(x_t \mid u_t)` a network, and the guide is the prior times one recognised potential per time,

.. math:: q(u) = \frac{1}{Z(x)}\, p(u) \prod_t \psi_t(u_t), \qquad \log p(x) \ge
          E_q \sum_t \left[\log p(x_t \mid u_t) - \log \psi_t(u_t)\right] + \log Z(x),

whose normalising constant, marginals and draws come from message passing, exactly. Where the potentials can be the
likelihood itself (a linear decoder with normal noise; for finitely many states, any likelihood) the bound is
:math:`\log p(x)`. Times that were not seen have the potential one and no likelihood: they are integrated out.

Gaussian potentials are :math:`\psi_t(u) = N(r_t; u, R_t)` with diagonal :math:`R_t`: pseudo-observations of the state.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac import forward_backward, kalman
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.likelihood import GaussianLikelihood, Likelihood, mean_of
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["ChainPrior", "HiddenMarkov", "LearnedStructuredVAE", "LinearDynamics", "StructuredVAE"]


class ChainPrior(Part):
    """The law of the latent variables over time.

    Its parameters are a pytree that ``build`` makes. Paths have shape ``(T, size)``: what a decoder sees.
    """

    size: eqx.AbstractVar[int]
    """Length of a latent state; number of states of a hidden Markov chain."""
    potentials: ClassVar[int]
    """Numbers of a potential, per ``size``."""

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""
        if not is_count(self.size):
            raise MethodError(f"{type(self).__name__} got size={self.size!r}, expected an int of at least 1.")

    @abc.abstractmethod
    def build(self, key: PRNGKey) -> Any:
        """Parameters at the start."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, parameters: Any, length: int) -> Array:
        """A path of the prior, shape ``(length, size)``."""

    @abc.abstractmethod
    def posterior(self, key: PRNGKey, parameters: Any, potentials: Array, seen: Array) -> tuple[Array, Array, Scalar]:
        """The guide.

        Args:
            key: Randomness.
            parameters: From ``build``.
            potentials: Recognised, shape ``(T, potentials * size)``.
            seen: Which times have a potential, shape ``(T,)``.

        Returns:
            A path, shape ``(T, size)``, with reparameterised gradients (for finitely many states: the probability of
            each state, shape ``(T, size)``, whatever the key); the mean path, the same shape; and
            ``log Z - E sum log psi`` for that path (or in expectation).
        """

    def expected(self, log_likelihood: Any, path: Array, x: Array) -> Array:
        """Log likelihoods of data at each time, shape ``(T,)``, given what ``posterior`` returned first."""
        return jax.vmap(log_likelihood)(path, x)


class LinearDynamics(ChainPrior):
    """A linear-Gaussian chain: ``u[t] = F u[t-1] + q eps``, from a standard normal start.

    Attributes:
        size: Length of the state.
        parallel: Whether messages are passed by associative scans over time: for a GPU.
    """

    size: int = eqx.field(static=True, default=4)
    parallel: bool = eqx.field(static=True, default=False, kw_only=True)

    potentials: ClassVar = 2

    def build(self, key: PRNGKey) -> dict[str, Array]:
        return {
            "transition": 0.9 * jnp.eye(self.size, dtype=jnp.float32),
            "log_noise": jnp.full(self.size, -1.0, jnp.float32),
        }

    def draw(self, key: PRNGKey, parameters: dict[str, Array], length: int) -> Array:
        noise = jax.random.normal(key, (length + 1, self.size))

        def step(u: Array, kick: Array) -> tuple[Array, Array]:
            new = parameters["transition"] @ u + jnp.exp(parameters["log_noise"]) * kick
            return new, new

        return jax.lax.scan(step, noise[0], noise[1:])[1]

    def posterior(
        self, key: PRNGKey, parameters: dict[str, Array], potentials: Array, seen: Array
    ) -> tuple[Array, Array, Scalar]:
        chain, log_psi = self._chain(parameters, potentials, seen)
        found = kalman.driven(chain, parallel=self.parallel)
        path = kalman.draw(key, chain, found, parallel=self.parallel)[1][1:]
        zeros = jnp.zeros_like(found.start_shift), jnp.zeros_like(found.shift)
        mean = kalman.path(chain, found, *zeros, parallel=self.parallel)[1][1:]
        return path, mean, kalman.log_evidence(chain, found) - log_psi(path)

    def _chain(self, parameters: dict[str, Array], potentials: Array, seen: Array) -> tuple[kalman.Chain, Any]:
        centre, log_scale = jnp.split(potentials, 2, axis=-1)
        eye = jnp.eye(self.size, dtype=centre.dtype)
        scale = jnp.exp(log_scale)
        whole = jnp.broadcast_to(seen[:, None], centre.shape)
        chain = kalman.state_space(
            jnp.zeros(self.size, centre.dtype),
            eye,
            parameters["transition"].astype(centre.dtype),
            jnp.diag(jnp.exp(parameters["log_noise"])).astype(centre.dtype),
            eye,
            jax.vmap(jnp.diag)(scale),
            centre,
            whole,
        )

        def log_psi(path: Array) -> Scalar:
            each = jax.scipy.stats.norm.logpdf(centre, path, scale)
            return jnp.sum(jnp.where(whole, each, 0.0))

        return chain, log_psi


class HiddenMarkov(ChainPrior):
    """A chain of finitely many states.

    Attributes:
        size: Number of states.
        parallel: Whether messages are passed by associative scans over time: for a GPU.
    """

    size: int = eqx.field(static=True, default=4)
    parallel: bool = eqx.field(static=True, default=False, kw_only=True)

    potentials: ClassVar = 1

    def check(self) -> None:
        super().check()
        if self.size < 2:
            raise MethodError(f"HiddenMarkov got size={self.size}, expected at least 2 states.")

    def build(self, key: PRNGKey) -> dict[str, Array]:
        return {
            "start": jnp.zeros(self.size, jnp.float32),
            "moves": 2.0 * jnp.eye(self.size, dtype=jnp.float32),
        }

    def draw(self, key: PRNGKey, parameters: dict[str, Array], length: int) -> Array:
        key_start, key_steps = jax.random.split(key)
        first = jax.random.categorical(key_start, parameters["start"])

        def step(z: Array, key: PRNGKey) -> tuple[Array, Array]:
            new = jax.random.categorical(key, parameters["moves"][z])
            return new, new

        rest = jax.lax.scan(step, first, jax.random.split(key_steps, length - 1))[1]
        return jax.nn.one_hot(jnp.concatenate([first[None], rest]), self.size)

    def posterior(
        self, key: PRNGKey, parameters: dict[str, Array], potentials: Array, seen: Array
    ) -> tuple[Array, Array, Scalar]:
        log_psi = jnp.where(seen[:, None], potentials, 0.0)
        start = jax.nn.log_softmax(parameters["start"]).astype(log_psi.dtype)
        moves = jax.nn.log_softmax(parameters["moves"], axis=-1).astype(log_psi.dtype)
        # The chain of the message passing starts one step earlier, in one state.
        chain = forward_backward.FiniteChain(
            jnp.zeros(1, log_psi.dtype), (start + log_psi[0])[None], moves[None] + log_psi[1:, None, :]
        )
        found = forward_backward.messages(chain, parallel=self.parallel)
        shares = jnp.exp(forward_backward.smoothed(chain, found)[1])
        return shares, shares, found.log_z[-1] - jnp.sum(shares * log_psi)

    def expected(self, log_likelihood: Any, path: Array, x: Array) -> Array:
        each = jax.vmap(jax.vmap(log_likelihood, (0, None)), (None, 0))(jnp.eye(self.size, dtype=path.dtype), x)
        return jnp.sum(path * each, -1)


class _Net(eqx.Module):
    units: Standardisation
    encoder: MLP
    decoder: MLP
    noise: Any
    parameters: Any
    spec: Spec = eqx.field(static=True)


class StructuredVAE(Family):
    """A variational autoencoder of sequences, with a graphical model over time. Data have shape ``(T, ...)``.

    Attributes:
        prior: ``LinearDynamics(size)`` or ``HiddenMarkov(size)``.
        likelihood: Of what is seen at a time given the latent state.
        width: Length of the hidden layers.
        depth: Number of hidden layers, of encoder and decoder; 0 for linear maps.
    """

    prior: ChainPrior = eqx.field(static=True, default=LinearDynamics())
    likelihood: Likelihood = eqx.field(static=True, default=GaussianLikelihood())
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar = Training(batch=32, weight_decay=0.0)

    @property
    def discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the data are integers: as the likelihood says."""
        return self.likelihood.discrete

    def check(self, spec: Spec) -> None:
        for name, kind in (("prior", ChainPrior), ("likelihood", Likelihood)):
            if not isinstance(getattr(self, name), kind):
                raise MethodError(
                    f"StructuredVAE got {name}={getattr(self, name)!r}, expected an object of class {kind.__name__}."
                )
        if len(spec.shape) < 2 or spec.shape[0] < 2:
            raise DataError(
                f"a datum has shape {spec.shape}, expected a sequence (T, ...) of at least 2 times. Give data of shape "
                f"(sequences, T, ...)."
            )
        if spec.condition is not None:
            raise MethodError("StructuredVAE takes no conditions. Leave out condition=, or fit a VAE.")
        self.prior.check()
        self.likelihood.check(self._frame(spec))

    @staticmethod
    def _frame(spec: Spec) -> Spec:
        return Spec(spec.shape[1:], None, spec.values)

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_encoder, key_decoder, key_prior = jax.random.split(key, 3)
        frame, size = self._frame(spec), self.prior.size
        features = self.likelihood.features_size(frame)
        return _Net(
            Standardisation(frame.shape),
            MLP(key_encoder, features, self.prior.potentials * size, self.width, self.depth),
            MLP(key_decoder, size, self.likelihood.outputs(frame), self.width, self.depth),
            self.likelihood.noise(frame),
            self.prior.build(key_prior),
            spec,
        )

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        if self.discrete:
            return net
        frames = x.reshape(-1, *x.shape[2:])
        net = eqx.tree_at(lambda n: n.units, net, net.units.adapted(frames))
        return eqx.tree_at(lambda n: n.noise, net, self.likelihood.adapted(net.noise, frames))

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        model = self.distribution(net, net.spec)
        return -jnp.mean(jax.vmap(model.bound_at)(jax.random.split(key, x.shape[0]), x))

    def distribution(self, net: _Net, spec: Spec) -> LearnedStructuredVAE:
        return LearnedStructuredVAE(self, spec, net)


class LearnedStructuredVAE(Learned):
    """The law of sequences: draws, a bound, and what a sequence with gaps says of its latent path."""

    offers: ClassVar = {"sample": Exactness.exact, "bound": Exactness.bound, "conditional": Exactness.estimate}

    family: StructuredVAE
    net: _Net

    @property
    def _frame(self) -> Spec:
        return self.family._frame(self.spec)

    def _law(self, state: Array) -> Any:
        likelihood, net = self.family.likelihood, self.net
        return likelihood.law(net.decoder(state), net.noise, net.units, self._frame)

    def _laws(self, path: Array) -> Any:
        """Of the times of a path, shape ``(T, size)``, or of several states."""
        likelihood, net = self.family.likelihood, self.net
        return likelihood.law(jax.vmap(net.decoder)(path), net.noise, net.units, self._frame)

    def draw(self, key: PRNGKey) -> Array:
        key_path, key_data = jax.random.split(key)
        path = self.family.prior.draw(key_path, self.net.parameters, self.spec.shape[0])
        return self._laws(path).sample(key_data)

    def bound_at(self, key: PRNGKey, x: Array, seen: Array | None = None) -> Scalar:
        """The bound for one sequence.

        Args:
            key: Randomness.
            x: The sequence, shape ``(T, ...)``.
            seen: Which times were seen, shape ``(T,)``; the others are integrated out, whatever stands there.
        """
        seen = jnp.ones(x.shape[0], bool) if seen is None else jnp.asarray(seen, bool)
        path, _, rest = self._posterior(key, x, seen)
        likelihood = self.family.prior.expected(lambda u, x: self._law(u).log_prob(x), path, self._filled(x, seen))
        return jnp.sum(jnp.where(seen, likelihood, 0.0)) + rest

    def _filled(self, x: Array, seen: Array) -> Array:
        """What was not seen may be anything, NaN as well."""
        return jnp.where(seen.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))

    def _posterior(self, key: PRNGKey, x: Array, seen: Array) -> tuple[Array, Array, Scalar]:
        likelihood, net = self.family.likelihood, self.net
        features = jax.vmap(lambda x: likelihood.features(x, net.units, self._frame))(self._filled(x, seen))
        return self.family.prior.posterior(key, net.parameters, jax.vmap(net.encoder)(features), seen)

    def bound(self, key: PRNGKey, value: Array, seen: Array | None = None) -> Array:
        """An unbiased estimate of a lower bound of the log density, shape that of ``value`` without the event.

        Args:
            key: Randomness.
            value: Sequences.
            seen: Which times were seen, shape ``(..., T)``; all if ``None``.
        """
        self._ready("bound")
        value = jnp.asarray(value)
        length = self.spec.shape[0]
        seen = jnp.ones(length, bool) if seen is None else jnp.asarray(seen, bool)
        if seen.shape[-1:] != (length,):
            raise DataError(f"seen has shape {seen.shape}, expected (..., {length}): one entry per time.")
        batch = jnp.broadcast_shapes(value.shape[: value.ndim - self.event_dim], seen.shape[:-1])
        parts = (jax.random.split(key, batch), 0), (value, self.event_dim), (seen, 1)
        return self.pointwise(lambda here, key, x, seen: here.bound_at(key, x, seen), *parts)

    def encode(self, value: Array, seen: Array | None = None) -> Array:
        """The mean of the guide's path for each sequence, shape ``(..., T, size)``; probabilities of the states of a
        hidden Markov chain."""
        self._ready("bound")
        seen = jnp.ones(self.spec.shape[0], bool) if seen is None else jnp.asarray(seen, bool)
        key = jax.random.key(0)  # the mean does not depend on it
        parts = (jnp.asarray(value), self.event_dim), (seen, 1)
        return self.pointwise(lambda here, x, seen: here._posterior(key, x, seen)[1], *parts)

    def complete(self, x: Array, mask: Array) -> Array:
        """The mean of the data given those times at which ``mask`` is true throughout, at the guide's mean path (for a
        hidden Markov chain: averaged over states). Exact for linear decoders."""
        seen = jnp.all(mask.reshape(mask.shape[0], -1), -1)
        _, mean, _ = self._posterior(jax.random.key(0), x, seen)
        if isinstance(self.family.prior, HiddenMarkov):
            return jnp.tensordot(mean, mean_of(self._laws(jnp.eye(mean.shape[1], dtype=mean.dtype))), 1)
        return mean_of(self._laws(mean))
