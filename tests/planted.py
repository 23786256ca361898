"""The table of planted bugs: patches of probgen's own source, and the tests that must fail (see ``mutants.py``)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A planted bug.

    Attributes:
        name: A word for it.
        file: The file to change, below ``probgen/``.
        old: Text that occurs there exactly once.
        new: What it is replaced by.
        breaks: What is wrong then.
        tests: Tests that must fail, at least one of them.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


PROGRAM = (
    Mutant(
        "no_jacobian",
        "program/density.py",
        "            return log_prob, log_det\n",
        "            return (log_prob,)\n",
        "positive, bounded and simplex sites follow a prior that depends on the chart",
        ("tests/test_program.py::test_density_is_numpyros[regression]",),
    ),
    Mutant(
        "jacobian_is_scaled",
        "program/density.py",
        '        log_det = chart_of(site["fn"], name).log_det(u, site["value"])\n',
        '        log_det = chart_of(site["fn"], name).log_det(u, site["value"])\n'
        '        log_det = log_det if site["scale"] is None else site["scale"] * log_det\n',
        "a site under numpyro.handlers.scale has its Jacobian scaled too",
        ("tests/test_program.py::test_scale_and_mask_leave_jacobians_alone",),
    ),
    Mutant(
        "factor_counts_as_prior",
        "program/density.py",
        "        for _, kind, value in self._terms(u):\n            if kind in (Kind.continuous, Kind.discrete):\n",
        "        for name, kind, value in self._terms(u):\n"
        "            if kind in (Kind.continuous, Kind.discrete) or self.model.sites[name].kind is Kind.factor:\n",
        "tempering and evidence treat a factor as an assumption",
        ("tests/test_program.py::test_factors_count_as_likelihood",),
    ),
    Mutant(
        "prior_is_tempered",
        "program/density.py",
        "else prior + beta * likelihood",
        "else beta * (prior + likelihood)",
        "a tempered density raises the prior to the power too",
        ("tests/test_program.py::test_factors_count_as_likelihood",),
    ),
    Mutant(
        "angle_without_constant",
        "program/chart.py",
        "math.log(2 * math.pi) + jnp.sum(jax.scipy.stats.norm.logpdf(u), -1)",
        "jnp.sum(jax.scipy.stats.norm.logpdf(u), -1)",
        "the evidence of a model with an angle is off by a factor of 2 pi",
        ("tests/test_program.py::test_an_angle_keeps_its_evidence",),
    ),
    Mutant(
        "seen_entries_are_improper",
        "program/density.py",
        'return (jnp.where(mask_of(site["fn"]), log_prob + log_det, spare),)',
        'return (jnp.where(mask_of(site["fn"]), log_prob + log_det, 0.0),)',
        "coordinates of missing data that were not missing run away",
        ("tests/test_program.py::test_missing_observations_become_latent",),
    ),
    Mutant(
        "moving_support_is_not_looked_at",
        "program/observations.py",
        "            log_prob = jnp.where(possible, log_prob, -jnp.inf)\n",
        "            log_prob = jnp.where(possible, log_prob, log_prob)\n",
        "observations outside of a support that depends on a parameter are possible",
        ("tests/traps/test_traps.py::test_01_observations_outside_a_moving_support_have_probability_zero",),
    ),
    Mutant(
        "stale_data_in_a_closure",
        "program/model.py",
        "            *(surroundings(f) for f in (program, *dict(self.mechanisms).values())),\n",
        "",
        "a program that reads an array from outside keeps the array of the first fit",
        ("tests/test_sampling.py::test_what_a_program_finds_outside_of_its_arguments_may_change",),
    ),
    Mutant(
        "do_is_conditioning",
        "program/handlers.py",
        'msg["type"], msg["value"], msg["is_observed"] = "deterministic", new, False',
        'msg["value"], msg["is_observed"] = new, msg["type"] == "sample"',
        "an intervention leaves the mechanism of its site in the density",
        ("tests/test_model.py::test_do_cuts_the_mechanism_and_reaches_downstream",),
    ),
    Mutant(
        "batch_is_not_scaled_up",
        "program/observations.py",
        "return log_prob if scale is None or is_identically_one(scale) else scale * log_prob",
        "return log_prob",
        "a mini-batch counts as if it were all the data",
        ("tests/test_sgmcmc.py::test_the_mini_batch_density_and_gradient_are_unbiased",),
    ),
    Mutant(
        "discrete_drawn_from_the_prior",
        "program/enumerated.py",
        "            return tables.total(tables.terms, key, tuple(Factor(names[v], data[v]) for v in names))\n",
        "            terms = [t for t in tables.terms if t.kind is not Kind.observed]\n"
        "            return tables.total(terms, key, tuple(Factor(names[v], data[v]) for v in names))\n",
        "discrete sites are given back without a look at the data",
        ("tests/test_discrete.py::test_recovered_sites_follow_their_posterior[mixture]",),
    ),
    Mutant(
        "one_noise_for_all_steps",
        "program/elimination.py",
        "Factor(tuple(n for n in drawn.names if n != time), gumbel[root])",
        "Factor(tuple(n for n in drawn.names if n != time), rows[root][0])",
        "backward sampling uses the same random numbers at every step of a chain",
        ("tests/test_discrete.py::test_recovered_sites_follow_their_posterior[hidden_markov]",),
    ),
    Mutant(
        "evidence_of_a_gaussian_without_constant",
        "program/linear_gaussian.py",
        "log_z = top + 0.5 * dim * math.log(2 * math.pi) - 0.5 * peak.log_det",
        "log_z = top - 0.5 * peak.log_det",
        "the evidence of a linear-Gaussian program lacks (2 pi)^(d/2)",
        ("tests/test_exact.py::test_a_linear_state_space_model_with_an_unknown_level",),
    ),
    Mutant(
        "scale_instead_of_rate",
        "program/conjugate.py",
        'return dist.Gamma(parameters["concentration"], parameters["rate"])',
        'return dist.Gamma(parameters["concentration"], 1 / parameters["rate"])',
        "a conjugate gamma posterior takes its rate for its scale",
        ("tests/test_exact.py::test_conjugate_draws",),
    ),
    Mutant(
        "finite_draws_are_off_by_one",
        "program/finite.py",
        'state = jnp.minimum(jnp.searchsorted(cumulative, uniform, side="right"), last)',
        'state = jnp.minimum(jnp.searchsorted(cumulative, uniform, side="right") + 1, last)',
        "enumeration draws the neighbour of the state that it should",
        ("tests/test_exact.py::test_draws_of_discrete_sites_have_the_joint_law",),
    ),
    Mutant(
        "one_noise_for_all_predictions",
        "program/simulate.py",
        "        sites = trace_forward(model, jax.random.fold_in(key, index), held, kept)\n",
        "        sites = trace_forward(model, key, held, kept)\n",
        "all predictions share one set of random numbers",
        (
            "tests/test_predict.py::test_posterior_predictive_is_posterior_plus_noise",
            "tests/test_simulate.py::test_moments_of_a_normal_model",
        ),
    ),
    Mutant(
        "observations_come_back_as_predictions",
        "program/simulate.py",
        '        elif msg["type"] == "sample" and msg["name"] not in self.kept:\n',
        '        elif msg["type"] == "sample" and msg["name"] in self.kept:\n',
        "what is drawn are the sites that were to be kept, and data are called predictions",
        (
            "tests/test_simulate.py::test_observations_do_not_come_back",
            "tests/traps/test_traps.py::test_07_predictions_are_no_copies_of_the_data",
        ),
    ),
    Mutant(
        "no_edge_from_a_scan",
        "program/graph.py",
        "            graph.add_edge(parent, node, lagged=before and lagged)\n",
        "            if source.name not in scan_of or child in scan_of:\n"
        "                graph.add_edge(parent, node, lagged=before and lagged)\n",
        "the graph lacks the edges out of a scan",
        ("tests/test_graph.py::test_scan_keeps_steps_apart",),
    ),
)

KERNELS = (
    Mutant(
        "keys_count_from_the_piece",
        "kernels/loop.py",
        "kernel.step(jax.random.fold_in(key, index), density, kernel.at(state, index))",
        "kernel.step(jax.random.fold_in(key, index - first), density, kernel.at(state, index))",
        "every piece of a run uses the same keys again",
        ("tests/test_infer.py::test_same_seed_same_draws_however_the_run_is_cut",),
    ),
    Mutant(
        "start_uses_the_keys_of_steps",
        "kernels/loop.py",
        "jax.random.split(jax.random.fold_in(key, _START))",
        "jax.random.split(key)",
        "the momentum of the first step is a function of the starting point",
        ("tests/test_sampling.py::test_the_start_shares_no_key_with_the_steps",),
    ),
    Mutant(
        "warmup_leaks_into_draws",
        "kernels/loop.py",
        "    origin = jnp.maximum(first, record)\n",
        "    origin = first\n",
        "the first draws of a run are its warm-up",
        ("tests/test_sampling.py::test_a_kept_warmup_and_pieces_change_no_draw",),
    ),
    Mutant(
        "adaptation_goes_on",
        "kernels/adaptation.py",
        "        adapting = state.index < self.warmup\n",
        "        adapting = state.index <= self.warmup\n",
        "the first draw still adapts",
        ("tests/contract/test_kernels.py::test_adaptation_is_frozen_after_the_warmup[nuts]",),
    ),
    Mutant(
        "windows_are_off_by_one",
        "kernels/adaptation.py",
        "    return np.asarray(ends, int) - 1\n",
        "    return np.asarray(ends, int)\n",
        "windows of the warm-up end one step late",
        ("tests/test_adaptation.py::test_windows_double_and_leave_a_stretch_for_the_step_size",),
    ),
    Mutant(
        "step_size_runs_away",
        "kernels/adaptation.py",
        "log_step = self.shrink_to - jnp.sqrt(count) / 0.05 * error",
        "log_step = self.shrink_to + jnp.sqrt(count) / 0.05 * error",
        "dual averaging moves the step size away from the target",
        ("tests/test_adaptation.py::test_the_step_size_reaches_the_acceptance_that_was_asked_for",),
    ),
    Mutant(
        "draws_in_the_transposed_metric",
        "kernels/adaptation.py",
        "            u=origin + metric.push(point.z),\n",
        "            u=origin + metric.pull(point.z),\n",
        "a chain keeps another point than the one whose density it has judged",
        ("tests/contract/test_kernels.py::test_moments_of_a_correlated_gaussian_over_data_sets[nuts]",),
    ),
    Mutant(
        "metric_transposed_for_gradients",
        "kernels/metric.py",
        "    def pull(self, g: Array) -> Array:\n        return self.root.T @ g\n",
        "    def pull(self, g: Array) -> Array:\n        return self.root @ g\n",
        "the first trajectory of every window uses a wrong gradient",
        ("tests/test_adaptation.py::test_gradients_transform_as_the_adjoint_of_positions[dense]",),
    ),
    Mutant(
        "metric_not_undone",
        "kernels/metric.py",
        "        return self._apply(g, 1 / jnp.sqrt(self.values)) / self.scale\n",
        "        return self._apply(g, jnp.sqrt(self.values)) / self.scale\n",
        "the low-rank metric is learned from wrong gradients",
        ("tests/test_adaptation.py::test_gradients_transform_as_the_adjoint_of_positions[low_rank]",),
    ),
    Mutant(
        "precision_for_covariance",
        "kernels/metric.py",
        "        root = (vectors * jnp.sqrt(values)) @ vectors.T\n",
        "        root = (vectors / jnp.sqrt(values)) @ vectors.T\n",
        "the dense metric stretches what it should shrink",
        ("tests/test_sampling.py::test_a_dense_metric_is_exact_with_more_draws_than_dimensions",),
    ),
    Mutant(
        "ellipse_around_zero",
        "backends/blackjax_gradient_free.py",
        "lambda key, _: density.draw_prior(key), gaussian_prior_mean(density)\n",
        "lambda key, _: density.draw_prior(key), jnp.zeros_like(state.u)\n",
        "elliptical slice sampling forgets the prior mean",
        ("tests/contract/test_kernels.py::test_elliptical_slice_takes_multivariate_priors_whose_parameters_are_data",),
    ),
    Mutant(
        "one_mini_batch_for_ever",
        "backends/blackjax_stochastic.py",
        "return jax.grad(density.of(key).log_density)(u)",
        "return jax.grad(density.log_density)(u)",
        "stochastic gradients are those of one batch",
        ("tests/test_sgmcmc.py::test_sgld_has_the_variance_that_theory_gives",),
    ),
    Mutant(
        "proxy_without_curvature",
        "infer/hmcecs.py",
        "off = {name: exact[name] - (parts[0][name] + parts[1][name] + 0.5 * parts[2][name]) for name in exact}",
        "off = {name: exact[name] - (parts[0][name] + parts[1][name]) for name in exact}",
        "the reported perturbation is that of another proxy",
        (
            "tests/test_hmcecs.py::test_what_a_run_says_of_itself",
            "tests/test_hmcecs.py::test_a_gaussian_linear_model_is_exact",
        ),
    ),
)

METHODS = (
    Mutant(
        "chains_share_a_key",
        "infer/sampling.py",
        "[jax.random.fold_in(key, c) for c in range(plan.chains)]",
        "[jax.random.fold_in(key, 0) for c in range(plan.chains)]",
        "all chains are the same chain",
        ("tests/test_infer.py::test_no_two_chains_are_alike",),
    ),
    Mutant(
        "chains_share_a_key_in_the_pure_function",
        "infer/method.py",
        "jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(chains))",
        "jax.vmap(lambda i: jax.random.fold_in(key, 0 * i))(jnp.arange(chains))",
        "all chains are the same chain, where fits are vmapped",
        ("tests/test_infer.py::test_no_two_chains_are_alike",),
    ),
    Mutant(
        "thinning_takes_fewer_steps",
        "infer/programs.py",
        "self.total = plan.warmup + plan.draws * plan.thin",
        "self.total = plan.warmup + plan.draws",
        "a thinned run has too few draws",
        ("tests/test_infer.py::test_thinning_keeps_every_second_draw",),
    ),
    Mutant(
        "lost_chains_stay",
        "infer/sampling.py",
        "        if not lost or programs.kernel.ensemble or",
        "        if lost or programs.kernel.ensemble or",
        "a lost chain is never started again",
        ("tests/test_sampling.py::test_only_the_lost_chain_is_run_again",),
    ),
    Mutant(
        "no_chain_is_ever_lost",
        "infer/quarantine.py",
        "        if lp is not None:\n            lost |= set(_lower(lp[..., 0]))\n",
        "",
        "a chain in a place of far lower density is not replaced",
        ("tests/test_quarantine.py::test_a_chain_in_a_place_of_low_density_is_lost",),
    ),
    Mutant(
        "dims_are_swapped",
        "infer/results.py",
        '        variables[name] = (("chain", "draw", *dims), array)\n',
        '        variables[name] = (("chain", "draw", *dims[::-1]), array)\n',
        "axes of results carry the names of other axes",
        ("tests/test_infer.py::test_axes_of_a_matrix_keep_their_names",),
    ),
    Mutant(
        "warmup_is_called_posterior",
        "infer/results.py",
        '    groups["posterior"] = labelled(model, {k: v[:, warmup:] for k, v in run.values.items()})\n',
        '    groups["posterior"] = labelled(model, {k: v[:, : v.shape[1] - warmup] for k, v in run.values.items()})\n',
        "with keep_warmup, the warm-up is reported as the posterior",
        ("tests/test_sampling.py::test_a_kept_warmup_and_pieces_change_no_draw",),
    ),
    Mutant(
        "evidence_is_a_sum",
        "infer/approximate.py",
        "log_evidence = top + math.log(w.mean())",
        "log_evidence = top + math.log(w.sum())",
        "the evidence grows with the number of draws",
        ("tests/test_laplace_pathfinder.py::test_weights_are_normalised_and_the_evidence_is_their_mean",),
    ),
    Mutant(
        "weights_are_not_normalised",
        "infer/approximate.py",
        "    smoothed = smoothed - np.logaddexp.reduce(smoothed)\n",
        "",
        "weights do not sum to one",
        ("tests/test_laplace_pathfinder.py::test_weights_that_are_equal_zero_or_few",),
    ),
    Mutant(
        "tail_of_the_smallest_weights",
        "infer/approximate.py",
        "array_stats.psislw(-raw)",
        "array_stats.psislw(raw)",
        "Pareto k-hat looks at the wrong tail",
        ("tests/test_laplace_pathfinder.py::test_pareto_k_is_that_of_pareto_weights",),
    ),
    Mutant(
        "error_of_one_weight",
        "infer/approximate.py",
        "w.std(ddof=1) / math.sqrt(w.size) / w.mean()",
        "w.std(ddof=1) / w.mean()",
        "the standard error of the evidence does not fall with the number of draws",
        ("tests/test_laplace_pathfinder.py::test_weights_are_normalised_and_the_evidence_is_their_mean",),
    ),
    Mutant(
        "draws_with_the_precision",
        "infer/laplace.py",
        "root = mode.directions / np.sqrt(mode.curvature)",
        "root = mode.directions * np.sqrt(mode.curvature)",
        "Laplace draws with the curvature for a covariance",
        ("tests/test_laplace_pathfinder.py::test_laplace_is_exact_on_a_gaussian",),
    ),
    Mutant(
        "laplace_without_constant",
        "infer/laplace.py",
        "laplace = float(mode.value) + dim / 2 * math.log(2 * math.pi) - 0.5",
        "laplace = float(mode.value) - 0.5",
        "the evidence lacks (2 pi)^(d/2)",
        ("tests/test_laplace_pathfinder.py::test_laplace_is_exact_on_a_gaussian",),
    ),
    Mutant(
        "gaussians_downhill",
        "infer/pathfinder.py",
        "return cls(u + alpha * grad + beta @ (gamma @ (beta.T @ grad)), scale, basis, root)",
        "return cls(u - alpha * grad - beta @ (gamma @ (beta.T @ grad)), scale, basis, root)",
        "Pathfinder centres its candidates on the wrong side",
        ("tests/test_laplace_pathfinder.py::test_factored_normal_is_its_dense_form",),
    ),
    Mutant(
        "mixture_without_shares",
        "infer/pathfinder.py",
        "jax.scipy.special.logsumexp(log_q + log_share[:, None], axis=0)",
        "jax.scipy.special.logsumexp(log_q, axis=0)",
        "the density of the mixture of paths is too large by their number",
        ("tests/test_laplace_pathfinder.py::test_weighted_paths_have_the_moments_of_a_gaussian",),
    ),
    Mutant(
        "one_draw_predicts_all",
        "infer/predict.py",
        "    held = {name: value[rows] for name, value in plan.per_draw.items()}\n    held |= ",
        "    held = {name: value[0 * rows] for name, value in plan.per_draw.items()}\n    held |= ",
        "all predictions are made from the first draw",
        ("tests/test_predict.py::test_posterior_predictive_is_posterior_plus_noise",),
    ),
    Mutant(
        "steps_are_weighted_alike",
        "infer/sgmcmc.py",
        'run.stats["log_weight"] = np.log(kept) - np.log(kept.sum())',
        'run.stats["log_weight"] = 0 * np.log(kept) - np.log(kept.size)',
        "a decaying schedule counts its small steps too much",
        ("tests/test_sgmcmc.py::test_a_decaying_schedule_is_weighted",),
    ),
    Mutant(
        "scale_of_the_frame_forgotten",
        "infer/svi_engine.py",
        "            return u, target.log_density(u) + jnp.sum(jnp.log(frame.scale)) - log_q\n",
        "            return u, target.log_density(u) - log_q\n",
        "importance weights of SVI lack the Jacobian of the standardised coordinates",
        ("tests/test_variational.py::test_full_rank_is_exact_on_a_gaussian",),
    ),
)

RUN = (
    Mutant(
        "a_step_is_taken_twice",
        "infer/chains.py",
        '_Position(int(record.meta["step"]), state, record.arrays[0]',
        '_Position(int(record.meta["step"]) - 1, state, record.arrays[0]',
        "a run that is resumed repeats its last piece from where that ended",
        ("tests/test_store.py::test_killed_at_any_write_it_goes_on_bit_for_bit",),
    ),
    Mutant(
        "state_before_draws",
        "infer/chains.py",
        "            for chain in self.chains:\n                self.sink.flush(chain, self.slots)\n            meta =",
        "            meta =",
        "a store counts draws that it does not have",
        ("tests/test_store.py::test_killed_at_any_write_it_goes_on_bit_for_bit",),
    ),
    Mutant(
        "any_run_will_do",
        "run/store.py",
        "    different = [name for name in {**there, **here} if there.get(name) != here.get(name)]\n",
        "    different = [name for name in here if name not in there]\n",
        "what a store says about another run is wrong",
        ("tests/test_store.py::test_a_store_of_another_run_is_refused",),
    ),
    Mutant(
        "checksums_of_chunks_are_not_compared",
        "run/archive.py",
        "    if seen.digest()[::-1] != stored:\n",
        "    if len(stored) != 4:\n",
        "a damaged chunk is found when it is decoded, and not named",
        ("tests/test_store_hostile.py::test_bit_flipped[97]",),
    ),
    Mutant(
        "checksums_of_states_are_not_compared",
        "run/record.py",
        " or hashlib.sha256(body).digest() != digest:\n",
        " or len(digest) != _DIGEST:\n",
        "a run goes on from a damaged state",
        ("tests/test_store.py::test_damage_is_found_and_named_before_it_goes_on[state]",),
    ),
    Mutant(
        "half_a_file",
        "run/output.py",
        '        tree.to_netcdf(name, engine="h5netcdf")\n',
        '        tree.to_netcdf(path, engine="h5netcdf")\n',
        "a write that fails leaves half a file where a whole one was",
        ("tests/test_cli.py::test_a_failed_write_keeps_the_old_file",),
    ),
)

MUTANTS = PROGRAM + KERNELS + METHODS + RUN
