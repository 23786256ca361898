"""How kernels are run: keys, pieces, thinning, kept warm-up, restarts, threads, and what compiled programs are kept by."""

import collections
import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.base.keys import SeedError
from probgen.infer import chains, programs, sampling, sink
from probgen.infer.quarantine import Verdict
from probgen.kernels.kernel import Draw, Kernel
from probgen.kernels.loop import begin
from probgen.kernels.metric import estimate_of
from probgen.program.density import Density
from probgen.run.driver import drive, pieces
from probgen.run.progress import Progress


def normal(y):
    m = numpyro.sample("m", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(m, 1.0), obs=y)


@pytest.fixture(scope="module")
def model():
    return pg.Model(normal, {"y": 2.0})


def fit(model, **plan):
    return pg.infer(model, pg.NUTS(), **{"draws": 60, "warmup": 60, "chains": 2, "progress": False, **plan})


# -- keys ------------------------------------------------------------------------------------------------------------


class Keeps(Kernel):
    """A kernel whose state is where it started and the key that it was given there."""

    warmup: int = eqx.field(static=True)

    def init(self, key, density, u):
        return u, jax.random.key_data(key)

    def step(self, key, density, state):
        return state, Draw(state[0], {})


def test_the_start_shares_no_key_with_the_steps(model):
    # split(key)[i] is fold_in(key, i), the key of step i: a momentum would be a function of the starting point.
    key = jax.random.key(3)
    (u, key_init), _ = begin(key, Keeps(0), Density(model), 1)
    for i in range(100):
        key_step = jax.random.fold_in(key, i)
        tried = [jax.random.uniform(jax.random.fold_in(key_step, j), (1,), float, -2, 2) for j in range(5)]
        assert not np.array_equal(key_init, jax.random.key_data(key_step))
        assert not np.isin(u, tried).any()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_kind_are_seeds(model, impl):
    m = fit(model, seed=jax.random.key(0, impl=impl))["posterior/m"]
    assert abs(m.mean() - 2) < 1


@pytest.mark.parametrize("seed", [2**63, 2**70])
def test_seeds_that_would_lose_bits_are_refused(model, seed):
    with pytest.raises(SeedError, match=r"less than 2\*\*63"):
        fit(model, seed=seed)


def test_counts_may_be_numpy_ints(model):
    tree = fit(model, draws=np.int64(60), warmup=np.int32(60), chains=np.int16(2))
    np.testing.assert_array_equal(tree["posterior/m"], fit(model)["posterior/m"])
    assert tree.attrs["draws"] == 60


# -- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 10, 50])
def test_pieces_cover_the_steps_and_end_at_multiples_of_their_size(size):
    cut = pieces(4, 31, size)
    assert [step for first, last in cut for step in range(first, last)] == list(range(4, 31))
    assert all((31 - last) % size == 0 for _, last in cut)
    assert pieces(7, 7, size) == []


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    ("draws", "warmup", "thin"),
    [
        (40, 25, 10),
        *(pytest.param(*n, marks=pytest.mark.slow) for n in ((20, 410, 3), (60, 80, 1))),
        (7, 0, 2),
        (1, 19, 1),
    ],
)
def test_a_kept_warmup_and_pieces_change_no_draw(model, draws, warmup, thin, progress):
    whole = fit(model, draws=draws * thin, warmup=warmup)["posterior/m"].values[:, thin - 1 :: thin]
    tree = fit(model, draws=draws, warmup=warmup, thin=thin, keep_warmup=True, progress=progress)
    np.testing.assert_array_equal(tree["posterior/m"], whole)
    if warmup:
        kept = tree["warmup_posterior/m"].values
        unthinned = fit(model, draws=1, warmup=warmup, keep_warmup=True)["warmup_posterior/m"].values
        np.testing.assert_array_equal(kept, unthinned[:, warmup % thin :][:, thin - 1 :: thin])


def test_chains_in_one_batch_draw_what_chains_in_threads_draw(model, monkeypatch):
    threads = fit(model, draws=10, warmup=10, chains=3)
    monkeypatch.setattr(programs, "batched_by_default", lambda: True)
    batch = fit(model, draws=10, warmup=10, chains=3)
    np.testing.assert_allclose(batch["posterior/m"], threads["posterior/m"], rtol=1e-6)


def test_chains_take_turns_so_that_an_interruption_finds_draws_of_all(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    taken = collections.deque()
    workers = [lambda first, last, i=i: taken.append((first, i)) or time.sleep(0.002) or {} for i in range(4)]
    assert not drive(workers, pieces(0, 10, 1), Progress([""] * 4, 10, shown=False))
    assert len(taken) == 40
    assert all(sorted(first for first, w in taken if w == i) == list(range(10)) for i in range(4))
    assert {i for _, i in list(taken)[:20]} == {0, 1, 2, 3}


# -- second starts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_lost(monkeypatch):
    """Whatever was drawn first, chain 1 is called lost."""
    agree = Verdict((), 1.0, 0, ())
    verdicts = itertools.chain([Verdict((1,), 2.0, 0, ("Chain 1 is lost.",))], itertools.repeat(agree))
    monkeypatch.setattr(sampling, "compare", lambda *_: next(verdicts))


def test_only_the_lost_chain_is_run_again(model, one_lost):
    again = fit(model)
    assert again.attrs["restarted_chains"] == "[1]"
    assert again.attrs["ended"] == "completed"
    first = fit(model)["posterior/m"]
    np.testing.assert_array_equal(again["posterior/m"][0], first[0])
    assert not np.array_equal(again["posterior/m"][1], first[1])


def test_chains_that_are_lost_later_are_run_again_too(model, monkeypatch):
    """All began in a minor mode, say: the first one to leave it shows that the others are lost."""
    found = [((1,), ("Chain 1 is lost.",)), ((0,), ("Chain 0 is lost.",))]
    verdicts = itertools.chain(
        (Verdict(lost, 2.0, 0, why) for lost, why in found), itertools.repeat(Verdict((), 1.0, 0, ()))
    )
    monkeypatch.setattr(sampling, "compare", lambda *_: next(verdicts))
    again = fit(model)
    assert again.attrs["restarted_chains"] == "[0, 1]"
    assert again.attrs["ended"] == "completed"


def test_runs_of_lost_chains_come_to_an_end(model, monkeypatch):
    calls, lost = [], Verdict((1,), 2.0, 0, ("Chain 1 is lost.",))
    monkeypatch.setattr(sampling, "compare", lambda *_: calls.append(1) or lost)
    with pytest.warns(pg.ProbgenWarning, match="Chain 1 is lost"):
        assert fit(model).attrs["ended"] == "chains_disagree"
    assert len(calls) == 1 + sampling.SECOND_RUNS


def test_an_interrupted_second_start_leaves_the_first_run_whole(model, one_lost, monkeypatch):
    drive = sampling._drive
    monkeypatch.setattr(sampling, "_drive", lambda programs, jobs, *best: jobs[0].sink.again or drive(programs, jobs))
    tree = fit(model)
    assert tree["posterior/m"].shape == (2, 60)
    assert tree.attrs["ended"] == "interrupted"
    assert "restarted_chains" not in tree.attrs


def test_a_second_start_is_not_judged_by_the_warmup_of_the_others(model, one_lost, monkeypatch):
    seen, read = [], sink.Sink.read

    def recorded(self, *args):
        seen.append(read(self, *args))
        return seen[-1]

    monkeypatch.setattr(sink.Sink, "read", recorded)
    fit(model, keep_warmup=True)
    assert {len(draws) for draws in seen} == {60}


def test_a_second_start_that_finds_no_finite_point_leaves_the_first_run_whole(model, one_lost, monkeypatch):
    begin = chains.Job.work

    def nowhere(self, first, last):
        if self.sink.again:
            self.started = False
            return {}
        return begin(self, first, last)

    monkeypatch.setattr(chains.Job, "work", nowhere)
    with pytest.warns(pg.ProbgenWarning, match="Chain 1 is lost"):
        tree = fit(model)
    assert tree["posterior/m"].shape == (2, 60)
    assert tree.attrs["ended"] == "chains_disagree"
    assert "restarted_chains" not in tree.attrs


# -- what compiled programs are kept by ------------------------------------------------------------------------------


def test_what_a_program_finds_outside_of_its_arguments_may_change():
    outside = {"y": np.array([1.0, 2.0, 3.0]), "scale": 1.0}
    y, scale = outside["y"], outside["scale"]

    def observe(m):
        numpyro.sample("y", dist.Normal(m, scale).expand([3]).to_event(1), obs=y)

    def program():
        observe(numpyro.sample("m", dist.Normal(0.0, 100.0)))

    def posterior():
        tree = fit(pg.Model(program))
        return float(tree["posterior/m"].mean()), float(tree["posterior/m"].std()), tree["observed_data/y"].values

    mean, spread, _ = posterior()
    assert abs(mean - 2) < 1
    y = y + 50  # another array
    mean, _, seen = posterior()
    assert abs(mean - 52) < 1
    np.testing.assert_array_equal(seen, y)
    y[:] = -50.0  # the same array, changed in place
    assert abs(posterior()[0] + 50) < 1
    scale = 10.0
    assert posterior()[1] > 4 * spread


def test_the_object_of_a_method_may_change():
    class Study:
        def __init__(self, y):
            self.y = y

        def program(self):
            normal(self.y)

    study = Study(3.0)
    first = fit(pg.Model(study.program))["posterior/m"].mean()
    study.y = -3.0
    second = fit(pg.Model(study.program))["posterior/m"].mean()
    assert first > 2
    assert second < -2


def test_settings_that_are_equal_but_of_another_type_are_told_apart():
    def program(switch):
        m = numpyro.sample("m", dist.Normal())
        numpyro.deterministic("kind", jnp.where(isinstance(switch, bool), 0.0, 1.0) + 0 * m)

    kinds = [fit(pg.Model(program, {"switch": switch}))["posterior/kind"].values for switch in (True, 1)]
    assert (kinds[0] == 0).all()
    assert (kinds[1] == 1).all()


def test_fits_in_threads_do_not_see_one_another(capsys):
    def study(i):
        def program(y):
            m = numpyro.sample(f"m{i}", dist.Normal(0.0, 10.0))
            for j in range(5):
                numpyro.deterministic(f"d{i}_{j}", j * m)
            numpyro.sample(f"y{i}", dist.Normal(m, 1.0), obs=y)

        models = [pg.Model(program, {"y": float(i)}) for _ in range(10)]
        names = {f"m{i}", f"y{i}", *(f"d{i}_{j}" for j in range(5))}
        return all({site.name for site in m.sites} == names for m in models) and fit(models[0])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(study, range(4)))
    finally:
        sys.setswitchinterval(interval)
    for i, tree in enumerate(trees):
        assert abs(tree[f"posterior/m{i}"].mean() - i) < 1
    print("standard output is ours again")
    assert "ours again" in capsys.readouterr().out


# -- the metric ------------------------------------------------------------------------------------------------------


def condition(kind, covariance, count, dtype):
    """Condition number of a Gaussian in the whitened coordinates that ``count`` of its draws lead to."""
    dim = len(covariance)
    u = np.random.default_rng(0).normal(size=(count, dim)) @ np.linalg.cholesky(covariance).T
    grads = -np.linalg.solve(covariance, u.T).T
    pairs = jnp.asarray(u, dtype), jnp.asarray(grads, dtype)
    empty = jax.tree.map(lambda x: x.astype(dtype), estimate_of(kind, dim).empty(dim))
    metric = jax.lax.scan(lambda estimate, pair: (estimate.add(*pair), None), empty, pairs)[0].metric()
    inverse = np.linalg.inv(np.asarray(jax.vmap(metric.push)(jnp.eye(dim, dtype=dtype)), float).T)
    return np.linalg.cond(inverse @ covariance @ inverse.T)


DISTANCE = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
RANDOM_WALK = np.minimum.outer(np.arange(40), np.arange(40)) + 1.0


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("kind", ["dense", "low_rank"])
@pytest.mark.parametrize("count", [10, 30, 39])
def test_a_window_with_fewer_draws_than_dimensions_does_no_harm(kind, count, dtype):
    assert condition(kind, np.eye(40), count, dtype) < 1.5
    for covariance in (0.9**DISTANCE, RANDOM_WALK):
        assert condition(kind, covariance, count, dtype) < condition("diagonal", covariance, count, dtype)


def test_a_dense_metric_is_exact_with_more_draws_than_dimensions():
    assert condition("dense", 0.9**DISTANCE, 45, jnp.float64) < 1.05
