"""The command line: one real fit, the demo, and what wrong input gets to hear."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
import xarray
from typer.testing import CliRunner

from probgen.cli import app

SMALL = ["--chains", "2", "--draws", "100", "--warmup", "150", "--no-cache"]
COIN = """
import numpyro, numpyro.distributions as dist
COORDS = {"coin": ["euro", "dollar"]}

def model(heads, throws):
    with numpyro.plate("coin", len(heads)):
        p = numpyro.sample("p", dist.Beta(1, 1))
        numpyro.sample("heads", dist.Binomial(throws, p), obs=heads)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of its own; precision, which commands set for their process, is put back."""
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_enable_x64
    yield tmp_path
    jax.config.update("jax_enable_x64", before)


def probgen(*args):
    return CliRunner().invoke(app, list(args))


def failed(*args, code=1):
    """What a command that must fail says; nothing else, and no traceback."""
    result = probgen(*args)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    message = " ".join(result.stderr.split())
    assert code != 1 or message.startswith("Error: "), message
    return message


# -- fit -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The command of the README, run once."""
    out = tmp_path_factory.mktemp("fit") / "run.nc"
    result = CliRunner().invoke(app, ["fit", "models/eight_schools", "--method", "nuts", "--out", str(out), *SMALL])
    return result, out


def test_fit_prints_summary_findings_and_what_is_next(fitted):
    result, out = fitted
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for part in (
        "Effects of coaching",
        "NUTS on blackjax, 2 chains of 150 warm-up + 100 draws, 64-bit, cpu, seed 0",
        "ess_bulk",
        "theta[H]",
        "Findings",
        "Seconds: compile",
        f"Written: {out}",
        "Next",
    ):
        assert part in result.stdout, part
    assert "\x1b" not in result.stdout


def test_fit_writes_the_whole_result_and_nothing_else(fitted):
    _, out = fitted
    assert [path.name for path in out.parent.iterdir()] == ["run.nc"]
    tree = xarray.open_datatree(out)
    assert tree["posterior/theta"].sizes == {"chain": 2, "draw": 100, "school": 8}
    assert tree["posterior/theta"].dtype == np.float64
    assert tree["posterior"].school.values.tolist() == list("ABCDEFGH")
    assert tree.attrs["precision"] == "64-bit"
    assert tree.attrs["seed"] == 0


def test_the_printed_summary_is_that_of_the_draws(fitted):
    import arviz

    result, out = fitted
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("tau "))
    header = next(line.split() for line in result.stdout.splitlines() if "ess_bulk" in line)
    expected = arviz.summary(xarray.open_datatree(out)).loc["tau"]
    assert len(row) == len(header) + 1 == len(expected) + 1
    for name, cell in zip(header, row[1:], strict=True):
        assert float(cell) == pytest.approx(float(expected[name]), rel=0.1), name


def test_fit_of_a_file_with_csv_data_32_bit_and_settings(place):
    (place / "coin.py").write_text(COIN)
    (place / "throws.csv").write_text("heads,throws,coin,note\n3,10,A,x\n60,100,B,y\n")
    result = probgen(
        "fit", "coin.py", "--data", "throws.csv", "--x32", "--set", "target_accept=0.9", "--set", "metric=dense",
        "--seed", "3", "--out", "coins.nc", *SMALL,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "model() takes no note; ignored" in result.stderr
    tree = xarray.open_datatree(place / "coins.nc")
    assert tree["posterior/p"].dtype == np.float32
    assert tree["posterior"].coin.values.tolist() == ["A", "B"]  # the labels of the data, not those of the file
    assert tree.attrs["seed"] == 3
    assert json.loads(tree.attrs["settings"]) | {"target_accept": 0.9, "metric": "dense"} == json.loads(
        tree.attrs["settings"]
    )


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eight_school"], "there is no file, folder or gallery model 'eight_school'. Did you mean 'eight_schools'?"),
        (["eight_schools", "--method", "nust"], "Error: there is no method 'nust'. Did you mean 'nuts'?"),
        (["eight_schools", "--backend", "blackjacks"], "backend 'blackjacks' does not serve NUTS. Did you mean"),
        (["eight_schools", "--set", "target=0.9"], "nuts has no setting 'target'. Did you mean 'target_accept'?"),
        (["eight_schools", "--set", "target_accept=1.9"], "Error: target_accept must lie between 0 and 1, got 1.9."),
        (["eight_schools", "--data", "none.json"], "Error: the data file none.json does not exist."),
        (["eight_schools", "--out", "nowhere/run.nc"], "the folder nowhere of the output run.nc does not exist."),
        (["eight_schools", "--out", "run.txt"], "Error: the output run.txt has the suffix '.txt', expected '.nc'."),
        (["coin.py"], "Error: the program needs the argument 'heads', and the data have no column of that name."),
        (["coin.py", "--data", "wrong.json"], "column of that name. Did you mean 'throw'?"),
        (["coin.py", "--data", "long.json"], "Error: coords['coin'] has 2 labels, but the dimension has length 3."),
        (["broken.py"], "Error: broken.py raised ZeroDivisionError in line 1 (1 / 0)"),
    ],
)  # fmt: skip
def test_errors_are_one_clean_message(args, message, place):
    (place / "coin.py").write_text(COIN)
    (place / "broken.py").write_text("1 / 0\n")
    (place / "wrong.json").write_text('{"heads": [1, 2], "throw": [5, 5]}')
    (place / "long.json").write_text('{"heads": [1, 2, 3], "throws": [5, 5, 5]}')
    assert message in failed("fit", *args, *SMALL)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit"], "Missing argument 'model'"),
        (["fit", "eight_schools", "--chains", "0"], "--chains"),
        (["fit", "eight_schools", "--draws", "many"], "--draws"),
        (["fit", "eight_schools", "--set", "target_accept"], "'target_accept' is not NAME=VALUE"),
        (["fits"], "No such command 'fits'"),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message):
    assert message in failed(*args, code=2).replace("│ ", "")


def test_debug_shows_the_error_itself():
    from probgen.base.errors import ModelError

    result = probgen("fit", "eight_school", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, ModelError)


def test_an_output_that_cannot_be_written_costs_no_compute(monkeypatch):
    def never(*args, **settings):
        raise AssertionError("computed")

    monkeypatch.setattr(sys.modules["probgen.infer.infer"], "infer", never)
    assert "does not exist" in failed("fit", "eight_schools", "--out", "nowhere/run.nc")


def test_a_failed_write_keeps_the_old_file(place):
    from probgen.base.errors import StoreError
    from probgen.run.output import write_netcdf

    class Full:
        def to_netcdf(self, name, engine):
            with open(name, "w") as file:
                file.write("half")
            raise OSError(28, "No space left on device")

    (place / "run.nc").write_text("old")
    with pytest.raises(StoreError, match="No space left"):
        write_netcdf(Full(), place / "run.nc")
    assert [path.name for path in place.iterdir()] == ["run.nc"]
    assert (place / "run.nc").read_text() == "old"


def test_a_run_that_did_not_end_well_is_exit_code_1(place):
    (place / "modes.py").write_text(
        "import numpyro, numpyro.distributions as dist, jax.numpy as jnp\n"
        "def model():\n"
        "    mix = dist.Categorical(probs=jnp.ones(2) / 2)\n"
        "    numpyro.sample('x', dist.MixtureSameFamily(mix, dist.Normal(jnp.array([-40.0, 40.0]), 0.5)))\n"
    )
    result = probgen(
        "fit", "modes.py", "--chains", "4", "--draws", "100", "--warmup", "150", "--no-cache", "--out", "m.nc"
    )
    assert result.exit_code == 1, result.output
    assert "The chains do not agree with one another" in result.stdout
    assert (place / "m.nc").exists()  # what was drawn is kept, for looking at
    assert xarray.open_datatree(place / "m.nc").attrs["ended"] == "chains_disagree"


# -- the other commands ----------------------------------------------------------------------------------------------


def test_methods_and_models_are_listed():
    result = probgen("methods")
    assert result.exit_code == 0
    assert "nuts " in result.stdout
    assert "pg.NUTS" in result.stdout
    result = probgen("models")
    assert result.exit_code == 0
    for name in ("eight_schools", "kidiq-kidscore_momiq"):
        assert name in result.stdout


def test_version():
    from probgen import __version__

    assert probgen("--version").stdout.strip() == f"probgen {__version__}"


def test_help_loads_neither_plots_nor_engines():
    code = (
        "import sys; from typer.testing import CliRunner; from probgen.cli import app; "
        "print(CliRunner().invoke(app, ['--help']).exit_code, {'arviz', 'matplotlib', 'blackjax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 set()"


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """The demo as a user runs it, full length."""
    place = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return CliRunner().invoke(app, ["demo", "--no-cache"]), place


def test_demo_writes_what_it_says(demonstrated):
    result, place = demonstrated
    assert result.exit_code == 0, result.output
    names = ["demo-forest.png", "demo-model.png", "demo-report.html", "demo-trace.png", "demo.nc"]
    assert sorted(path.name for path in place.iterdir()) == names
    for name in names:
        assert str(place / name) in result.stdout, name
    for name in (name for name in names if name.endswith("png")):
        assert (place / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Findings" in result.stdout
    assert "\nerror " not in result.stdout
    assert "Next" in result.stdout


def test_demo_finds_the_reference_posterior(demonstrated):
    """Means and mean squares agree with posteriordb; 20 two-sided tests, false alarm 1e-4 over all of them."""
    import arviz

    posterior = xarray.open_datatree(demonstrated[1] / "demo.nc")["posterior"].to_dataset()
    file = Path(__file__).parent / "reference" / "posteriordb.json"
    reference = json.loads(file.read_text())["eight_schools-eight_schools_noncentered"]["params"]
    draws = {name: posterior[name] for name in ("mu", "tau")}
    draws |= {f"theta[{i + 1}]": posterior["theta"].isel(school=i) for i in range(8)}
    assert set(draws) == set(reference)
    limit = scipy.stats.norm.isf(1e-4 / 2 / (2 * len(draws)))
    for name, known in reference.items():
        for power, mean, sd in ((1, known["mean"], known["sd"]), (2, known["mean_sq"], known["sd_sq"])):
            values = draws[name].transpose("chain", "draw").to_numpy() ** power
            mcse = float(arviz.mcse(values, method="mean"))
            assert mcse < 0.1 * sd  # else the test could see nothing
            assert abs(values.mean() - mean) < limit * np.hypot(mcse, sd / 100), (name, power)
