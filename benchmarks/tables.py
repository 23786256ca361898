"""Write the tables of docs/benchmarks.md from the results.

    python benchmarks/tables.py

Each table stands between two comments that name it; the text around them is written by hand.
"""

import json
import math
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
PEERS = {"numpyro": "NumPyro", "blackjax": "BlackJAX", "nutpie": "nutpie", "pystan": "PyStan"}
MIXED = 1.05
"""R-hat up to which a peer's draws count."""


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def by_pair():
    return {(row["posterior"], row["sampler"]): row for row in read("posteriordb")["rows"]}


def best(rows, posterior):
    """The fastest peer whose chains have mixed."""
    peers = [rows[posterior, peer] for peer in PEERS if (posterior, peer) in rows]
    good = [row for row in peers if "failed" not in row and row["rhat"] < MIXED and row["ess_per_second"] > 0]
    return max(good, key=lambda row: row["ess_per_second"], default=None)


def posteriordb():
    rows = by_pair()
    yield f"| posterior | cold, s | warm, s | ESS/s | R-hat | {' | '.join(f'{p}, ESS/s' for p in PEERS.values())} | ratio |"
    yield "| --- |" + " --: |" * (5 + len(PEERS))
    for posterior in sorted({name for name, _ in rows}):
        ours, peer = rows[posterior, "probgen"], best(rows, posterior)
        cells = [f"{ours['cold']:.1f}", f"{ours['warm']:.3f}", f"{ours['ess_per_second']:,.0f}", f"{ours['rhat']:.3f}"]
        cells += [shown(rows.get((posterior, name))) for name in PEERS]
        ratio = f"{ours['ess_per_second'] / peer['ess_per_second']:.1f}" if peer else ""
        yield f"| {posterior} | {' | '.join(cells)} | {ratio} |"


def shown(row):
    if row is None:
        return ""
    if "failed" in row:
        return "failed"
    return f"{row['ess_per_second']:,.0f}" if row["rhat"] < MIXED else f"R-hat {row['rhat']:.2f}"


def posteriordb_summary():
    rows = by_pair()
    posteriors = sorted({name for name, _ in rows})
    ratios = [
        rows[p, "probgen"]["ess_per_second"] / best(rows, p)["ess_per_second"] for p in posteriors if best(rows, p)
    ]
    colds = [rows[p, "probgen"]["cold"] / rows[p, "numpyro"]["cold"] for p in posteriors if (p, "numpyro") in rows]
    z = max(rows[p, "probgen"]["z"] for p in posteriors)
    yield (
        f"Over {len(ratios)} posteriors with a peer whose chains have mixed, the geometric mean of the ratios is "
        f"{mean(ratios):.1f}, the smallest {min(ratios):.1f}. The cold wall is {mean(colds):.2f} of NumPyro's (geometric "
        f"mean), {max(colds):.2f} at most. The largest distance of a mean or a mean of squares from the reference is "
        f"{z:.1f} standard errors, over all parameters of all posteriors."
    )


def mean(values):
    return math.exp(statistics.mean(map(math.log, values)))


def weak_scaling():
    yield "| devices | chains | devices, s | threads, s |"
    yield "| --: | --: | --: | --: |"
    for row in read("weak_scaling")["rows"]:
        yield f"| {row['devices']} | {row['chains']} | {row['shared']:.3f} | {row['threads']:.3f} |"


def store():
    results = read("store")
    yield "| draws x 4 chains | in memory, s | with a store, s |"
    yield "| --: | --: | --: |"
    for row in results["cost"]:
        yield f"| {row['draws']:,} | {row['memory']:.3f} | {row['store']:.3f} |"
    large = results["large"]
    yield ""
    yield (
        f"{large['draws']:,} draws of {large['parameters']} parameters took {large['seconds']:.0f} s, "
        f"{large['disk_mb']:,.0f} MB on disk, and at most {large['memory_mb']:,.0f} MB of memory "
        f"({large['memory_before_mb']:,.0f} MB of it Python and JAX)."
    )


def refit():
    results = read("refit")
    ours, theirs = statistics.median(results["probgen"][1:]), statistics.median(results["numpyro"][1:])
    yield (
        f"Eight schools on {len(results['probgen'])} data sets: the median refit takes {ours:.3f} s, NumPyro's "
        f"{theirs:.1f} s, since it compiles at every run ({theirs / ours:.0f} times as long)."
    )


def nuts_overhead():
    results = read("nuts_overhead")
    yield (
        f"Eight schools, warm wall time over all leapfrog steps of four chains: {results['probgen']:.2f} microseconds, "
        f"NumPyro {results['numpyro']:.2f}; a bare loop of gradients takes {results['gradient']:.2f}."
    )


def particle_filter():
    results = read("particle_filter")
    yield "| precision | particles | filter | log likelihood, error | sd | ms | of the bare scan |"
    yield "| --- | --: | --- | --: | --: | --: | --: |"
    for precision in ("float64", "float32"):
        for row in results.get(precision, []):
            yield (
                f"| {precision} | {row['particles']:,} | {row['name']} | {row['bias']:+.2f} | {row['sd']:.2f} | "
                f"{1e3 * row['seconds']:.1f} | {row['ratio']:.2f} |"
            )


def smc():
    yield "| model | kernel | probgen, s | BlackJAX, s | ratio | probgen, log Z error | BlackJAX | ESS/s ratio |"
    yield "| --- | --- | --: | --: | --: | --: | --: | --: |"
    for row in read("smc")["rows"]:
        ours, theirs = row["probgen"], row["blackjax"]
        yield (
            f"| {row['model']} | {row['kernel']} | {ours['seconds']:.3f} | {theirs['seconds']:.3f} | "
            f"{row['time_ratio']:.2f} | {ours['log_evidence_error']:.3f} | {theirs['log_evidence_error']:.3f} | "
            f"{row['efficiency_ratio']:.2f} |"
        )


def correctors():
    yield "| target | sampler | steps | log evidence, error ± sd | distance of mode masses | modes hit |"
    yield "| --- | --- | --: | --: | --: | --: |"
    for row in read("correctors"):
        error = row["log_evidence_error"]
        evidence = "" if error is None else f"{error:+.3f} ± {row['log_evidence_sd']:.3f}"
        yield (
            f"| {row['case']} | {row['sampler']} | {row['steps']} | {evidence} | {row['distance']:.3f} | "
            f"{row['modes_hit']:.1f} of {row['modes']} |"
        )


def guidance():
    yield "| question | method | weights | mean | covariance | evaluations |"
    yield "| --- | --- | --: | --: | --: | --: |"
    for row in read("guidance")["rows"]:
        yield (
            f"| {row['question']} | {row['method']} | {row['weights']:.3f} | {row['mean']:.3f} | "
            f"{row['covariance']:.3f} | {row['evaluations'] or ''} |"
        )


def flows():
    found = read("flows")
    yield "| data | gap to the entropy, nats | wanted | seconds of training |"
    yield "| --- | --: | --: | --: |"
    for name in ("8gaussians", "checkerboard"):
        row = found[name]
        yield f"| {name} | {row['gap']:.4f} | {row['wanted']} | {row['seconds']:.0f} |"
    yield ""
    yield "| dimensions | probgen, ms per step | flowjax, ms per step | ratio |"
    yield "| --: | --: | --: | --: |"
    for name, row in found.items():
        if name.startswith("step, "):
            dim = name.split()[1]
            yield f"| {dim} | {1e3 * row['probgen']:.2f} | {1e3 * row['flowjax']:.2f} | {row['ratio']:.2f} |"


def discrete():
    yield "| model | test log likelihood, nats per row | | seconds |"
    yield "| --- | --: | --- | --: |"
    for row in read("discrete")["rows"]:
        value = f"{row['log_likelihood']:.3f} ± {row['standard_error']:.3f}"
        yield f"| {row['model']} | {value} | {row['kind']} | {row['seconds']:.0f} |"


def flow_matching():
    names = {"independent": "independent (FM)", "ot": "OT", "c2ot": "C2OT"}
    for run in read("flow_matching")["runs"]:
        settings = run["settings"]
        yield (
            f"{settings['steps']:,} steps of {settings['batch']} points, {settings['data']:,} pairs from batches of "
            f"{settings['ot_batch']:,}, errors by {settings['points']:,} points, for which two samples of the data "
            f"themselves are {run['floor']:.4f} apart:"
        )
        yield ""
        yield "| condition | coupling | seeds | adaptive | published | one step of Euler's | published |"
        yield "| --- | --- | --: | --: | --: | --: | --: |"
        for cell in run["cells"]:
            columns = []
            for solver in ("adaptive", "euler-1"):
                spread = f" ± {cell[solver]['sd']:.4f}" if cell["seeds"] > 1 else ""
                columns += [f"{cell[solver]['mean']:.4f}{spread}", f"{cell[solver]['published']:.3f}"]
            yield f"| {cell['condition']} | {names[cell['coupling']]} | {cell['seeds']} | {' | '.join(columns)} |"
        yield ""


def vae():
    results = read("vae")
    yield "| model | hidden layers | test log likelihood, nats per image | wanted | seconds of training |"
    yield "| --- | --: | --: | --: | --: |"
    yield f"| independent pixels | | {results['independent pixels']:.2f} | | |"
    for row in results["rows"]:
        value = f"{row['test log likelihood']:.2f} ± {row['standard error']:.2f}"
        yield (
            f"| {row['model']} | 2 x {row['hidden']} | {value} | {row['to reach']:.2f} | {row['training seconds']:.0f} |"
        )


def sbi():
    yield "| task | learned | observations | C2ST | wanted | corrected | wanted | training, CPU s | Pareto k-hat |"
    yield "| --- | --- | --: | --: | --: | --: | --: | --: | --: |"
    for row in read("sbi")["rows"]:
        learned = row["estimator"].split("estimator=")[1].split(", ")[0]
        found, corrected = row["amortized_c2st"], row["corrected_c2st"]
        worst = max(note["pareto_k"] for note in row["corrections"])
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        yield (
            f"| {row['task']} | {learned} | {len(found)} | {statistics.mean(found):.3f} | {target} | {statistics.mean(corrected):.3f} | 0.52 "
            f"| {row['training_cpu_seconds']:.0f} | {worst:.2f} at most |"
        )


def sbi_peer():
    results = read("sbi")
    rows = {row["task"]: row for row in results["rows"]}
    yield "| task | observations | C2ST, probgen | C2ST, sbi | training, CPU s, probgen | training, CPU s, sbi | ratio |"
    yield "| --- | --: | --: | --: | --: | --: | --: |"
    for peer in results["peers"]:
        row = rows[peer["task"]]
        ours = dict(zip(row["observations"], row["amortized_c2st"], strict=True))
        both = [number for number in peer["observations"] if number in ours]
        theirs = dict(zip(peer["observations"], peer["amortized_c2st"], strict=True))
        means = [statistics.mean(found[number] for number in both) for found in (ours, theirs)]
        seconds = row["training_cpu_seconds"], peer["training_cpu_seconds"]
        yield (
            f"| {peer['task']} | {len(both)} | {means[0]:.3f} | {means[1]:.3f} | {seconds[0]:.0f} | {seconds[1]:.0f} "
            f"| {seconds[1] / seconds[0]:.1f} |"
        )


def seir():
    """Those of the first method."""
    yield "| surveys | relative error | wanted | NUTS, same data | C2ST | wanted | corrected | Pareto k-hat | data sets |"
    yield "| --: | --: | --: | --: | --: | --: | --: | --: | --: |"
    for row in read("seir")[0]["rows"]:
        yield (
            f"| {row['surveys']} | {row['error']:.2%} | 2.8% | {statistics.mean(row['nuts_error']):.2%} "
            f"| {statistics.mean(row['c2st']):.3f} | 0.60 | {statistics.mean(row['corrected']):.3f} "
            f"| {max(row['pareto_k']):.2f} at most | {len(row['c2st'])} |"
        )


TABLES = {
    "flow-matching": flow_matching,
    "flows": flows,
    "discrete": discrete,
    "vae": vae,
    "sbi": sbi,
    "sbi-peer": sbi_peer,
    "seir": seir,
    "refit": refit,
    "nuts-overhead": nuts_overhead,
    "posteriordb": posteriordb,
    "posteriordb-summary": posteriordb_summary,
    "weak-scaling": weak_scaling,
    "store": store,
    "particle-filter": particle_filter,
    "smc": smc,
    "correctors": correctors,
    "guidance": guidance,
}


def filled(page):
    """The page with its tables made anew."""
    for name, lines in TABLES.items():
        text = "\n".join(lines())
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page, found = re.subn(f"{begin}.*?{end}", lambda _, b=begin, t=text, e=end: f"{b}\n{t}\n{e}", page, flags=re.S)
        assert found == 1, f"docs/benchmarks.md has no place for {name}"
    return page


def main():
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
