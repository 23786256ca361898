r"""The posterior of a path of hidden states, by an autoregressive flow that looks at the data nearby (Ryder, Golightly,
McGough and Prangle 2018, arXiv:1811.08337, with the windows of Ryder et al. 2021, arXiv:1910.00879).

For a program with a ``scan``, with parameters :math:`\theta`, states :math:`x_{1:T}` (both in unconstrained coordinates)
and observations :math:`y_{1:T}`,

.. math:: q(\theta, x \mid y) = q(\theta \mid y) \prod_{t=1}^T \prod_j
          q\bigl(x_{t,j} \mid x_{t,<j},\, x_{t-k:t-1},\, \theta,\, y_{t-w:t+w}\bigr).

The factors share one network. Each is a shift and scale about a linear prediction (ridge regression on the simulations),
then a monotone spline; so the density is exact and one pass gives it, and a draw takes :math:`T` steps. Given :math:`\theta`
the posterior of the path of a state-space model is Markov, and the state before with all later data is all that the next
one needs: with :math:`k = 1` what is lost is what data further off than :math:`w` say. Weights do not grow with :math:`T`.

Where Ryder et al. maximise the evidence lower bound for one series, here :math:`\log q` of simulated parameters and paths
is maximised, which serves every series at once and does not leave modes out. ``pg.ImportanceSampling`` corrects the result
by the density of the program; the evidence lower bound of one series is the mean of its log weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.encoded import Encoded, EncodedNet, LearnedEncoded
from probgen.amortized.encoder import EncoderNet, ObservationEncoder, Units
from probgen.amortized.estimator import PosteriorEstimator
from probgen.amortized.reading import Reading
from probgen.amortized.task import Task
from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.flow import Flow, standard_normal
from probgen.generative.learned import Exactness
from probgen.generative.scalar_transform import Affine, Spline
from probgen.generative.standardisation import Standardisation
from probgen.nets.constant import Constant
from probgen.nets.mlp import MLP

__all__ = ["LearnedPath", "PathLaw", "PathPosterior"]

_RIDGE = 1e-4
_AFFINE, _SPLINE = Affine(), Spline(bins=6)


class LocalNet(eqx.Module):
    """The factors of the path.

    Attributes:
        path: Units of the states, pooled over time.
        parameters: Units of the parameters.
        rows: Units of the observations.
        designs: Units of the arguments that have a value for each row.
        slope: Of the linear prediction of a state in standard units, shape ``(dim, features)``.
        offset: Shape ``(dim,)``.
        spread: Standard deviations of what the prediction leaves, shape ``(dim,)``.
        net: Gives the parameters of the monotone maps from the features.
    """

    path: Standardisation
    parameters: Standardisation
    rows: Units
    designs: Units
    slope: Constant
    offset: Constant
    spread: Constant
    net: MLP


class PathLaw(Encoded):
    """The law of parameters and path given observations.

    Attributes:
        family: The conditional family of the residuals of the parameters.
        encoder: What reads the observations for the parameters.
        blocks: Of the coordinates, where each state begins and how many numbers a step has.
        steps: Length of the path.
        window: Rows of data on either side that a state looks at.
        lags: States before it that it looks at.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    blocks: tuple[tuple[int, int], ...] = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    lags: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def check(self, spec: Spec) -> None:
        self.encoder.check()
        for name in ("window", "lags", "width", "depth"):
            if not is_count(getattr(self, name)):
                raise MethodError(f"PathPosterior got {name}={getattr(self, name)!r}, expected an int of at least 1.")
        if self._given(spec):
            self._parameters.check(self._rest(spec))

    @property
    def _parameters(self) -> Encoded:
        return Encoded(self.family, self.encoder)

    @property
    def _dim(self) -> int:
        """Numbers of a step of the path."""
        return sum(size for _, size in self.blocks)

    def _given(self, spec: Spec) -> int:
        """How many parameters there are."""
        return spec.shape[0] - self.steps * self._dim

    def _rest(self, spec: Spec) -> Spec:
        return dataclasses.replace(spec, shape=(self._given(spec),), columns=())

    def _places(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the parameters, and of the path, shape ``(steps, dim)``."""
        path = [start + np.arange(self.steps * size).reshape(self.steps, size) for start, size in self.blocks]
        path = np.concatenate(path, 1)
        return np.setdiff1d(np.arange(size), path), path

    def split(self, u: Array) -> tuple[Array, Array]:
        """Parameters, shape ``(given,)``, and path, shape ``(steps, dim)``."""
        given, path = self._places(u.shape[0])
        return u[given], u[path]

    def join(self, parameters: Array, path: Array) -> Array:
        """Inverse of ``split``."""
        given, places = self._places(parameters.size + path.size)
        u = jnp.concatenate([parameters, path.reshape(-1)])
        return u[np.argsort(np.concatenate([given, places.reshape(-1)]))]

    # -- features ------------------------------------------------------------------------------------------------------

    def nearby(self, net: LocalNet, parameters: Array, condition: Array) -> Array:
        """What each state sees beside other states, shape ``(steps, features)``."""
        read = self.encoder.reading.unpack(condition)
        seen = read.rows_seen[0]
        designs = jnp.where(read.present[0][:, None], net.designs(read.designs[0]), 0.0)
        rows = jnp.concatenate([net.rows(read.rows[0], seen), seen, designs], -1).astype(condition.dtype)
        padded = jnp.pad(rows, ((self.window, self.window), (0, 0)))
        windows = jnp.stack([padded[i : i + self.steps] for i in range(2 * self.window + 1)], 1)
        theta = jnp.broadcast_to(net.parameters.inward(parameters), (self.steps, parameters.shape[0]))
        return jnp.concatenate([windows.reshape(self.steps, -1), theta.astype(condition.dtype)], -1)

    def features(self, nearby: Array, lags: Array, there: Array, now: Array) -> Array:
        """What the entries of one step see, shape ``(dim, features)``.

        Args:
            nearby: A row of ``nearby``.
            lags: States before, in standard units, the last first, shape ``(lags, dim)``.
            there: Which of them there are, shape ``(lags,)``.
            now: The state; an entry sees those before it.
        """
        dim = now.shape[0]
        before = jnp.where(jnp.tri(dim, k=-1, dtype=bool), now, 0.0)
        common = jnp.concatenate([nearby, jnp.where(there[:, None], lags, 0.0).reshape(-1), there])
        common = jnp.broadcast_to(common, (dim, common.shape[0]))
        return jnp.concatenate([common, before, jnp.eye(dim)], -1).astype(nearby.dtype)

    def _all_features(self, net: LocalNet, parameters: Array, path: Array, condition: Array) -> Array:
        """Of all steps of a path in standard units, shape ``(steps, dim, features)``."""
        padded = jnp.pad(path, ((self.lags, 0), (0, 0)))
        lags = jnp.stack([padded[self.lags - i : self.lags - i + self.steps] for i in range(1, self.lags + 1)], 1)
        there = jnp.arange(self.steps)[:, None] >= jnp.arange(1, self.lags + 1)
        return jax.vmap(self.features)(self.nearby(net, parameters, condition), lags, there, path)

    def _size(self, given: int) -> int:
        group = self.encoder.reading.rows[0]
        rows = (2 * self.window + 1) * (2 * group.width + group.given)
        return rows + given + self.lags * (self._dim + 1) + 2 * self._dim

    # -- a family ------------------------------------------------------------------------------------------------------

    def build(self, key: PRNGKey, spec: Spec) -> PathNet:  # pyright: ignore[reportIncompatibleMethodOverride]
        key_parameters, key_local = jax.random.split(key)
        given, group, dim = self._given(spec), self.encoder.reading.rows[0], self._dim
        size = self._size(given)
        outputs = _AFFINE.parameters + _SPLINE.parameters
        local = LocalNet(
            Standardisation((dim,)),
            Standardisation((given,)),
            Units(group.width),
            Units(group.given),
            Constant(jnp.zeros((dim, size), jnp.float32)),
            Constant(jnp.zeros(dim, jnp.float32)),
            Constant(jnp.ones(dim, jnp.float32)),
            MLP(key_local, size, outputs, self.width, self.depth, zero=True),
        )
        if given:
            return PathNet(self._parameters.build(key_parameters, self._rest(spec)), None, local)
        return PathNet(None, self.encoder.build(key_parameters), local)

    def adapt(self, key: PRNGKey, net: PathNet, x: Array, condition: Array | None) -> PathNet:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert condition is not None
        parameters, path = jax.vmap(self.split)(x)
        inner, reader = net.parameters, net.reader
        if inner is not None:
            inner = self._parameters.adapt(key, inner, parameters, condition)
        if reader is not None:
            reader = self.encoder.referenced(key, reader.adapted(condition), condition)
        read = jax.vmap(self.encoder.reading.unpack)(condition)
        count = len(x) * self.steps
        rows, seen = (a.reshape(count, a.shape[-1]) for a in (read.rows[0], read.rows_seen[0]))
        present = jnp.broadcast_to(read.present[0][..., None], read.designs[0].shape)
        designs, there = (a.reshape(count, a.shape[-1]) for a in (read.designs[0], present))
        local = eqx.tree_at(
            lambda n: (n.path, n.parameters, n.rows, n.designs),
            net.local,
            (
                net.local.path.adapted(path.reshape(-1, self._dim)),
                net.local.parameters.adapted(parameters),
                net.local.rows.adapted(rows, seen),
                net.local.designs.adapted(designs, there),
            ),
        )
        path = local.path.inward(path)

        def moments(row: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            features = self._all_features(local, *row).astype(float)
            ones = jnp.ones((*features.shape[:2], 1), features.dtype)
            f, target = jnp.concatenate([features, ones], -1), row[1].astype(float)
            return jnp.einsum("tjf,tjg->jfg", f, f), jnp.einsum("tjf,tj->jf", f, target), (target**2).sum(0)

        def add(total: Any, row: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, moments(row)), None

        first = (parameters[0], path[0], condition[0])
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(moments, first))
        (gram, product, square), _ = jax.lax.scan(add, zero, (parameters, path, condition))
        ridge = _RIDGE * jnp.eye(gram.shape[-1])
        slope = jnp.linalg.solve(gram / count + ridge, product[..., None] / count)[..., 0]
        left = square / count - 2 * jnp.einsum("jf,jf->j", slope, product) / count
        left = left + jnp.einsum("jf,jfg,jg->j", slope, gram / count, slope)
        spread = jnp.sqrt(jnp.maximum(left, 1e-8))
        found = tuple(a.astype(jnp.float32) for a in (slope[:, :-1], slope[:, -1], spread))
        local = eqx.tree_at(lambda n: (n.slope.value, n.offset.value, n.spread.value), local, found)
        return PathNet(inner, reader, local)

    def loss(self, key: PRNGKey, net: PathNet, x: Array, condition: Array | None, now: Now) -> Scalar:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert condition is not None
        key_hide, key_loss = jax.random.split(key)
        parameters, path = jax.vmap(self.split)(x)
        hidden = jax.vmap(self.encoder.hide)(jax.random.split(key_hide, len(condition)), condition)
        loss = -jnp.mean(jax.vmap(self.path_density, (None, 0, 0, 0))(net.local, parameters, path, hidden))
        if net.parameters is not None:
            now = now._replace(average=now.average.parameters)
            loss = loss + self._parameters.loss(key_loss, net.parameters, parameters, condition, now)
        return loss

    def path_density(self, net: LocalNet, parameters: Array, path: Array, condition: Array) -> Scalar:
        """Log density of a path, shape ``(steps, dim)``, given parameters and observations."""
        x = net.path.inward(path.astype(jnp.result_type(path, jnp.float32)))
        features = self._all_features(net, parameters, x, condition.astype(x.dtype))
        p = jax.vmap(jax.vmap(net.net))(features)
        rest = (x - self._linear(net, features)) / net.spread.value
        p = p.reshape(-1, p.shape[-1])
        r, first = _AFFINE.inward(rest.reshape(-1), p[:, : _AFFINE.parameters])
        z, second = _SPLINE.inward(r, p[:, _AFFINE.parameters :])
        scales = self.steps * (net.path.log_det() - jnp.sum(jnp.log(net.spread.value)))
        return standard_normal(z) + first.sum() + second.sum() + scales

    def path_from(self, net: LocalNet, parameters: Array, z: Array, condition: Array) -> Array:
        """The path that noise of its shape, ``(steps, dim)``, makes."""
        nearby = self.nearby(net, parameters, condition.astype(jnp.result_type(z, jnp.float32)))
        z = z.astype(nearby.dtype)
        dim = self._dim

        def step(lags: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            nearby, z, t = row
            now = jnp.zeros(dim, z.dtype)
            there = t >= jnp.arange(1, self.lags + 1)
            for j in range(dim):
                features = self.features(nearby, lags, there, now)[j : j + 1]
                p = jax.vmap(net.net)(features)
                r, _ = _SPLINE.outward(z[j : j + 1], p[:, _AFFINE.parameters :])
                rest, _ = _AFFINE.outward(r, p[:, : _AFFINE.parameters])
                linear = features[0] @ net.slope.value[j] + net.offset.value[j]
                now = now.at[j].set(linear + net.spread.value[j] * rest[0])
            return jnp.concatenate([now[None], lags[:-1]]), now

        start = jnp.zeros((self.lags, dim), z.dtype)
        return net.path.outward(jax.lax.scan(step, start, (nearby, z, jnp.arange(self.steps)))[1])

    def _linear(self, net: LocalNet, features: Array) -> Array:
        return jnp.einsum("tjf,jf->tj", features, net.slope.value) + net.offset.value

    def distribution(self, net: PathNet, spec: Spec) -> LearnedPath:  # pyright: ignore[reportIncompatibleMethodOverride]
        return LearnedPath(self, spec, net)  # pyright: ignore[reportArgumentType]


class PathNet(eqx.Module):
    """The networks of parameters and path.

    Attributes:
        parameters: ``None`` if there are none.
        reader: Where there are none, what tells usual observations from others.
        local: Of the path.
    """

    parameters: EncodedNet | None
    reader: EncoderNet | None
    local: LocalNet

    @property
    def encoder(self) -> EncoderNet:
        """What reads whole observations."""
        found = self.reader if self.parameters is None else self.parameters.encoder
        assert found is not None
        return found


class LearnedPath(LearnedEncoded):
    """The law of parameters and path given an observation; draws and density are exact."""

    family: PathLaw
    net: PathNet  # pyright: ignore[reportIncompatibleVariableOverride]

    offers = {  # pyright: ignore[reportAssignmentType] # noqa: RUF012
        "log_prob": Exactness.exact,
        "noise_map": Exactness.exact,
        "sample": Exactness.exact,
    }

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.spec.shape

    def _parameters(self) -> LearnedEncoded:
        assert self.net.parameters is not None
        law = self.family._parameters.distribution(self.net.parameters, self.family._rest(self.spec))
        found = law.given(self._observation)
        assert isinstance(found, LearnedEncoded)
        return found

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """See ``Learned.sample``."""
        self._ready("sample")
        z = jax.random.normal(key, (*sample_shape, *self.batch_shape, *self.spec.shape), jnp.float32)
        return self.noise_map(z)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """See ``Learned.log_prob``."""
        self._ready("log_prob")
        return self.pointwise(lambda here, x: here.density(x), (jnp.asarray(value), 1))

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.spec.shape, jnp.float32))

    def push(self, z: Array) -> Array:
        given, law = self.family._given(self.spec), self.family
        parameters = self._parameters().push(z[:given]) if given else z[:0]
        path = law.path_from(self.net.local, parameters, z[given:].reshape(law.steps, law._dim), self._observation)
        return law.join(parameters, path)

    def density(self, x: Array) -> Scalar:
        parameters, path = self.family.split(x)
        found = self.family.path_density(self.net.local, parameters, path, self._observation)
        return found + self._parameters().density(parameters) if self.net.parameters is not None else found


class PathPosterior(PosteriorEstimator):
    """The posterior of the states of a program with a ``scan``, and of its parameters: an autoregressive flow over the
    path with windows of the data (Ryder et al. 2018, 2021), after a coupling flow of the parameters.

    The density is exact: draws come with importance weights, and ``pg.ImportanceSampling`` corrects them.

    Attributes:
        window: Rows of data on either side that a state looks at. What is further off is not seen.
        lags: States before it that it looks at; 1 is enough where the states are Markov.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        count: Number of coupling layers for the parameters.
        encoder_width: Features of a row inside of the encoder, which reads the data for the parameters.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    window: int = eqx.field(static=True, default=5)
    lags: int = eqx.field(static=True, default=1)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    count: int = eqx.field(static=True, default=4)
    encoder_width: int = eqx.field(static=True, default=32)
    encoder_depth: int = eqx.field(static=True, default=2)
    training: Training | None = eqx.field(static=True, default=None)

    @property
    def family(self) -> Family:
        return Flow(count=self.count, width=64, depth=2)

    def learned(self, task: Task) -> PathLaw:
        """See ``PosteriorEstimator.learned``.

        Raises:
            MethodError: If the program has no ``scan`` with continuous states and observations alone, all of one length.
        """
        reading = task.question.reading
        steps = _steps(reading)
        if task.question.fewest:
            raise MethodError("PathPosterior draws paths of one length. Leave fewest out.")
        blocks = tuple(
            (block.start, block.size // steps)
            for block in task.density.blocks
            if task.density.model.sites[block.name].scanned and block.shape[:1] == (steps,)
        )
        if not blocks:
            raise MethodError(
                f"the program has no continuous state in its scan over {steps} steps. Use pg.NPE() for its parameters."
            )
        return PathLaw(
            self.family,
            ObservationEncoder(task.question, self.encoder_width, self.encoder_depth),
            blocks,
            steps,
            self.window,
            self.lags,
            self.width,
            self.depth,
        )


def _steps(reading: Reading) -> int:
    """Length of the series.

    Raises:
        MethodError: If the observations are not one series.
    """
    if reading.entries or [group.ordered for group in reading.rows] != [True]:
        raise MethodError(
            "PathPosterior needs observations in one scan and nowhere else. Use pg.NPE(), or write the program with "
            "numpyro.contrib.control_flow.scan."
        )
    return reading.rows[0].count
