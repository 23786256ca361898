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
        '        log_det = chart.log_det(u, site["value"])\n',
        '        log_det = chart.log_det(u, site["value"])\n'
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

PARTICLES = (
    Mutant(
        "particles_share_a_key",
        "base/keys.py",
        "    counted = low + jnp.arange(count, dtype=low.dtype)\n",
        "    counted = low + jnp.arange(count, dtype=low.dtype) // 2\n",
        "pairs of particles move alike, and every variance is too large",
        ("tests/test_feynman_kac.py::test_keys_of_particles_differ",),
    ),
    Mutant(
        "weights_survive_resampling",
        "feynman_kac/smc.py",
        "        equal = jnp.full(count, -math.log(count), relative.dtype)\n",
        "        equal = relative[ancestors] if offspring == 1 else jnp.full(count, -math.log(count))\n",
        "a resampled particle is weighted twice",
        ("tests/test_feynman_kac.py::test_evidence_is_unbiased_and_moments_are_those_of_the_filter[Multinomial]",),
    ),
    Mutant(
        "look_ahead_is_not_in_the_evidence",
        "feynman_kac/smc.py",
        "        return parents, equal, state.log_z + total, lineage,",
        "        return parents, equal, state.log_z, lineage,",
        "the evidence forgets what was weighed before resampling",
        ("tests/test_feynman_kac.py::test_evidence_is_unbiased_with_look_ahead_and_offspring[1.0-Auxiliary]",),
    ),
    Mutant(
        "first_potential_is_forgotten",
        "feynman_kac/smc.py",
        "    log_z = total - math.log(count)\n",
        "    log_z = jnp.zeros_like(total)\n",
        "the evidence lacks its first factor",
        ("tests/test_feynman_kac.py::test_without_resampling_it_is_importance_sampling",),
    ),
    Mutant(
        "comb_is_rounded_the_wrong_way",
        "feynman_kac/resampling.py",
        "    return _repeated(jnp.clip(jnp.ceil(edges - u), 0, count)",
        "    return _repeated(jnp.clip(jnp.floor(edges - u), 0, count)",
        "systematic resampling is biased",
        ("tests/test_resampling.py::test_the_bins_of_one_offspring_are_filled_by_the_weights[systematic]",),
    ),
    Mutant(
        "smoother_forgets_the_transition",
        "feynman_kac/smoothing.py",
        "        log_p = log_w + jax.vmap(lambda x: fk.log_transition(t + 1, x, after))(x)\n",
        "        log_p = log_w\n",
        "paths are drawn from the filter",
        ("tests/test_feynman_kac.py::test_paths_have_the_law_of_the_smoother[backward]",),
    ),
    Mutant(
        "lineages_count_offspring_as_variance",
        "feynman_kac/variance.py",
        "    return -jnp.log(apart * count / max(count - 1, 1)) - scale\n",
        "    return -jnp.log(apart * count / max(count - 1, 1))\n",
        "the error of the evidence is far too large",
        ("tests/test_feynman_kac.py::test_resampling_without_weights_adds_no_variance",),
    ),
    Mutant(
        "derivative_ignores_the_weights",
        "feynman_kac/smc.py",
        "            equal = equal + jnp.repeat(kept - jax.lax.stop_gradient(kept), offspring)\n",
        "            equal = equal + jnp.repeat(0.0 * kept, offspring)\n",
        "the derivative of the evidence is biased",
        ("tests/test_feynman_kac.py::test_derivative_of_the_evidence_is_unbiased",),
    ),
    Mutant(
        "resumed_run_repeats_its_keys",
        "infer/particle_runs.py",
        '        self.taken, self.finished = self.cuts[-1], bool(record.meta["finished"])\n',
        '        self.taken, self.finished = self.cuts[-1] - 1, bool(record.meta["finished"])\n',
        "a resumed run is another run",
        ("tests/test_feynman_kac.py::test_a_run_that_was_interrupted_goes_on_to_the_same_end[Chain]",),
    ),
)

STATES = (
    Mutant(
        "reference_has_the_weight_of_another",
        "feynman_kac/conditional.py",
        "        log_g = log_g.at[0].set(fk.log_potential(t, parent, now, context))\n",
        "",
        "conditional SMC weighs its reference by the potential of the move that it replaced",
        ("tests/test_conditional_smc.py::test_the_smoothing_law_is_invariant[Guided-Ancestry.sampled-settings5]",),
    ),
    Mutant(
        "ancestors_are_sampled_without_weights",
        "feynman_kac/conditional.py",
        "key_pivot, cloud.log_w + onward",
        "key_pivot, onward",
        "the new past of the reference ignores how good it was",
        ("tests/test_conditional_smc.py::test_the_smoothing_law_is_invariant[Bootstrap-Ancestry.sampled-settings1]",),
    ),
    Mutant(
        "ancestors_count_the_look_ahead",
        "feynman_kac/conditional.py",
        "key_pivot, cloud.log_w + onward",
        "key_pivot, log_w + onward",
        "the guess of an auxiliary filter counts in the choice of ancestors",
        ("tests/test_conditional_smc.py::test_the_smoothing_law_is_invariant[Auxiliary-Ancestry.sampled-settings8]",),
    ),
    Mutant(
        "reference_may_die",
        "feynman_kac/conditional.py",
        "settings.resampling.conditional(key_ancestors, log_w, pivot, 0)",
        "settings.resampling(key_ancestors, log_w, count).at[0].set(pivot)",
        "the others are resampled as if they did not know that the reference survives",
        ("tests/test_conditional_smc.py::test_the_smoothing_law_is_invariant[Bootstrap-Ancestry.traced-settings0]",),
    ),
    Mutant(
        "parameters_have_no_prior",
        "kernels/pseudo_marginal.py",
        "log_ratio = log_prior + log_likelihood - state.log_prior - state.log_likelihood",
        "log_ratio = log_likelihood - state.log_likelihood",
        "PMMH forgets the prior",
        ("tests/test_pmmh.py::test_parameters_and_states_have_the_exact_posterior",),
    ),
    Mutant(
        "likelihood_is_estimated_again",
        "kernels/pseudo_marginal.py",
        "state.log_prior - state.log_likelihood\n",
        "state.log_prior - density.filtered(jax.random.fold_in(key, 1), state.u)[0]\n",
        "the estimate of the current state is drawn anew: the posterior is that of a noisier likelihood",
        ("tests/test_pmmh.py::test_few_particles_cost_efficiency_not_truth",),
    ),
    Mutant(
        "path_of_a_rejected_proposal",
        "kernels/pseudo_marginal.py",
        "path=jax.tree.map(chosen, path, state.path)",
        "path=path",
        "the states are those of parameters that were not accepted",
        ("tests/test_pmmh.py::test_a_path_belongs_to_its_draw",),
    ),
    Mutant(
        "kernel_is_not_told_of_the_path",
        "kernels/particle_gibbs.py",
        "jax.lax.scan(move, _told(state.inner, given), ",
        "jax.lax.scan(move, state.inner, ",
        "parameters move with the log density of the path before",
        ("tests/test_particle_gibbs.py::test_parameters_and_states_have_the_exact_posterior",),
    ),
    Mutant(
        "moves_count_an_observation_twice",
        "kernels/smc2.py",
        "self._moved(key_moves, t - 1, x, context.root)",
        "self._moved(key_moves, t, x, context.root)",
        "SMC squared moves particles with an observation that it weighs them by afterwards",
        ("tests/test_smc2.py::test_the_evidence_is_that_of_quadrature",),
    ),
    Mutant(
        "hyperparameters_are_states",
        "program/filtered.py",
        "    names = used.union(*(networkx.ancestors(graph, name) for name in used)) & latent.keys()\n",
        "    names = used & latent.keys()\n",
        "what parameters depend on is drawn from its prior",
        ("tests/test_pmmh.py::test_all_that_parameters_depend_on_are_parameters",),
    ),
)

FILTERS = (
    Mutant(
        "rows_are_off_by_one",
        "program/scanned.py",
        "return self.size - t if self.reverse else t - 1",
        "return self.size - t if self.reverse else t % self.size",
        "each step of a particle sees the data of the next",
        ("tests/test_particles.py::test_evidence_is_unbiased[irregular]",),
    ),
    Mutant(
        "rows_of_a_backward_scan_are_not_turned",
        "program/particles.py",
        "        series = {name: held[name][1:][order] for name, _ in self.cut.sites}\n",
        "        series = {name: held[name][1:] for name, _ in self.cut.sites}\n",
        "paths of a scan that runs backwards come out in the order of time",
        ("tests/test_particles.py::test_path_is_the_inverse_of_values_and_has_the_density_of_the_program[backwards]",),
    ),
    Mutant(
        "nothing_weighs_behind_the_scan",
        "program/particles.py",
        "jax.lax.cond(t == self.steps, weigh",
        "jax.lax.cond(t > self.steps, weigh",
        "observations behind the scan are forgotten",
        ("tests/test_particles.py::test_evidence_is_unbiased[around]",),
    ),
    Mutant(
        "prior_of_a_scaled_parameter_is_likelihood",
        "program/particles.py",
        "return self._first(trace, scan), log_potential(self._unknown(trace))",
        "return self._first(trace, scan), log_potential(trace)",
        "the scale of a parameter whose value is given counts in the evidence",
        ("tests/test_particles.py::test_scales_count_for_states_and_not_for_parameters",),
    ),
    Mutant(
        "any_carry_has_a_transition_density",
        "program/cut.py",
        "        if any(moves[j] and ",
        "        if path == () and any(moves[j] and ",
        "paths are drawn backwards through particles that cannot have been parents",
        ("tests/test_particles.py::test_transition_densities_that_do_not_exist_say_why",),
    ),
    Mutant(
        "the_proposal_is_not_divided_out",
        "program/proposals.py",
        "taken.log_potential) - log_q\n",
        "taken.log_potential)\n",
        "a guided filter weighs by the joint density alone",
        ("tests/test_particles.py::test_evidence_is_unbiased_whatever_the_proposal[optimal]",),
    ),
    Mutant(
        "the_guess_counts_twice",
        "program/proposals.py",
        "        return taken, log_w - self.guess(step)\n",
        "        return taken, log_w\n",
        "an auxiliary filter keeps its guess of the next observation in the evidence",
        ("tests/test_particles.py::test_evidence_is_unbiased_whatever_the_proposal[auxiliary]",),
    ),
    Mutant(
        "paths_are_sorted",
        "infer/particle_filter.py",
        "    paths = jax.tree.map(lambda leaf: leaf[order], paths)\n",
        "",
        "independent paths look like a chain that hardly moves",
        ("tests/test_particle_filter.py::test_draws_come_in_no_order",),
    ),
)

LATENT_VARIABLES = (
    Mutant(
        "guides_get_one_share",
        "generative/latent_objective.py",
        "            z = _scaled_gradient(net.infer(key, x, c), share)\n",
        "            z = net.infer(key, x, c)\n",
        "importance-weighted gradients of the guide have the wrong expectation",
        ("tests/test_vae.py::test_doubly_reparameterised_gradients_have_the_same_mean_and_less_noise",),
    ),
    Mutant(
        "points_are_near_themselves",
        "generative/latent_objective.py",
        " - count) / (count * (count - 1))\n",
        ") / count**2\n",
        "the discrepancy of aggregate posterior and prior is too large",
        ("tests/test_vae.py::test_discrepancy_is_unbiased",),
    ),
    Mutant(
        "precisions_have_a_prior_per_datum",
        "generative/vae_net.py",
        " / self.count.value\n",
        "\n",
        "learned prior variances hardly follow the data",
        ("tests/test_vae.py::test_learned_prior_variances_are_those_of_the_conjugate_update",),
    ),
    Mutant(
        "annealing_forgets_its_start",
        "generative/vae.py",
        "            return log_q, log_p + log_likelihood - log_q\n",
        "            return log_q, log_likelihood\n",
        "annealed weights take the guide for the prior",
        ("tests/test_vae.py::test_annealing_from_the_posterior_changes_no_weight",),
    ),
    Mutant(
        "chi_square_weights_are_not_squared",
        "infer/forward_chi2.py",
        "jax.nn.softmax(2 * log_w) * log_q",
        "jax.nn.softmax(log_w) * log_q",
        "the guide follows the inclusive Kullback-Leibler divergence in place of chi-square",
        ("tests/test_forward_chi2.py::test_discrete_latent_variables_need_no_reparameterisation",),
    ),
    Mutant(
        "gaps_have_potentials",
        "generative/structured_vae.py",
        "        whole = jnp.broadcast_to(seen[:, None], centre.shape)\n",
        "        whole = jnp.ones(centre.shape, bool)\n",
        "times that nobody saw count as data",
        ("tests/test_structured_vae.py::test_the_bound_of_a_linear_model_is_its_evidence_and_gaps_are_integrated_out",),
    ),
    Mutant(
        "hidden_pairs_count",
        "generative/graph_vae.py",
        "jnp.triu(jnp.ones(x.shape, bool), 1) & (x != 2)",
        "jnp.triu(jnp.ones(x.shape, bool), 1)",
        "pairs of nodes that nobody looked at count as absent edges",
        ("tests/test_graph_vae.py::test_the_bound_is_made_of_its_terms_and_hidden_pairs_have_none",),
    ),
)

CODES = (
    Mutant(
        "the_target_moves_too",
        "generative/consistency.py",
        "        target = jax.lax.stop_gradient(ends(net.net, x + lower.reshape(wide) * noise, lower, condition))\n",
        "        target = ends(net.net, x + lower.reshape(wide) * noise, lower, condition)\n",
        "consistency training pulls the target to the student, and the exact map is no solution",
        ("tests/test_consistency.py::test_the_loss_is_stationary_at_the_exact_map",),
    ),
    Mutant(
        "half_a_step_is_forgotten",
        "generative/progressive_distillation.py",
        "step(key, denoiser, half, jnp.asarray(middle)",
        "step(key, denoiser, x, jnp.asarray(middle)",
        "a halved sampler learns the second of two steps alone",
        ("tests/test_consistency.py::test_one_step_with_the_merged_mean_is_two_steps",),
    ),
    Mutant(
        "a_symbol_sees_itself",
        "generative/code_prior.py",
        "jnp.arange(len(row)) < position",
        "jnp.arange(len(row)) <= position",
        "the probabilities of all codes do not sum to one",
        ("tests/test_latent_models.py::test_a_later_symbol_says_nothing_of_an_earlier_one",),
    ),
    Mutant(
        "levels_see_clean_codes",
        "generative/nested_diffusion.py",
        " + self.family.noise * z[:size].reshape(spec.shape)\n",
        "\n",
        "draws pass codes on without the noise that levels were trained with",
        ("tests/test_latent_models.py::test_a_chain_of_exact_levels_has_the_exact_joint_law",),
    ),
    Mutant(
        "the_critic_moves_the_generator",
        "generative/gan.py",
        "jax.vmap(net.logit)(stop(made))",
        "jax.vmap(net.logit)(made)",
        "the generator helps the critic",
        ("tests/test_latent_models.py::test_each_network_of_a_gan_is_moved_by_its_own_loss",),
    ),
)

DISCRETE_MODELS = (
    Mutant(
        "blanks_are_not_weighed",
        "generative/unmasking.py",
        "jnp.where(blank, log_p, 0.0)) * size / number",
        "jnp.where(blank, log_p, 0.0))",
        "rows with many blanks count more than the bound says",
        ("tests/test_discrete_models.py::test_estimates_of_the_bound_are_unbiased",),
    ),
    Mutant(
        "a_reverse_step_counts_the_evidence_twice",
        "generative/discrete_process.py",
        "log_clean - jnp.where(possible, likelihood, 0.0), IMPOSSIBLE",
        "log_clean, IMPOSSIBLE",
        "reverse steps of a discrete diffusion have another law than Bayes' rule gives",
        ("tests/test_discrete_diffusion.py::test_reverse_is_bayes_rule[uniform]",),
    ),
    Mutant(
        "a_refused_guess_is_drawn_from_the_chain",
        "generative/any_subset.py",
        "jnp.maximum(jnp.exp(log_p) - jnp.exp(log_q), 0.0)",
        "jnp.maximum(jnp.exp(log_p), 0.0)",
        "speculation changes the law of what is drawn",
        ("tests/test_symbol_models.py::test_speculation_draws_from_the_chain_of_conditionals[symbols0]",),
    ),
    Mutant(
        "messages_are_too_sharp",
        "generative/bayesian_flow.py",
        "jnp.sqrt(accuracy * self.values) * noise",
        "jnp.sqrt(accuracy) * noise",
        "beliefs are surer than their messages allow",
        ("tests/test_discrete_diffusion.py::test_continuous_loss_is_the_information_of_the_messages",),
    ),
)

GUIDANCE = (
    Mutant(
        "classifier_gradient_without_noise_variance",
        "generative/classifier_guidance.py",
        "self.scale * sigma**2 / alpha * gain",
        "self.scale * sigma / alpha * gain",
        "classifier guidance has the wrong strength at every noise level",
        ("tests/test_guidance.py::test_the_exact_noisy_classifier_gives_the_conditional_denoiser",),
    ),
    Mutant(
        "guidance_steps_do_not_add_up",
        "generative/training_free.py",
        "d + length * gradient(mean + d)",
        "d + length * gradient(mean)",
        "steps in the denoised value all begin at the same point",
        ("tests/test_training_free.py::test_the_whole_step_of_tfg",),
    ),
    Mutant(
        "reference_is_noisy_to_the_end",
        "generative/replacement.py",
        "jnp.where(s > path.start, noisy, self.reference)",
        "noisy",
        "what is known comes out with the noise of the data end",
        ("tests/test_replacement.py::test_what_is_known_is_kept_exactly",),
    ),
    Mutant(
        "guidance_free_network_is_the_conditional_one",
        "generative/guidance_free.py",
        "share * guided + (1 - share) * uncond - x",
        "guided - x",
        "the weight of guidance does nothing",
        ("tests/test_guidance_free.py::test_the_loss_is_least_at_the_guided_denoiser",),
    ),
)

DIFFUSIONS = (
    Mutant(
        "chain_forgets_the_spread",
        "generative/chain_bound.py",
        "        return -0.5 * jnp.sum((true - mean) ** 2 / v + true_v / v - 1 - jnp.log(true_v / v))\n",
        "        return -0.5 * jnp.sum((true - mean) ** 2 / v)\n",
        "the divergence of a step counts the means alone, and the bound is none",
        ("tests/test_chain_bound.py::test_two_steps_agree_with_quadrature",),
    ),
    Mutant(
        "churn_is_not_denoised",
        "generative/sampler.py",
        "        return back, kept * x + ",
        "        return t, kept * x + ",
        "noise is added before a step, and the step begins where it began without it",
        (
            "tests/test_diffusion_sampler.py::test_the_marginals_are_those_of_the_noising_process_at_every_level",
            "tests/test_diffusion_sampler.py::test_churn_adds_the_noise_that_it_says",
        ),
    ),
    Mutant(
        "auxiliary_rows_begin_at_zero",
        "generative/linear_path.py",
        "covariance + (of_rest * self.initial) @ of_rest.T",
        "covariance",
        "the momenta of a multivariate diffusion begin without their variance",
        ("tests/test_multivariate_diffusion.py::test_moments_are_those_of_any_linear_equation",),
    ),
    Mutant(
        "poisson_noise_is_per_row_normal",
        "generative/poisson_flow.py",
        "self.extra / 2 / half",
        "half / (self.extra / 2)",
        "a Poisson flow is trained with noise of another law than it is sampled from",
        ("tests/test_diffusion.py::TestPoisson::test_the_radius_is_drawn_as_in_the_paper",),
    ),
    Mutant(
        "tilts_are_in_standard_units",
        "generative/factors.py",
        "    return x if units is None else units.outward(x)\n",
        "    return x\n",
        "a reward of a learned diffusion model is evaluated in standard units",
        ("tests/test_diffusion.py::TestLearned::test_corrections_are_in_the_units_of_the_data",),
    ),
)

FLOWS = (
    Mutant(
        "conditions_are_exchanged",
        "generative/coupling.py",
        "            other = jnp.any(condition[:, None] != condition, -1)\n",
        "            other = jnp.zeros((len(x), len(x)))\n",
        "starts are exchanged between conditions, and the prior of each is skewed",
        ("tests/test_flow_matching.py::test_conditional_transport_leaves_the_prior_of_every_condition_alone",),
    ),
    Mutant(
        "divergence_has_the_wrong_sign",
        "generative/flow_matching.py",
        "self.condition) + gained + self.units.log_det()",
        "self.condition) - gained + self.units.log_det()",
        "the density of a learned flow is that of its inverse",
        ("tests/test_flow_matching.py::test_the_density_is_that_of_the_flow",),
    ),
    Mutant(
        "pairs_are_swapped",
        "generative/paired_flow.py",
        "        return velocity_loss(key, net, both[:, 0], both[:, 1], given)\n",
        "        return velocity_loss(key, net, both[:, 1], both[:, 0], given)\n",
        "a flow of given pairs goes from the data to the starts",
        ("tests/test_paired_flow.py::test_a_flow_of_given_pairs_carries_each_start_to_its_datum",),
    ),
    Mutant(
        "batches_take_the_starts_of_the_first",
        "generative/paired_flow.py",
        "        rows.append(first + pair(",
        "        rows.append(pair(",
        "pairs that are made ahead use the starts of the first batch over and over",
        ("tests/test_paired_flow.py::test_pairs_are_optimal_within_each_batch_and_data_stay_in_order",),
    ),
    Mutant(
        "half_of_the_score",
        "generative/interpolant.py",
        "a * jnp.cos(2 * theta) * noise, -2 / a * noise",
        "a * jnp.cos(2 * theta) * noise, -1 / a * noise",
        "the stochastic equation of an interpolant has other marginals than the ordinary one",
        ("tests/test_interpolant.py::test_velocity_and_score_are_those_of_the_law_at_every_time[straight]",),
    ),
    Mutant(
        "a_bridge_pulls_too_late",
        "generative/phase_bridge.py",
        "    gain = across / (g**2 * t**3 / 3)\n",
        "    gain = across / (g**2 * t**3 / 2)\n",
        "a bridge in phase space does not end at its datum",
        ("tests/test_bridges.py::test_a_step_in_phase_space_is_the_bridge_of_integrated_brownian_motion",),
    ),
)

NORMALISING_FLOWS = (
    Mutant(
        "a_spline_forgets_a_slope",
        "generative/scalar_transform.py",
        "    upper = last * share**2 + 2 * steep * cross + first * (1 - share) ** 2\n",
        "    upper = first * share**2 + 2 * steep * cross + first * (1 - share) ** 2\n",
        "the density of a spline flow is not that of its map",
        ("tests/test_flow.py::test_scalar_transforms[Spline]",),
    ),
    Mutant(
        "units_count_the_other_way",
        "generative/flow.py",
        "        return z.reshape(x.shape), gained + self.units.log_det()\n",
        "        return z.reshape(x.shape), gained - self.units.log_det()\n",
        "densities of a flow are in the wrong units",
        ("tests/test_flow.py::test_flows_are_exact[MAF]",),
    ),
    Mutant(
        "a_token_sees_itself",
        "generative/transformer_layers.py",
        "        before = jnp.concatenate([jnp.zeros_like(rows[:1]), rows[:-1]])\n",
        "        before = rows\n",
        "a transformer flow has no inverse, and the log determinant of another map",
        ("tests/test_flow.py::test_flows_are_exact[transformer over rows]",),
    ),
    Mutant(
        "dequantisation_forgets_the_noise",
        "generative/dequantized_flow.py",
        "        return v, standard_normal(z) - gained - jnp.sum(_log_sigmoid_slope(v))\n",
        "        return v, standard_normal(z) - gained\n",
        "the bound of a dequantised flow is none",
        ("tests/test_flow.py::test_dequantisation_bounds_probabilities",),
    ),
    Mutant(
        "flowjax_conditions_are_constants",
        "generative/from_flowjax.py",
        "        return self.net.log_density(x, self.condition)\n",
        "        return self.net.log_density(x, jax.lax.stop_gradient(self.condition))\n",
        "gradients with respect to conditions of flowjax flows are zero",
        ("tests/test_flow.py::test_flowjax_keeps_the_gradient_of_the_condition",),
    ),
    Mutant(
        "a_continuous_flow_contracts_for_nothing",
        "generative/continuous_flow.py",
        "return z, standard_normal(z) + gained + self.units.log_det(), price",
        "return z, standard_normal(z) - gained + self.units.log_det(), price",
        "the density of a continuous flow is that of its inverse",
        ("tests/test_continuous_flow.py::test_a_linear_flow_is_a_normal_law",),
    ),
    Mutant(
        "a_solver_is_compared_with_itself",
        "generative/ode_solver.py",
        "        return dataclasses.replace(self, steps=4 * self.steps)\n",
        "        return self\n",
        "a continuous flow that fits its solver rather than the data goes without a warning",
        ("tests/test_continuous_flow.py::test_training_sees_how_far_off_its_solver_is",),
    ),
    Mutant(
        "roughness_is_the_divergence",
        "generative/continuous_flow.py",
        "            roughness = jnp.sum(pushed**2) / (len(directions) * velocity.size)\n",
        "            roughness = trace**2 / velocity.size\n",
        "fields that shear are smooth for a continuous flow",
        ("tests/test_continuous_flow.py::test_the_prices_of_a_path",),
    ),
)

CIRCUITS_AND_ENERGIES = (
    Mutant(
        "unbiased_divergence_forgets_its_correction",
        "generative/boltzmann.py",
        "a + plain * b + share * (b - c)",
        "a + plain * b",
        "coupled chains give the biased mean of a short chain",
        ("tests/test_energy.py::test_unbiased_contrastive_divergence_is_unbiased",),
    ),
    Mutant(
        "couplings_act_on_themselves",
        "generative/monotone_boltzmann.py",
        "return -(1 - block) * (flat.T @ flat)",
        "return -(flat.T @ flat)",
        "a variable of a monotone machine is driven by its own mean field",
        ("tests/test_energy.py::test_the_parametrisation_is_monotone_and_hollow",),
    ),
    Mutant(
        "mean_field_is_differentiated_as_one_step",
        "generative/monotone_boltzmann.py",
        "q + left_out(new - jax.lax.stop_gradient(new)) + known",
        "q + (new - jax.lax.stop_gradient(new)) + known",
        "a monotone machine is trained as if fields did not answer one another",
        ("tests/test_energy.py::test_training_gradients_approach_those_of_the_enumerated_model",),
    ),
    Mutant(
        "unobserved_entries_count",
        "generative/latent_tree.py",
        "jnp.where(mask[:, None], self.leaves(x), 0.0)",
        "self.leaves(x)",
        "marginals of a circuit are densities of the whole",
        ("tests/test_circuit.py::test_marginals_are_sums[HiddenChowLiu]",),
    ),
)

JOINT_AND_PREDICTORS = (
    Mutant(
        "solver_stays",
        "amortized/amortized.py",
        "family=dataclasses.replace(inner, solver=solver))",
        "family=inner)",
        "an amortized posterior with another number of steps takes as many as before",
        ("tests/test_amortized_coupling.py::test_another_solver_follows_the_same_flow",),
    ),
    Mutant(
        "entropic_plans_are_not_warned_of",
        "generative/coupling.py",
        '        iterations: Of Sinkhorn.\n    """\n\n    skews: ClassVar[bool] = True\n',
        '        iterations: Of Sinkhorn.\n    """\n\n    skews: ClassVar[bool] = False\n',
        "an amortized posterior is learned with a coupling that forgets the observation, and nobody is told",
        ("tests/test_amortized_coupling.py::test_couplings_that_forget_the_observation_are_warned_of",),
    ),
    Mutant(
        "outputs_follow_the_prior_graph",
        "amortized/joint.py",
        "attention = Full() if question.outside else self.attention",
        "attention = self.attention",
        "the tokens of what a simulator returns have no place in the graph of the program",
        ("tests/test_joint.py::test_a_simulator_may_draw_the_data",),
    ),
    Mutant(
        "rows_follow_all_rows",
        "amortized/token_attention.py",
        "                here |= _followed(at, batch, child, site, dims, found.get((child.name, site.name)))\n",
        "                here |= _followed(at, batch, child, site, dims, None)\n",
        "every row of a plate attends to every row of its parents",
        ("tests/test_joint.py::test_attention_is_the_moral_graph",),
    ),
    Mutant(
        "tokens_see_everything",
        "amortized/joint_flow.py",
        "TimeFeatures()(t).astype(z.dtype), self.seen)",
        "TimeFeatures()(t).astype(z.dtype))",
        "the attention of a joint model does not follow the graph",
        ("tests/test_joint.py::test_tokens_without_a_path_have_no_influence",),
    ),
    Mutant(
        "queries_see_queries",
        "amortized/row_predictor.py",
        "context[None, :] | jnp.eye(len(x), dtype=bool)",
        "context[None, :] | ~context[:, None]",
        "the prediction of a row depends on which other rows are predicted",
        ("tests/test_pfn.py::test_rows_are_predicted_each_by_itself",),
    ),
    Mutant(
        "pseudo_outcomes_do_not_join",
        "amortized/pfn.py",
        "context.at[known + j].set(True)), None",
        "context), None",
        "a martingale posterior without pseudo-context has no spread",
        ("tests/test_pfn.py::test_the_martingale_posterior_of_the_exact_predictive",),
    ),
)

COMPOSED_AND_POSED = (
    Mutant(
        "prior_counts_n_times",
        "amortized/composed.py",
        "gains = jax.vmap(positive)(own - precision)",
        "gains = jax.vmap(positive)(own)",
        "the prior counts once per row in a composed posterior",
        (
            "tests/test_composed_score.py::test_the_composed_denoiser_of_gaussians_is_that_of_their_conjugate_posterior[gauss]",
        ),
    ),
    Mutant(
        "rows_share_the_weight_of_one",
        "amortized/composed.py",
        'jnp.einsum("nij,nj->i", base + gains, means - prior)',
        'jnp.einsum("nij,nj->i", gains, means - prior)',
        "rows that are composed lose what the noisy value says",
        ("tests/test_composed_score.py::test_one_row_is_itself_whatever_the_precisions",),
    ),
    Mutant(
        "proxy_is_not_blurred_in_turns",
        "amortized/gnpe.py",
        "pose + blur * jax.random.normal(key_blur, pose.shape, pose.dtype)",
        "pose + 0.5 * blur * jax.random.normal(key_blur, pose.shape, pose.dtype)",
        "Gibbs turns blur the pose less than training did, and end too narrow",
        ("tests/test_gnpe.py::test_turns_with_the_exact_conditional_end_in_the_posterior",),
    ),
)

FACTORS = (
    Mutant(
        "factors_of_rows_that_are_not_there",
        "amortized/factor_posterior.py",
        "slope = jnp.where(present[:, None, None], slope, 0.0)",
        "slope = jnp.where(present[:, None, None], slope, slope)",
        "a posterior of two surveys has the precision of eight",
        ("tests/test_factor_posterior.py::test_rows_that_are_not_there_play_no_part_and_others_have_no_order",),
    ),
    Mutant(
        "factors_without_a_prior",
        "amortized/factor_posterior.py",
        "precision, pull = jnp.eye(dim, dtype=dtype), -point",
        "precision, pull = 1e-6 * jnp.eye(dim, dtype=dtype), -point",
        "the product of factors forgets the prior",
        ("tests/test_factor_posterior.py::test_gaussian_rows_have_their_exact_posterior_for_any_number_and_design",),
    ),
    Mutant(
        "whitening_has_the_volume_of_its_inverse",
        "amortized/whitening.py",
        "return inner - jnp.sum(",
        "return -inner - jnp.sum(",
        "the density of a posterior of factors is wrong by what the data say",
        ("tests/test_factor_posterior.py::test_a_whitening_is_invertible_and_knows_its_volume",),
    ),
)

SIMULATORS = (
    Mutant(
        "simulations_share_their_seed",
        "amortized/simulator.py",
        "spawn_key=(first + i,)",
        "spawn_key=(i,)",
        "the first simulation of each task has the same noise",
        ("tests/test_simulators.py::test_draws_are_of_the_prior_and_the_simulator",),
    ),
    Mutant(
        "failed_simulations_shift_the_others",
        "amortized/simulator.py",
        "np.concatenate(self.u)[good]",
        "np.concatenate(self.u)[: good.sum()]",
        "parameters stand beside the observations of others",
        ("tests/test_simulators.py::test_failures_are_counted_and_left_out",),
    ),
    Mutant(
        "programs_draw_with_a_fixed_key",
        "program/implicit_density.py",
        "handlers.seed(self.substituted(u), key)",
        "handlers.seed(self.substituted(u), jax.random.key(0))",
        "what follows from a program's own random numbers is the same in every draw",
        ("tests/test_simulators.py::test_programs_with_keys_of_their_own_are_amortized",),
    ),
    Mutant(
        "references_count_themselves_as_neighbours",
        "amortized/reference.py",
        "_nearest(points, z, 1)[1]",
        "_nearest(points, z, 0)[1]",
        "observations look farther away than those of the reference, and alarms are false",
        ("tests/test_misspecification.py::test_the_p_value_is_uniform_for_data_of_the_model",),
    ),
)

ROUNDS = (
    Mutant(
        "envelopes_are_forgotten",
        "amortized/truncated_prior.py",
        "log_prior - envelope.log_prob(u)",
        "jnp.zeros_like(log_prior)",
        "rounds draw from the envelope cut off, not from the prior",
        ("tests/test_truncated.py::test_draws_are_those_of_the_prior_inside[by an envelope]",),
    ),
    Mutant(
        "only_the_last_region_counts",
        "amortized/truncated_prior.py",
        "for region in regions]).all(0)",
        "for region in regions]).any(0)",
        "what one round left out comes back in the next, unevenly simulated",
        ("tests/test_truncated.py::test_draws_are_those_of_the_prior_inside[inside of two]",),
    ),
    Mutant(
        "old_simulations_stay_outside",
        "amortized/truncated.py",
        "made = made.chosen(prior.inside(made.u))",
        "made = made.chosen(np.ones(len(made.u), bool))",
        "rounds are trained on a mixture of priors, and the posterior is that of none of them",
        ("tests/test_truncated.py::test_a_round_simulates_inside_and_uses_again_what_is_inside",),
    ),
)

PATHS = (
    Mutant(
        "paths_forget_the_scale_of_their_residuals",
        "amortized/path_posterior.py",
        "net.path.log_det() - jnp.sum(jnp.log(net.spread.value))",
        "net.path.log_det()",
        "the density of a path is off by a factor, and with it the evidence",
        ("tests/test_path_posterior.py::test_the_density_is_that_of_the_draws",),
    ),
    Mutant(
        "states_see_themselves",
        "amortized/path_posterior.py",
        "jnp.tri(dim, k=-1, dtype=bool)",
        "jnp.tri(dim, k=0, dtype=bool)",
        "the density of a path is that of something else than its draws",
        ("tests/test_path_posterior.py::test_the_density_is_that_of_the_draws",),
    ),
)

LIKELIHOODS = (
    Mutant(
        "evolution_steps_from_the_centre",
        "kernels/moves.py",
        "step = gamma * (tuning.bank[first] - tuning.bank[second])",
        "step = gamma * (tuning.bank[first] - tuning.bank.mean(0))",
        "a differential-evolution proposal is not symmetric, and its acceptance says nothing of that",
        ("tests/test_differential_evolution.py::test_a_move_leaves_both_modes_as_they_are",),
    ),
    Mutant(
        "components_are_not_normalised",
        "generative/mixture_density.py",
        "each = mixture.log_shares + mixture.stretch.sum(-1) - ",
        "each = mixture.log_shares - ",
        "the density of a mixture leaves out the determinants of its components",
        (
            "tests/test_mixture_density.py::test_the_density_is_that_of_a_mixture",
            "tests/test_mixture_density.py::test_it_integrates_to_one_and_is_the_law_of_its_draws",
        ),
    ),
    Mutant(
        "missing_rows_count",
        "amortized/learned_likelihood.py",
        "return jnp.sum(jnp.where(present, each, 0.0))",
        "return jnp.sum(each)",
        "rows that are missing, or only padding, count as zeros in a learned likelihood",
        (
            "tests/test_nle.py::test_rows_that_are_missing_are_left_out",
            "tests/test_nle.py::test_one_fit_serves_any_number_of_rows[3]",
        ),
    ),
    Mutant(
        "discrete_sites_leave_rows_apart",
        "amortized/learned_likelihood.py",
        "free = not model.of_kind(Kind.discrete) and any(",
        "free = any(",
        "rows that share a discrete site, which was summed out, count as independent",
        ("tests/test_nle.py::test_rows_are_parts_only_where_the_program_says_that_they_are_independent",),
    ),
    Mutant(
        "none_class_sees_the_right_one",
        "amortized/nre.py",
        "none = -jax.nn.softplus(jax.nn.logsumexp(scaled[:, 1:], 1))",
        "none = -jax.nn.softplus(jax.nn.logsumexp(scaled[:, :-1], 1))",
        "the class of no match is trained with the match among the parameters",
        ("tests/test_nle.py::test_the_loss_is_that_of_the_classifier",),
    ),
    Mutant(
        "answers_are_read_in_units_of_their_own",
        "amortized/binary_regression.py",
        "jax.vmap(self.own.inward)(rows)], 1)",
        "rows], 1)",
        "the regression of answers takes the arguments of a row as they are, and its ridge with them",
        ("tests/test_binary_regression.py::test_before_training_it_is_the_logistic_regression_on_products",),
    ),
    Mutant(
        "weights_of_few_draws_are_repeated",
        "amortized/importance_sampling.py",
        "short = weights.ess < _WORTH * plan.chains * plan.draws",
        "short = False",
        "a few points with nearly all of the weight are repeated as draws",
        ("tests/test_binary_regression.py::test_weights_that_are_worth_few_draws_are_not_repeated",),
    ),
    Mutant(
        "entries_are_predicted_from_on_a_bent_scale",
        "amortized/encoder.py",
        "parts = [self.flat.straight(read.flat, read.flat_seen), ",
        "parts = [self.flat(read.flat, read.flat_seen), ",
        "the linear prediction sees entries on a bent scale alone, so that a Gaussian law is predicted with a bias",
        ("tests/test_linear_prediction.py::test_a_gaussian_posterior_is_predicted_without_bias",),
    ),
    Mutant(
        "proposals_are_not_warmed_up",
        "amortized/amortized_likelihood.py",
        "_TO_FIT = Plan(DRAWS_TO_FIT // 4, 1000, 4)",
        "_TO_FIT = Plan(DRAWS_TO_FIT // 4, 0, 4)",
        "a proposal is fitted to draws of a sampler that was not adapted",
        ("tests/test_binary_regression.py::test_a_proposal_from_a_sampler_of_ones_own_is_warmed_up",),
    ),
)

CAUSAL_GRAPHS = (
    Mutant(
        "hidden_causes_open_no_path",
        "causal/separation.py",
        "heads |= marks.children[place] | marks.spouses[place]",
        "heads |= marks.children[place]",
        "a bidirected edge at the start of a path, or after a fork, joins nothing",
        ("tests/test_causal_graph.py::test_separation_is_that_of_the_graph_with_its_hidden_nodes",),
    ),
    Mutant(
        "effects_of_mediators_are_covariates",
        "causal/adjustment.py",
        "return graph.descendants(causal_nodes(graph, treatment, outcome))",
        "return causal_nodes(graph, treatment, outcome)",
        "sets may hold descendants of what stands between treatment and outcome",
        ("tests/test_causal_graph.py::test_a_set_is_valid_exactly_where_adjusting_gives_the_truth",),
    ),
    Mutant(
        "projection_forgets_hidden_causes_of_the_hidden",
        "causal/graph.py",
        "for b in (effects | siblings) - {a}:",
        "for b in effects - {a}:",
        "what shares a hidden cause with a hidden node no longer depends on its effects",
        ("tests/test_causal_graph.py::test_projection_keeps_separations_and_does_not_depend_on_the_order",),
    ),
    Mutant(
        "arguments_confound_nothing",
        "causal/program_graph.py",
        "found.setdefault(site, set()).add(name)",
        "found.setdefault(site, set())",
        "covariates and group labels that are arguments of the program are left out of its graph",
        ("tests/test_causal_graph.py::test_the_graph_of_a_program_is_that_of_its_units",),
    ),
    Mutant(
        "strata_share_degrees_of_freedom",
        "causal/implications.py",
        "free = int(((levels[0] - 1) * (levels[1] - 1)).sum())",
        "free = int(((levels[0] - 1) * (levels[1] - 1)).max())",
        "the G test given others has the degrees of freedom of one stratum",
        ("tests/test_causal_graph.py::test_p_values_are_uniform_and_families_err_as_rarely_as_they_say",),
    ),
)

IDENTIFICATION = (
    Mutant(
        "districts_ignore_hidden_causes",
        "causal/kernels.py",
        "    district = before.district(name)\n    return (district | before.parents(district)) - {name}\n",
        "    return before.parents(name)\n",
        "each node is taken as independent of earlier ones given its parents, hidden causes or not",
        ("tests/test_identify.py::test_the_cases_of_the_literature_are_identified_exactly[napkin]",),
    ),
    Mutant(
        "the_verifier_is_blind",
        "causal/verification.py",
        "        error = max(error, wrong)\n",
        "        error = min(error, wrong)\n",
        "an estimand that is wrong on random models is returned",
        ("tests/test_identify.py::test_a_wrong_formula_does_not_pass",),
    ),
    Mutant(
        "empty_cells_count_as_zero",
        "causal/observed_law.py",
        "np.where(some.array != fine.array, np.nan, total.array)",
        "total.array",
        "where there is no overlap the plug-in is a sum without the missing strata",
        ("tests/test_identify.py::test_empty_cells_are_named",),
    ),
    Mutant(
        "recanting_districts_are_overlooked",
        "causal/identify.py",
        "if district & asked and district & other:",
        "if asked & other & district:",
        "natural effects are called identified although the mediator and the outcome share a hidden cause",
        ("tests/test_identify.py::test_natural_effects_need_an_unconfounded_mediator",),
    ),
    Mutant(
        "every_node_may_be_seen_as_set",
        "causal/identify.py",
        "if cut.separated(left, name, right | (seen - {name})):",
        "if name in seen:",
        "conditions that the intervention changes are treated as interventions",
        ("tests/test_identify.py::test_the_cases_of_the_literature_are_identified_exactly[joint_law_after_do]",),
    ),
)

SENSITIVITY = (
    Mutant(
        "bias_forgets_what_is_left_of_the_treatment",
        "causal/cinelli_hazlett.py",
        "bias = regression.se * np.sqrt(dof * outcome * treatment / (1 - treatment))",
        "bias = regression.se * np.sqrt(dof * outcome * treatment)",
        "adjusted estimates and contours show too little bias",
        ("tests/test_sensitivity.py::test_omitted_variable_bias_is_an_identity",),
    ),
    Mutant(
        "worst_confounder_sits_in_the_corner",
        "causal/robustness.py",
        "    if critical > 0 and f > 1 / critical:\n        return (f**2 - critical**2) / (1 + f**2)\n",
        "",
        "robustness values of intervals are too large when few degrees of freedom are left",
        ("tests/test_sensitivity.py::test_robustness_values_are_where_the_conclusion_tips",),
    ),
    Mutant(
        "ties_are_ranked_one_after_the_other",
        "causal/pair_statistic.py",
        "return rankdata(np.abs(differences))",
        'return rankdata(np.abs(differences), method="ordinal")',
        "p-values of matched pairs depend on the order of pairs with equal differences",
        ("tests/test_sensitivity.py::test_signed_rank_is_exact_by_enumeration_and_scipy",),
    ),
    Mutant(
        "response_functions_are_read_backwards",
        "causal/response_program.py",
        "setting = setting * self.levels[parent] + values[parent]",
        "setting = setting + values[parent]",
        "types of variables with two parents answer the same to different settings",
        ("tests/test_sensitivity.py::test_queries_that_depend_on_exogenous_variables_use_their_law",),
    ),
)

WORLDS = (
    Mutant(
        "losers_do_not_know_the_winner",
        "program/discrete_noise.py",
        "rest = -jnp.logaddexp(log_p - top, -free)",
        "rest = free",
        "the Gumbel noise of a category that lost is not below that of the winner: its value would change by itself",
        ("tests/test_structural.py::test_gumbel_max_is_the_posterior_of_oberst_and_sontag",),
    ),
    Mutant(
        "every_step_is_the_first",
        "program/structural.py",
        "                value = value[step]\n",
        "                value = value[0]\n",
        "an intervention inside a scan sets every step to the value of the first",
        ("tests/test_worlds.py::test_interventions_reach_into_a_scan",),
    ),
    Mutant(
        "indirect_effect_of_the_other_arm",
        "causal/effects.py",
        "more, cross = self._crossed(mediator, control, treated)\n            effect = more.ate(outcome, cross, control)",
        "more, cross = self._crossed(mediator, treated, control)\n            effect = more.ate(outcome, treated, cross)",
        "the pure natural indirect effect is the total one",
        ("tests/test_worlds.py::test_mediation_with_interaction",),
    ),
)

ESTIMATION = (
    Mutant(
        "weights_forget_that_they_were_estimated",
        "causal/ipw.py",
        "            influence = influence + fitted.scores @ gradient\n",
        "            influence = influence - fitted.scores @ gradient\n",
        "standard errors of weighted estimates are too large, where they should be smaller than with known propensities",
        (
            "tests/test_estimate.py::test_saturated_estimators_are_the_plug_in_and_agree_on_the_standard_error",
            "tests/test_estimate.py::test_effects_on_the_treated_agree_where_models_are_saturated",
        ),
    ),
    Mutant(
        "units_are_predicted_by_their_own_fit",
        "causal/cross_fit.py",
        "fitted = learners.fit(rng, learner, x[among & ~here], y[among & ~here])",
        "fitted = learners.fit(rng, learner, x[among], y[among])",
        "cross-fitting does not cross: flexible learners see the unit that they predict",
        ("tests/test_estimate.py::test_no_unit_is_predicted_by_a_fit_that_has_seen_it_or_its_cluster",),
    ),
    Mutant(
        "matches_count_as_if_used_once",
        "causal/matching.py",
        "factor = share**2 + (2 * m - 1) / m * share",
        "factor = share + (2 * m - 1) / m * share",
        "standard errors of matching ignore that some units are matches again and again",
        ("tests/test_estimate.py::test_matching_is_what_its_formulas_say[ATE]",),
    ),
)

BOUNDS = (
    Mutant(
        "confounding_of_the_observed_arm",
        "causal/marginal_bounds.py",
        "moved = (1 - propensity) * (1 - 1 / gamma)",
        "moved = propensity * (1 - 1 / gamma)",
        "bounds of an arm move with its own share instead of that of the other arm",
        ("tests/test_bounds.py::test_sharp_bounds_of_other_laws",),
    ),
    Mutant(
        "no_curvature_of_the_expectile",
        "causal/bound_scores.py",
        "nu = 1 + (gamma - 1) * below",
        "nu = 1.0",
        "the score of bounds by expectiles is not orthogonal",
        ("tests/test_bounds.py::test_errors_of_nuisances_count_by_their_squares",),
    ),
    Mutant(
        "quantiles_of_the_wrong_side",
        "causal/bound_scores.py",
        "level = 1 - share if sign > 0 else share",
        "level = 1 - share",
        "lower bounds of an effect are wider than the sharp ones",
        ("tests/test_bounds.py::test_scores_find_the_bounds_of_their_model",),
    ),
)

CONFOUNDERS = (
    Mutant(
        "treatment_tells_nothing",
        "program/confounded.py",
        "load = self.alignment * jnp.sqrt(self.r2_outcome / self.left)",
        "load = self.alignment * jnp.sqrt(self.r2_outcome)",
        "the share of the outcome is taken before, and not after, the treatment is known",
        (
            "tests/test_confounded.py::test_normal_sites_keep_their_scales_and_the_slope_moves_by_the_bias",
            "tests/test_confounded.py::test_a_binary_treatment_keeps_its_probability",
        ),
    ),
    Mutant(
        "coordinates_change_the_law",
        "program/confounded.py",
        "        super().__init__(zeros, 1.0)\n",
        "        super().__init__(zeros, width)\n",
        "where samplers look for a confounder is taken for its distribution",
        ("tests/test_confounded.py::test_normal_sites_keep_their_scales_and_the_slope_moves_by_the_bias",),
    ),
    Mutant(
        "alignment_is_forgotten",
        "causal/posterior_bias.py",
        'drawn["r2_Y"], drawn["alignment"])',
        'drawn["r2_Y"], 1.0)',
        "a confounder of either direction is taken to work one way",
        ("tests/test_confounded.py::test_bias_of_a_draw_is_that_of_the_regression",),
    ),
)

MOMENTS = (
    Mutant(
        "balance_with_oneself",
        "causal/balancing.py",
        "gram[arm] @ goal)",
        "gram[arm] @ even)",
        "balancing weights leave the law of the covariates as it is",
        ("tests/test_moments.py::test_balancing_weights_are_optimal[ATE-EnergyDistance]",),
    ),
    Mutant(
        "efficient_weight_without_residuals",
        "causal/streaming_gmm.py",
        "np.asarray(state.scores[:q, :q] if efficient else state.zz)",
        "np.asarray(state.zz)",
        "efficient GMM is two-stage least squares",
        ("tests/test_moments.py::test_streaming_equals_offline[True]",),
    ),
    Mutant(
        "invalid_instrument_without_omega",
        "causal/invalid_instrument.py",
        "fixed, slope = r * y - omega_y, r * a - omega_a",
        "fixed, slope = r * y, r * a",
        "a wrong model of the instrument biases the effect though omega is right",
        ("tests/test_moments.py::test_invalid_instrument_is_multiply_robust[treatment-instrument]",),
    ),
)

MUTANTS = (
    PROGRAM
    + CIRCUITS_AND_ENERGIES
    + KERNELS
    + METHODS
    + RUN
    + PARTICLES
    + STATES
    + FILTERS
    + LATENT_VARIABLES
    + CODES
    + DISCRETE_MODELS
    + GUIDANCE
    + DIFFUSIONS
    + FLOWS
    + NORMALISING_FLOWS
    + JOINT_AND_PREDICTORS
    + COMPOSED_AND_POSED
    + FACTORS
    + SIMULATORS
    + ROUNDS
    + PATHS
    + LIKELIHOODS
    + CAUSAL_GRAPHS
    + IDENTIFICATION
    + WORLDS
    + SENSITIVITY
    + ESTIMATION
    + BOUNDS
    + CONFOUNDERS
    + MOMENTS
)
