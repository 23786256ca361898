"""Runs that survive: whatever interrupts a run, the same call ends with the same draws, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import xarray

import probgen as pg
from probgen.infer import chains, programs
from probgen.run import output
from probgen.run.store import Pace, Store


def program(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("school", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
    numpyro.deterministic("best", jnp.max(theta))


COORDS = {"school": ["A", "B", "Ç", "D"]}
MODEL = pg.Model(program, data={"y": np.array([1.0, -0.5, 2.0, 0.3])}, coords=COORDS)
RUN = {"draws": 60, "warmup": 60, "chains": 2, "seed": 3}


def assert_same(a, b):
    assert set(a.groups) == set(b.groups)
    for group in a.groups:
        xarray.testing.assert_identical(a[group].to_dataset().drop_attrs(), b[group].to_dataset().drop_attrs())
    differing = {k for k in {**a.attrs, **b.attrs} if a.attrs.get(k) != b.attrs.get(k)}
    assert all(name.startswith("seconds_") for name in differing), differing


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Save after every piece, so that small runs have something to lose."""
    monkeypatch.setattr(Pace, "SECONDS", -1.0)
    monkeypatch.setattr(Pace, "SHARE", float("inf"))


@pytest.fixture(scope="module")
def plain():
    return pg.infer(MODEL, pg.NUTS(), **RUN)


METHODS = {
    "nuts": pg.NUTS(),
    "random_walk": pg.RandomWalk(),
    "ensemble": pg.AIES(),
    "sgld": pg.SGLD(step_size=0.01, decay=0.6),
    "svi": pg.SVI(steps=1000, window=100),
    "svgd": pg.SVGD(particles=30, steps=300),
    "stein_vi": pg.SteinVI(components=2, steps=400, window=100),
    "pathfinder": pg.Pathfinder(),
}


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ("random_walk", "stein_vi") else []) for n in METHODS]
)
def test_a_store_changes_no_number(name, tmp_path):
    run = RUN | ({"chains": 16} if name == "ensemble" else {})
    method = METHODS[name]
    stored = pg.infer(MODEL, method, **run, store=tmp_path / "run.zarr")
    assert_same(stored, pg.infer(MODEL, method, **run))
    assert_same(stored, pg.load(tmp_path / "run.zarr"))


def test_a_kept_and_thinned_warmup_is_stored_too(tmp_path):
    run = RUN | {"keep_warmup": True, "thin": 3, "warmup": 61}
    assert_same(pg.infer(MODEL, pg.NUTS(), **run, store=tmp_path / "run.zarr"), pg.infer(MODEL, pg.NUTS(), **run))


def test_the_same_call_on_a_run_that_has_ended_computes_nothing(plain, tmp_path, monkeypatch):
    first = pg.infer(MODEL, pg.NUTS(), **RUN, store=tmp_path / "run.zarr")
    monkeypatch.setattr(programs.Programs, "__init__", lambda *_: pytest.fail("it ran again"))
    assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=tmp_path / "run.zarr"), first)
    assert_same(first, plain)
    assert {item.name for item in (tmp_path / "run.zarr" / "resume").iterdir()} <= {
        "identity.record",
        "sealed.record",
        "lock",
    }


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(monkeypatch, n, after):
    """End the process at its n-th write: before the new file takes its place, or after."""
    count, replace = 0, os.replace

    def fatal(source, target):
        nonlocal count
        count += 1
        if count > n:  # other threads die as well
            raise Killed
        if count == n and not after:
            raise Killed
        replace(source, target)
        if count == n:
            raise Killed

    monkeypatch.setattr(output.os, "replace", fatal)


@pytest.mark.parametrize(
    ("method", "writes"),
    [
        (pg.NUTS(), 926),
        (pg.SVI(steps=600, window=100), 40),
        pytest.param(pg.SVGD(particles=30, steps=600), 40, marks=pytest.mark.slow),
        pytest.param(pg.SteinVI(components=2, steps=600, window=100), 40, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_killed_at_any_write_it_goes_on_bit_for_bit(method, writes, tmp_path, monkeypatch):
    """It dies again and again, each time after more writes; between the deaths the store opens as a tree."""
    whole = pg.infer(MODEL, method, **RUN)
    path, deaths = tmp_path / "run.zarr", 0
    for death in range(12):
        n = 1 + death * writes // 40
        with monkeypatch.context() as patch:
            killed_at(patch, n, after=death % 2 == 1)
            try:
                tree = pg.infer(MODEL, method, **RUN, store=path)
                break
            except Killed:
                deaths += 1
        if (path / "zarr.json").exists():
            partial = pg.load(path)
            xarray.open_datatree(path, engine="zarr").close()
            if "posterior" in partial.children:
                drawn = partial["posterior"].sizes.get("draw", 0)
                np.testing.assert_array_equal(
                    partial["posterior"]["theta"], whole["posterior"]["theta"].isel(draw=slice(0, drawn))
                )
    else:
        tree = pg.infer(MODEL, method, **RUN, store=path)
    assert deaths > 5
    assert_same(tree, whole)


CHILD = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[2])
import numpy as np
import probgen as pg
from probgen.infer import chains
from probgen.run.store import Pace
from tests_program import MODEL, RUN
Pace.SECONDS, Pace.SHARE = -1.0, float("inf")
once = chains.Job.work
def work(self, first, last):
    if not work.told:
        work.told = True
        print("running", flush=True)
    return once(self, first, last)
work.told = False
chains.Job.work = work
pg.infer(MODEL, pg.NUTS(), **RUN, store=sys.argv[1])
print("ended", flush=True)
"""

CHILD_PROGRAM = """
import numpy as np, numpyro, numpyro.distributions as dist
import probgen as pg

def program(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("school", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

MODEL = pg.Model(program, data={"y": np.array([1.0, -0.5, 2.0, 0.3])})
RUN = {"draws": 200_000, "warmup": 500, "chains": 2, "seed": 11}
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, times):
    """The real thing: the process is killed by the system, and the next one goes on."""
    (tmp_path / "tests_program.py").write_text(CHILD_PROGRAM)
    (tmp_path / "child.py").write_text(CHILD)
    path, moments, kills = tmp_path / "run.zarr", random.Random(0), 0
    command = [sys.executable, str(tmp_path / "child.py"), str(path), str(tmp_path)]
    grown = []
    for _ in range(times):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = child.stdout.readline()
        assert line.strip() == "running", child.stderr.read()
        time.sleep(moments.uniform(0.0, 0.25))
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        grown.append(pg.load(path)["posterior"].sizes["draw"] if (path / "posterior").exists() else 0)
    assert kills == times
    assert grown == sorted(grown)
    assert grown[-1] > 0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1] == "ended", done.stderr
    sys.path.insert(0, str(tmp_path))
    try:
        import tests_program
    finally:
        sys.path.remove(str(tmp_path))
    whole = pg.infer(tests_program.MODEL, pg.NUTS(), **tests_program.RUN)
    assert_same(pg.load(path), whole)


def test_interrupted_by_ctrl_c_it_keeps_what_was_drawn(plain, tmp_path, monkeypatch):
    path, work = tmp_path / "run.zarr", chains.Job.work

    def interrupted(self, first, last):
        if last >= RUN["warmup"] + 30 and self.name == "chain-1":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread gets it
        return work(self, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(chains.Job, "work", interrupted)
        some = pg.infer(MODEL, pg.NUTS(), **RUN, store=path)
    assert some.attrs["ended"] == "interrupted"
    drawn = some["posterior"].sizes["draw"]
    assert 0 < drawn < RUN["draws"]
    np.testing.assert_array_equal(some["posterior"]["theta"], plain["posterior"]["theta"].isel(draw=slice(0, drawn)))
    assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=path), plain)


def test_a_store_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.zarr"
    pg.infer(MODEL, pg.NUTS(), **RUN, store=path)

    def other(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 4))
        tau = numpyro.sample("tau", dist.HalfNormal(2))
        with numpyro.plate("school", 4):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        numpyro.deterministic("best", jnp.max(theta))

    data = {"y": np.array([1.0, -0.5, 2.0, 0.4])}
    cases = [
        (pg.Model(other, MODEL.leaves, coords=COORDS), pg.NUTS(), RUN, "differs in the program"),
        (MODEL.with_data(**data), pg.NUTS(), RUN, "differs in the data 'y'"),
        (MODEL, pg.NUTS(target_accept=0.9), RUN, r"setting 'target_accept' of the method \(there None, here 0.9\)"),
        (MODEL, pg.NUTS(), RUN | {"draws": 61}, r"draws \(there 60, here 61\)"),
        (MODEL, pg.NUTS(), RUN | {"seed": 4}, "seed"),
        (MODEL, pg.RandomWalk(), RUN, r"method \(there nuts, here random_walk\)"),
    ]
    for model, method, run, words in cases:
        with pytest.raises(pg.StoreError, match=words):
            pg.infer(model, method, **run, store=path)


def test_a_comment_or_another_name_makes_no_other_program(tmp_path):
    path = tmp_path / "run.zarr"
    first = pg.infer(MODEL, pg.NUTS(), **RUN, store=path)

    def renamed(y=None):
        # The same, said in other words.
        m = numpyro.sample("mu", dist.Normal(0, 3))
        t = numpyro.sample("tau", dist.HalfNormal(2))
        with numpyro.plate("school", 4):
            effects = numpyro.sample("theta", dist.Normal(m, t))
            numpyro.sample("y", dist.Normal(effects, 1.0), obs=y)
        numpyro.deterministic("best", jnp.max(effects))

    model = pg.Model(renamed, MODEL.leaves, coords=COORDS)
    assert_same(pg.infer(model, pg.NUTS(), **RUN, store=path), first)


def test_two_processes_never_share_a_store(tmp_path):
    with (
        Store(tmp_path / "run.zarr", {"a": "b"}),
        pytest.raises(pg.StoreError, match="in use by another process"),
    ):
        Store(tmp_path / "run.zarr", {"a": "b"})
    Store(tmp_path / "run.zarr", {"a": "b"}).__exit__()  # and it is free again


def full(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "run.nc", "must be a folder"),
        (lambda p: p / "missing" / "run.zarr", "does not exist"),
        (lambda p: (p / "file.zarr").write_text("x") and p / "file.zarr", "is a file"),
        (lambda p: full(p / "full.zarr"), "something else"),
    ],
)
def test_a_path_that_cannot_be_a_store_is_refused_before_any_work(make, words, tmp_path, monkeypatch):
    monkeypatch.setattr(programs.Programs, "__init__", lambda *_: pytest.fail("it ran"))
    with pytest.raises(pg.StoreError, match=words):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=make(tmp_path))


def test_a_folder_of_a_tree_that_cannot_be_resumed_is_not_overwritten(plain, tmp_path):
    plain.to_zarr(tmp_path / "theirs.zarr")
    with pytest.raises(pg.StoreError, match="something else"):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=tmp_path / "theirs.zarr")


def test_a_full_disk_harms_nothing(plain, tmp_path, monkeypatch):
    path, fsync, left = tmp_path / "run.zarr", os.fsync, [400]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "fsync", full)
        with pytest.raises(pg.StoreError, match=r"cannot be written \(No space left on device\)"):
            pg.infer(MODEL, pg.NUTS(), **RUN, store=path)
    assert not list(path.rglob("*.partial"))
    pg.load(path)
    assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=path), plain)


def test_a_folder_that_is_read_only_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # permissions mean nothing to an administrator
        mkdir = type(folder).mkdir

        def refused(self, *args, **kwargs):
            if folder in self.parents:
                raise PermissionError(13, "Permission denied")
            mkdir(self, *args, **kwargs)

        monkeypatch.setattr(type(folder), "mkdir", refused)
    with pytest.raises(pg.StoreError, match="Permission denied"):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=folder / "run.zarr")


def interrupted_store(path, monkeypatch, writes=25):
    with monkeypatch.context() as patch:
        killed_at(patch, writes, after=True)
        with pytest.raises(Killed):
            pg.infer(MODEL, pg.NUTS(), **RUN, store=path)


@pytest.mark.parametrize("part", ["chunk", "state", "identity"])
def test_damage_is_found_and_named_before_it_goes_on(part, tmp_path, monkeypatch):
    path = tmp_path / "run.zarr"
    interrupted_store(path, monkeypatch, 600)
    file = {
        "chunk": path / "posterior" / "theta" / "c.0.0.0",
        "state": path / "resume" / "chain-0.record",
        "identity": path / "resume" / "identity.record",
    }[part]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    words = (
        "chunk c.0.0.0 of posterior/theta does not fit its checksum" if part == "chunk" else f"{file.name} is damaged"
    )
    with pytest.raises(pg.StoreError, match=words):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=path)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    from probgen.run import record

    path = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(record, "FORMAT", record.FORMAT + 1)
        interrupted_store(path, monkeypatch)
    with pytest.raises(pg.StoreError, match="Use a newer probgen"):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=path)


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_a_lost_chain_is_started_again_in_a_store_too(tmp_path, monkeypatch):
    """The second run of a chain, killed in the middle, ends as if it had not been."""
    from probgen.infer import sampling

    compare, calls = sampling.compare, []

    def lost_once(u, stats, skip=0):
        verdict = compare(u, stats, skip)
        calls.append(1)
        return type(verdict)((1,), 9.0, 0, ("Chain 1 is lost, for a test.",)) if len(calls) == 1 else verdict

    monkeypatch.setattr(sampling, "compare", lost_once)
    whole = pg.infer(MODEL, pg.NUTS(), **RUN)
    assert whole.attrs["restarted_chains"] == "[1]"
    for writes in (600, 1000, 1300):
        path = tmp_path / f"run{writes}.zarr"
        calls.clear()
        interrupted_store(path, monkeypatch, writes)
        if (path / "resume" / "stage-1.record").exists():
            calls.append(1)  # the verdict is known; it is not asked for again
        else:
            calls.clear()
        assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=path), whole)


def test_memory_stays_bounded(tmp_path):
    """Draws of 200 MB, and as much again in unconstrained coordinates, pass through far less: they are on disk, not in memory."""
    tracked = """
import resource, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpyro, numpyro.distributions as dist
import probgen as pg

def program():
    numpyro.sample("x", dist.Normal(0, 1).expand([250]).to_event(1))

def grown(draws, path):
    pg.infer(pg.Model(program), pg.RandomWalk(), draws=draws, warmup=50, chains=2, seed=0, store=path)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = grown(2_000, sys.argv[1] + "/a.zarr")
from probgen.run import archive
archive._IN_MEMORY = 1
after = grown(50_000, sys.argv[1] + "/b.zarr")
print((after - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", tracked, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 120  # MB


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_another_start_in_the_warmup_is_never_forgotten(tmp_path, monkeypatch):
    """Chains that were given another start had not been saved since, when the process dies after another one has."""
    from probgen.infer import sampling

    run = RUN | {"chains": 3, "warmup": 200}
    monkeypatch.setattr(sampling, "BEHIND", 0.05 - 3 * np.sqrt(6))  # all are behind the best
    monkeypatch.setattr(Pace, "SECONDS", 1e9)
    work, begun = chains.Job.work, []
    whole = pg.infer(MODEL, pg.NUTS(), **run)

    with monkeypatch.context() as patch:

        def dying(self, first, last):
            shown = work(self, first, last)
            begun.append(self.attempt)
            if last > 50 and not self.attempt:
                self.save()
                killed_at(patch, 0, after=False)
                raise Killed
            return shown

        patch.setattr(chains.Job, "work", dying)
        with pytest.raises(Killed):
            pg.infer(MODEL, pg.NUTS(), **run, store=tmp_path / "run.zarr")
    assert max(begun) > 0
    assert_same(pg.infer(MODEL, pg.NUTS(), **run, store=tmp_path / "run.zarr"), whole)


def interrupted_at(monkeypatch, step, once=False):
    """Ctrl-C before the first chain takes that step."""
    work, times = chains.Job.work, []

    def interrupted(self, first, last):
        if last >= step and self.chains.start == 0 and not (once and times):
            times.append(1)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.2)  # the main thread gets it
        return work(self, first, last)

    monkeypatch.setattr(chains.Job, "work", interrupted)


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.parametrize(
    ("method", "seed"), [(pg.SGLD(step_size=0.01, decay=0.6), 3), (pg.NUTS(), jax.random.key(3, impl="rbg"))]
)
def test_interrupted_twice_it_ends_the_same(method, seed, tmp_path, monkeypatch):
    """Statistics that are made from all draws at the end, and keys of another kind."""
    run = RUN | {"seed": seed, "keep_warmup": False}
    whole = pg.infer(MODEL, method, **run)
    for step in (80, 95):
        with monkeypatch.context() as patch:
            interrupted_at(patch, step)
            some = pg.infer(MODEL, method, **run, store=tmp_path / "run.zarr")
        assert some.attrs["ended"] == "interrupted"
        assert some["posterior"].sizes["draw"] < RUN["draws"]
        assert np.isfinite(some["sample_stats"].get("log_weight", xarray.DataArray(0.0))).all()
    assert_same(pg.infer(MODEL, method, **run, store=tmp_path / "run.zarr"), whole)


def test_further_ctrl_c_wait_for_the_pieces_at_work():
    """With a store nobody may still write when the call has returned and the lock is free."""
    from probgen.run.driver import drive
    from probgen.run.progress import Progress

    ended = []

    def worker(first, last):
        for _ in range(2):
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        ended.append(last)
        return {}

    assert drive([worker], [(0, 1), (1, 2)], Progress(["x"], 2, shown=False), patient=True)
    assert ended == [1]


def test_an_error_of_one_chain_ends_the_others_soon():
    from probgen.run.driver import drive
    from probgen.run.progress import Progress

    taken = []

    def fine(first, last):
        time.sleep(0.01)
        taken.append(last)
        return {}

    def full(first, last):
        raise pg.StoreError("no space left")

    steps = [(i, i + 1) for i in range(300)]
    with pytest.raises(pg.StoreError, match="no space"):
        drive([fine, full], steps, Progress(["a", "b"], 300, shown=False))
    assert len(taken) < 100


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.parametrize("warmup", [0, 5])
def test_a_warmup_shorter_than_a_draw_has_no_group(warmup, tmp_path):
    run = RUN | {"warmup": warmup, "thin": 7, "keep_warmup": True}
    stored = pg.infer(MODEL, pg.RandomWalk(), **run, store=tmp_path / "run.zarr")
    assert_same(stored, pg.infer(MODEL, pg.RandomWalk(), **run))


def odd(y=None):
    x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("day", 3):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    numpyro.deterministic("nothing", jnp.zeros((0, 2)) + x[0])
    numpyro.deterministic("count", jnp.array([0, 1]))
    numpyro.deterministic("above", x > 0)
    numpyro.deterministic("wave", x * 1j)
    numpyro.deterministic("small", x.astype(jnp.float32))
    numpyro.deterministic("x:z é.", x[0])


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_odd_values_names_and_labels(tmp_path, monkeypatch):
    """Of every type, of no size, on days, and of chains that are run again."""
    from probgen.infer import sampling

    compare, calls = sampling.compare, []

    def lost_once(u, stats, skip=0):
        calls.append(1)
        verdict = compare(u, stats, skip)
        return type(verdict)((1,), 9.0, 0, ("Lost, for a test.",)) if len(calls) == 1 else verdict

    monkeypatch.setattr(sampling, "compare", lost_once)
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[D]")
    model = pg.Model(odd, {"y": np.array([1.0, 2.0, 3.0])}, coords={"day": days})
    whole = pg.infer(model, pg.NUTS(), **RUN)
    calls.clear()
    assert_same(pg.infer(model, pg.NUTS(), **RUN, store=tmp_path / "run.zarr"), whole)
    assert whole["posterior"]["day"].dtype.kind == "M" if "day" in whole["posterior"].coords else True
    assert whole["observed_data"]["day"].values.tolist() == days.astype("M8[ns]").tolist()


@pytest.mark.parametrize("name", ["..", ".", "zarr.json", "a\\b", "a\tb", "x" * 300])
def test_a_site_that_cannot_name_a_folder_is_refused_before_any_work(name, tmp_path, monkeypatch):
    def program(y=None):
        x = numpyro.sample(name, dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    monkeypatch.setattr(programs.Programs, "__init__", lambda *_: pytest.fail("it ran"))
    with pytest.raises(pg.StoreError, match="cannot be the name of a folder"):
        pg.infer(pg.Model(program, {"y": 1.0}), pg.NUTS(), **RUN, store=tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("place", ["resume", "posterior", "resume/identity.record.partial"])
def test_a_link_in_a_store_is_never_followed(place, tmp_path):
    """What it points to would be written to, or removed when the run has ended."""
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    link = tmp_path / "run.zarr" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine", target_is_directory=True)
    with pytest.raises(pg.StoreError, match="is a link"):
        pg.infer(MODEL, pg.Laplace(), **RUN, store=tmp_path / "run.zarr")
    assert (tmp_path / "mine" / "photos").is_dir()


def test_what_makes_a_run_this_run(tmp_path):
    """Constants of compiled functions within, interventions, functions among the settings."""
    from probgen.program.fingerprint import fingerprint, stable

    def model(table):
        inner = jax.jit(lambda x: x + jnp.asarray(table).sum())

        def program(y=None):
            x = numpyro.sample("x", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(inner(x), 1.0), obs=y)

        return pg.Model(program, {"y": 1.0})

    def of(model):
        return fingerprint(model, pg.NUTS().density(model))

    assert of(model(np.arange(3.0))) == of(model(np.arange(3.0)))
    assert of(model(np.arange(3.0))) != of(model(np.array([0.0, 1.0, 2.5])))
    assert of(MODEL.do(mu=1.0)) != of(MODEL.do(mu=2.0))
    assert of(MODEL.do(mu=1.0)) == of(MODEL.do(mu=1.0))

    def guide(scale):
        return lambda y=None: numpyro.sample("x", dist.Normal(0.0, scale))

    assert stable(guide(1.0)) == stable(guide(1.0)) != stable(guide(2.0))
    assert stable(lambda rate: optax.adam(rate)) == stable(lambda r: optax.adam(r))
    assert stable(lambda rate: optax.adam(rate)) != stable(lambda rate: optax.adam(2 * rate))
    assert stable(np.arange(3.0)) != stable(np.arange(3.0) + 1e-12)
    assert stable({"b", "a", "c"}) == stable({"c", "b", "a"})

    def fitted(scale):
        def own(y=None):
            mu = numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), scale))
            tau = numpyro.sample("tau", dist.LogNormal(0.0, scale))
            with numpyro.plate("school", 4):
                numpyro.sample("theta", dist.Normal(mu, tau))

        return pg.SVI(guide=own, steps=200, window=100)

    path = tmp_path / "run.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pg.infer(MODEL, fitted(1.0), **RUN, store=path)
    with pytest.raises(pg.StoreError, match="setting 'guide' of the method"):
        pg.infer(MODEL, fitted(1.1), **RUN, store=path)


def test_records_keep_keys_and_arrays(tmp_path):
    from probgen.run.record import pack, read_record, unpack, write_record

    keys = {"key": jax.random.key(3), "other": jax.random.key(3, impl="rbg")}
    state = {**keys, "x": jnp.arange(4.0), "n": jnp.asarray(2), "static": "name"}
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x, state)
    write_record(tmp_path / "a.record", {"step": 3}, pack(state))
    record = read_record(tmp_path / "a.record")
    back = unpack(template, record.arrays, tmp_path / "a.record")
    assert record.meta == {"step": 3}
    assert back["static"] == "name"
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(state["key"]))
    np.testing.assert_array_equal(back["x"], state["x"])
    with pytest.raises(pg.StoreError, match="another sampler"):
        unpack({**template, "x": jax.ShapeDtypeStruct((5,), float)}, record.arrays, tmp_path / "a.record")
    with pytest.raises(pg.StoreError, match="another sampler"):
        unpack({**template, "y": template["x"]}, record.arrays, tmp_path / "a.record")
    assert json.dumps(record.meta)
