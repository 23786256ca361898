"""Bad input: what is wrong, what was got, what was expected, what to do; before anything is compiled where it can be
known.
"""

import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.program.density import Density
from probgen.run.compiled import compile_count

X = np.linspace(-1.0, 1.0, 20)
Y = 0.5 + 2 * X
RNG = np.random.default_rng(0)
SHORT = {"draws": 20, "warmup": 20, "chains": 1}


def line(x, y=None):
    slope = numpyro.sample("slope", dist.Normal())
    spread = numpyro.sample("spread", dist.HalfNormal())
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, spread), obs=y)


def with_at(values, index, value):
    return np.where(np.arange(len(values)) == index, value, values)


def model(**data):
    return pg.Model(line, {"x": X, "y": Y, **data})


def made(program, **data):
    return lambda: pg.Model(program, data)


def fitted(program, method=None, **data):
    return lambda: pg.infer(pg.Model(program, data), method or pg.NUTS(), **SHORT)


def infer(**settings):
    method = settings.pop("method", pg.NUTS())
    return lambda: pg.infer(model(), method, **{**SHORT, **settings})


# -- programs with one mistake each ------------------------------------------------------------------------------------


def twice():
    numpyro.sample("a", dist.Normal())
    numpyro.sample("a", dist.Normal())


def two_sizes():
    with numpyro.plate("row", 3):
        numpyro.sample("a", dist.Normal())
    with numpyro.plate("row", 4):
        numpyro.sample("b", dist.Normal())


def plate_named_as_site():
    with numpyro.plate("school", 3):
        numpyro.sample("school", dist.Normal())


def site_named_draw():
    numpyro.sample("draw", dist.Normal())


def poisson(y):
    rate = numpyro.sample("rate", dist.Exponential(1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def constant_outside():
    rate = numpyro.sample("rate", dist.Exponential(1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=-2)


def binomial(total, y):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Binomial(total, p), obs=y)


def scanned(y):
    def step(x, y_now):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_now)
        return x, None

    scan(step, 0.0, y)


def column(x, y):
    slope = numpyro.sample("slope", dist.Normal())
    numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def branching():
    a = numpyro.sample("a", dist.Normal())
    if a > 0:
        numpyro.sample("b", dist.Normal())


def looping():
    n = numpyro.sample("n", dist.Poisson(3.0))
    for i in range(n):
        numpyro.sample(f"x_{i}", dist.Normal())


def sized(groups):
    with numpyro.plate("group", groups):
        numpyro.sample("a", dist.Normal())


def selecting(y):
    a = numpyro.sample("a", dist.Normal())
    numpyro.factor("f", jnp.sum(y[y > 0] * a))


def numpy_on_values():
    a = numpyro.sample("a", dist.Normal())
    numpyro.sample("b", dist.Normal(np.sqrt(np.asarray(a) ** 2), 1.0))


def printing():
    numpyro.sample("a", dist.Normal())
    print("hello from the model")


def numpy_globally():
    numpyro.sample("a", dist.Normal(np.random.normal(), 1.0))


def python_random():
    numpyro.sample("a", dist.Normal(random.random(), 1.0))


def unseeded():
    numpyro.sample("a", dist.Normal(np.random.default_rng().normal(), 1.0))


def shared_generator():
    numpyro.sample("a", dist.Normal(RNG.normal(), 1.0))


def failing(x):
    numpyro.sample("a", dist.Normal())
    raise KeyError("no column 'age'")


def misspelt_parameter():
    numpyro.sample("a", dist.Normal(0.0, scael=1.0))


def not_a_distribution():
    numpyro.sample("a", 3.0)


def parameter():
    scale = numpyro.param("scale", 1.0)
    numpyro.sample("a", dist.Normal(0.0, scale))


def minibatch(y):
    m = numpyro.sample("m", dist.Normal())
    with numpyro.plate("row", len(y), subsample_size=5) as rows:
        numpyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])


def own_key():
    noise = jax.random.normal(numpyro.prng_key())
    numpyro.sample("a", dist.Normal(noise, 1.0))


def mutable():
    state = numpyro.primitives.mutable("state", {"mean": 0.0})
    numpyro.sample("a", dist.Normal(state["mean"], 1.0))


def all_known(y):
    numpyro.sample("y", dist.Normal(), obs=y)


def counts():
    n = numpyro.sample("n", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(n, 1.0), obs=2.0)


def impossible():
    top = numpyro.sample("top", dist.Uniform(0.0, 1.0))
    numpyro.sample("y", dist.Uniform(0.0, top), obs=3.0)


def steep():
    a = numpyro.sample("a", dist.Normal())
    numpyro.sample("b", dist.Normal())
    numpyro.factor("cusp", jnp.sqrt(0.0 * a))


def flat():
    numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))


def sphere():
    numpyro.sample("a", dist.ProjectedNormal(jnp.ones(3)))


def latent_delta():
    numpyro.sample("a", dist.Delta(1.0))


def sample_shape():
    numpyro.sample("a", dist.Normal(), sample_shape=(3,))


def too_many_event_dims():
    numpyro.sample("a", dist.Normal().expand([2]).to_event(1), infer={"event_dims": ["p", "q"]})


def twin_axes():
    numpyro.sample("a", dist.LKJ(3), infer={"event_dims": ["p", "p"]})


def scan_in_plate(y):
    with numpyro.plate("row", 3):
        scanned(y)


def scan_in_scan():
    def inner(x, _):
        return numpyro.sample("x", dist.Normal(x, 1.0)), None

    scan(lambda x, _: scan(inner, x, None, length=2), 0.0, None, length=3)


class Unhashable:
    __hash__ = None

    def __call__(self):
        numpyro.sample("a", dist.Normal())


M, D, E = pg.ModelError, pg.DataError, pg.MethodError
CASES = {
    # names
    "misspelt site in do": (lambda: model().do(slpoe=1.0), M, ["'slpoe'", "Did you mean 'slope'"]),
    "misspelt site in condition": (lambda: model().condition(spred=1.0), M, ["'spred'", "Did you mean 'spread'"]),
    "no such site in the table": (lambda: model().sites["zzz"], M, ["'zzz'", "Choose from: slope, spread, y"]),
    "missing argument": (made(line), D, ["needs the argument 'x'", r"Pass data=\{'x'"]),
    "superfluous argument": (lambda: model(sgima=1.0), D, ["'sgima'", "not an argument", "Choose from: x, y"]),
    "misspelt argument": (made(poisson, yy=np.ones(3)), D, ["'yy'", "not an argument", "Did you mean 'y'"]),
    "unknown coordinate": (lambda: pg.Model(line, {"x": X}, coords={"rows": range(20)}), D, ["'rows'", "Did you mean 'row'"]),
    "unknown site in dims": (lambda: pg.Model(line, {"x": X}, dims={"slop": ["a"]}), D, ["'slop'", "Did you mean 'slope'"]),
    "wrong number of dims": (lambda: pg.Model(line, {"x": X}, dims={"slope": ["a"]}), D, ["1 names", r"shape \(\)", "one name per axis"]),
    "duplicate site": (made(twice), M, ["'a' occurs twice", "its own name"]),
    "duplicate plate": (made(two_sizes), M, ["plate 'row'", "size 3", "size 4", "different names"]),
    "a plate called as a site": (made(plate_named_as_site), M, ["'school' names a site and a plate", "Rename"]),
    "a site called draw": (made(site_named_draw), M, ["'draw'", "Rename"]),
    # data
    "NaN in an observation": (lambda: model(y=with_at(Y, 3, np.nan)), D, ["data 'y' has NaN", r"\(3,\)", "obs_mask"]),
    "inf in an observation": (lambda: model(y=with_at(Y, 4, np.inf)), D, ["data 'y'", "inf", r"\(4,\)", "outside the support of Normal"]),
    "NaN in a covariate": (lambda: model(x=with_at(X, 7, np.nan)), D, ["data 'x'", "NaN", r"\(7,\)", "site 'y'", "Drop the row"]),
    "inf in a covariate": (lambda: model(x=with_at(X, 2, -np.inf)), D, ["data 'x'", "-inf", r"\(2,\)", "site 'y'"]),
    "NaN inside scan": (made(scanned, y=with_at(Y, 5, np.nan)), D, ["data 'y' has NaN", r"\(5,\)"]),
    "a negative count": (made(poisson, y=np.array([1, -1, 2])), D, ["data 'y'", "-1", r"\(1,\)", "Poisson", "Correct the data"]),
    "more successes than trials": (made(binomial, total=np.array([3, 3]), y=np.array([1, 4])), D, ["data 'y'", "4", r"\(1,\)", "Binomial"]),
    "ragged data": (lambda: model(x=[[1.0, 2.0], [3.0]]), D, ["'x' is ragged", "pad it"]),
    "strings": (lambda: model(x=["a"] * 20), D, ["'x'", "<U1", "expected numbers", "integers from 0"]),
    "objects": (lambda: model(x=np.array([None] * 20)), D, ["'x'", "object", "expected numbers"]),
    "a masked array": (lambda: model(x=np.ma.masked_less(X, 0)), D, ["'x' is a masked array", "two arguments"]),
    "observation of the wrong length": (lambda: model(y=Y[:5]), D, ["'y'", r"\(5,\)", r"\(20,\)", "same shape"]),
    "a column broadcasts": (made(column, x=X[:, None], y=Y), D, ["'y'", r"\(20,\)", r"\(20, 1\)", "flatten a column"]),
    "a column broadcasts in a plate": (lambda: model(x=X[:, None]), D, ["'y'", r"\(20,\)", r"\(20, 20\)", "flatten a column"]),
    "coordinate of the wrong length": (lambda: pg.Model(line, {"x": X}, coords={"row": range(19)}), D, ["'row'", "19 labels", "length 20"]),
    "a scalar coordinate": (lambda: pg.Model(line, {"x": X}, coords={"row": 20}), D, ["'row'", "list of labels", "got 20"]),
    "condition of the wrong shape": (lambda: model().condition(slope=np.ones(2)), D, [r"condition\(slope", r"\(2,\)", r"shape \(\)"]),
    "condition outside the support": (lambda: model().condition(spread=-1.0), D, [r"condition\(spread", "-1.0", "HalfNormal"]),
    "do of the wrong shape": (lambda: model().do(y=np.ones(3)), M, [r"do\(y", r"\(3,\)", r"\(20,\)", "scalar or an array"]),
    "condition on a deterministic site": (lambda: model().do(slope=1.0).condition(slope=1.0), M, ["'slope' is deterministic", "sample site"]),
    "a constant outside the support": (made(constant_outside), D, ["the observation of site 'y'", "-2", "Poisson"]),
    # programs
    "program not callable": (lambda: pg.Model("line", {}), M, ["must be a function", "got str"]),
    "unhashable program": (made(Unhashable()), M, ["hashable", "Pass arrays as data"]),
    "branching on a sampled value": (made(branching), M, ["branches", "a sampled value", "after site 'a'", "line [0-9]+ of test_errors", "cond"]),
    "counting with a sampled value": (made(looping), M, ["counts with", "after site 'n'", "cond"]),
    "size from an array value": (made(sized, groups=np.int64(3)), M, ["counts with", "the argument 'groups'", "Python ints"]),
    "boolean indexing": (made(selecting, y=Y), M, ["boolean array", "after site 'a'", "jnp.where"]),
    "NumPy on a sampled value": (made(numpy_on_values), M, ["NumPy", "after site 'a'", "jax.numpy"]),
    "global NumPy randomness": (made(numpy_globally), M, ["draws from numpy.random", "freeze", "numpyro.sample"]),
    "Python's randomness": (made(python_random), M, ["draws from random", "freeze", "numpyro.sample"]),
    "an unseeded generator": (made(unseeded), M, ["different numbers", "random numbers", "numpyro.sample"]),
    "a generator outside the program": (made(shared_generator), M, ["draws from RNG", "freeze"]),
    "an exception inside": (made(failing, x=X), M, ["KeyError", "after site 'a'", "no column 'age'", "Correct the program", "x"]),
    "a misspelt parameter": (made(misspelt_parameter), M, ["TypeError", "before its first site", "scael"]),
    "no distribution": (made(not_a_distribution), M, ["TypeError", "received float"]),
    "mutable state": (made(mutable), M, ["'state' is mutable", "running statistics"]),
    "a support without coordinates": (made(sphere), M, ["'a'", "Sphere", "no bijection", "transform"]),
    "a latent Delta": (made(latent_delta), M, ["'a' is a latent Delta", "numpyro.deterministic"]),
    "sample_shape": (made(sample_shape), M, ["'a'", r"sample_shape \(3,\)", "numpyro.plate"]),
    "too many event dims": (made(too_many_event_dims), M, ["'a' has event_dims", r"shape \(2,\)", "one name per event axis"]),
    "two axes of one name": (made(twin_axes), M, ["'a' has two axes called 'p'"]),
    "scan inside a plate": (made(scan_in_plate, y=Y), M, ["control flow", "plate", "body"]),
    "scan inside a scan": (made(scan_in_scan), M, ["'x' stands in a scan inside a scan", "before the outer scan"]),
    # settings
    "negative draws": (infer(draws=-1), E, ["draws must be", "at least 1", "got -1"]),
    "zero chains": (infer(chains=0), E, ["chains must be", "at least 1", "got 0"]),
    "fractional warm-up": (infer(warmup=0.5), E, ["warmup must be an int", "got 0.5"]),
    "negative seed": (infer(seed=-1), pg.ProbgenError, ["seed must not be negative", "got -1"]),
    "a float as seed": (infer(seed=0.5), pg.ProbgenError, ["seed must be an int or a typed key", "got float", "seed=0"]),
    "a raw key as seed": (infer(seed=jnp.zeros(2, jnp.uint32)), pg.ProbgenError, ["typed key", r"jax.random.key\(0\)"]),
    "several keys as seed": (infer(seed=jax.random.split(jax.random.key(0))), pg.ProbgenError, ["one key", r"\(2,\)"]),
    "unknown backend": (infer(method=pg.NUTS(backend="blackjack")), E, ["'blackjack'", "NUTS", "Did you mean 'blackjax'"]),
    "a class as method": (infer(method=pg.NUTS), E, ["method object", "got NUTS", r"pg.NUTS\(\)"]),
    "a string as method": (infer(method="nuts"), E, ["method object", "'nuts'", r"pg.NUTS\(\)"]),
    "target_accept out of range": (infer(method=pg.NUTS(target_accept=1.2)), E, ["target_accept", "between 0 and 1", "1.2", "0.8"]),
    "unknown metric": (infer(method=pg.NUTS(metric="dens")), E, ["metric is 'dens'", "Did you mean 'dense'"]),
    "not a model": (lambda: pg.infer(line, pg.NUTS()), M, ["pg.Model", "got function", r"pg.Model\(program"]),
    # what a method needs
    "observed argument not given": (fitted(line, x=X), D, ["'y'", "not given", "data=", "pg.simulate"]),
    "nothing latent": (fitted(all_known, y=1.0), M, ["no latent site", "nothing to infer"]),
    "an infinite discrete site": (fitted(counts), E, ["'n'", "Poisson", "discrete", r"pg\.\w+"]),
    "a param site": (fitted(parameter), E, ["'scale' is a numpyro.param", "frozen", "numpyro.sample"]),
    "a subsampled plate": (fitted(minibatch, y=Y), E, ["plate 'row'", "5 of 20", "subsample_size", r"pg\.\w+"]),
    "random keys inside": (fitted(own_key), E, ["prng_key", "random", "numpyro.sample"]),
    "drawing from an improper prior": (lambda: Density(pg.Model(flat)).draw_prior(jax.random.key(0)), E, ["'a' has an improper prior", "proper"]),
}  # fmt: skip
AFTER_COMPILING = {
    "start at -inf": (fitted(impossible), E, ["no starting point", r"y \(-inf\)", "support"]),
    "NaN gradient": (fitted(steep), E, ["no starting point", "gradient", r"cusp \((nan|inf)\)"]),
}


def check(provoke, error, patterns):
    with pytest.raises(error) as caught:
        provoke()
    message = str(caught.value)
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in: {message}"
    assert message.endswith((".", "?")), f"not a sentence: {message}"


@pytest.mark.parametrize(("provoke", "error", "patterns"), CASES.values(), ids=CASES.keys())
def test_message(provoke, error, patterns):
    before = compile_count()
    check(provoke, error, patterns)
    assert compile_count() == before


@pytest.mark.parametrize(("provoke", "error", "patterns"), AFTER_COMPILING.values(), ids=AFTER_COMPILING.keys())
def test_message_of_a_start_that_fails(provoke, error, patterns):
    check(provoke, error, patterns)


def test_a_program_that_prints_is_warned_of():
    with pytest.warns(pg.ProbgenWarning, match="hello from the model.*jax.debug.print"):
        pg.Model(printing)


def test_the_table_is_long_enough():
    assert len(CASES) + len(AFTER_COMPILING) >= 35


# -- what must not be refused ------------------------------------------------------------------------------------------


def test_programs_may_mask_nan_themselves():
    def program(x, y):
        slope = numpyro.sample("slope", dist.Normal())
        x = jnp.where(jnp.isnan(x), 0.0, x)
        with numpyro.plate("row", len(y)), handlers.mask(mask=~jnp.isnan(y)):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    gaps = pg.Model(program, {"x": with_at(X, 1, np.nan), "y": with_at(Y, 2, np.nan)})
    assert np.isfinite(Density(gaps).log_density(jnp.zeros(1)))


def test_infinite_bounds_are_fine():
    def program(high, y):
        m = numpyro.sample("m", dist.Normal())
        numpyro.sample("y", dist.TruncatedNormal(m, 1.0, low=-1.0, high=high), obs=y)

    pg.Model(program, {"high": np.inf, "y": 3.0})


def test_supports_that_depend_on_latents_are_not_judged_early():
    def program(y):
        top = numpyro.sample("top", dist.Pareto(1.0, 1.0))
        numpyro.sample("y", dist.Uniform(0.0, top).expand([20]).to_event(1), obs=y)

    pg.Model(program, {"y": np.abs(Y) + 50})


def test_a_seeded_generator_inside_is_a_constant():
    def program():
        weights = np.random.default_rng(0).normal(size=3)
        numpyro.sample("a", dist.Normal(weights, 1.0).to_event(1))

    pg.Model(program)


def test_random_keys_are_fine_where_nothing_needs_a_density():
    assert pg.Model(own_key).own_keys
