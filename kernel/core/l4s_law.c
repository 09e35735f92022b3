/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What a controller sets for a while, within the operator's bounds: parameters
 * of the native law, which then decides each packet by itself all the time, or
 * probabilities in its place.
 */
#include "l4s_internal.h"

/* A parameter of the variant's law, or NULL where it has none. */
static uint64_t *
parameter(struct l4s_params *p, unsigned which)
{
	bool testbed = p->variant == L4S_TESTBED;
	bool is_linux = p->variant == L4S_LINUX;

	switch (which) {
	case L4S_LAW_TARGET:
		return (&p->target_us);
	case L4S_LAW_ALPHA:
		return (testbed ? &p->alpha : is_linux ? &p->pi2_alpha :
		    &p->alpha_q);
	case L4S_LAW_BETA:
		return (testbed ? &p->beta : is_linux ? &p->pi2_beta :
		    &p->beta_q);
	case L4S_LAW_COUPLING:
		/* The testbed's kernel has a fixed one, if any. */
		return (testbed ? 0 : is_linux ? &p->coupling_factor :
		    &p->coupling);
	default:
		if ((testbed && (p->quirks & L4S_NO_L4S_STEP) != 0) ||
		    (is_linux && p->step_packets > 0))
			return (0);
		return (testbed || is_linux ? &p->step_ns : &p->min_th_ns);
	}
}

void
l4s_law_range(const struct l4s_params *p, unsigned which, uint32_t *low,
    uint32_t *high)
{
	const uint64_t bounds[L4S_FACTORS][2] = {
		{ p->law_target_low, p->law_target_high },
		{ p->law_alpha_low, p->law_alpha_high },
		{ p->law_beta_low, p->law_beta_high },
		{ p->law_coupling_low, p->law_coupling_high },
		{ p->law_threshold_low, p->law_threshold_high },
	};
	struct l4s_params copy = *p;
	bool has = parameter(&copy, which) != 0;

	*low = has ? (uint32_t)bounds[which][0] : L4S_SAME;
	*high = has ? (uint32_t)bounds[which][1] : L4S_SAME;
}

void
l4s_law_values(const struct l4s_params *p, uint64_t values[L4S_LAW_VALUES])
{
	/* LAW_VALUES in l4s_gym/bridge/wire.py has the same order. */
	const uint64_t of[][L4S_LAW_VALUES] = {
		[L4S_TESTBED] = { p->target_us, p->tupdate_us, p->alpha,
		    p->beta, p->step_ns, p->drr_weight, p->quirks,
		    p->max_burst_us, p->max_ecn_threshold },
		[L4S_RFC9332] = { p->target_us, p->tupdate_us, p->alpha_q,
		    p->beta_q, p->coupling, p->min_th_ns, p->range_ns,
		    p->classic_weight, p->th_len, p->p_c_max, p->shift_ns },
		[L4S_LINUX] = { p->target_us, p->tupdate_us, p->pi2_alpha,
		    p->pi2_beta, p->coupling_factor, p->step_ns,
		    p->step_packets, p->classic_protection, p->min_qlen_step,
		    p->drop_on_overload },
	};

	__builtin_memcpy(values, of[p->variant], sizeof(of[0]));
}

/* The parameter times the factor, rounded, within the parameter's own range. */
static void
scale(struct l4s_params *p, unsigned which, uint32_t factor)
{
	static const uint64_t range[][2] = {
#define RANGE(name, normal, low, high, text) { (low), (high) },
		L4S_PARAMETERS(RANGE)
#undef RANGE
	};
	uint64_t *value = parameter(p, which), scaled;
	const uint64_t *bounds;

	if (value == 0 || factor == L4S_SAME)
		return;
	bounds = range[value - &p->variant];	/* the first one */
	scaled = (*value * factor + L4S_SAME / 2) / L4S_SAME;
	*value = scaled < bounds[0] ? bounds[0] :
	    scaled > bounds[1] ? bounds[1] : scaled;
}

/* Whether the factors are in their bounds; the parameters that they make. */
static bool
scaled(struct l4s_params *p, const uint32_t factor[L4S_FACTORS])
{
	uint32_t low, high;

	for (unsigned i = 0; i < L4S_FACTORS; i++) {
		l4s_law_range(p, i, &low, &high);
		if (factor[i] < low || factor[i] > high)
			return (false);
		scale(p, i, factor[i]);
	}
	return (l4s_params_check(p) < 0);
}

/* What was set holds from now on, for no longer than the operator lets it. */
static void
begin(struct l4s_core *c, uint32_t lifetime_ms, uint64_t now_ns)
{
	uint64_t most_ms = c->own.law_lifetime_ms;

	c->law_until_ns = now_ns +
	    (lifetime_ms < most_ms ? lifetime_ms : most_ms) * 1000000;
	c->tick.sets = false;
	c->law_sets++;
}

bool
l4s_set_law(struct l4s_core *c, const uint32_t factor[L4S_FACTORS],
    uint32_t lifetime_ms, uint64_t now_ns)
{
	struct l4s_params p = c->own;

	l4s_expire_law(c, now_ns);
	if (lifetime_ms == 0 || !scaled(&p, factor)) {
		c->law_refused++;
		return (false);
	}
	l4s_end_law(c);
	c->p = p;
	__builtin_memcpy(c->factor, factor, sizeof(c->factor));
	begin(c, lifetime_ms, now_ns);
	return (true);
}

bool
l4s_set_prob(struct l4s_core *c, const uint32_t prob[2], uint32_t lifetime_ms,
    uint64_t now_ns)
{
	l4s_expire_law(c, now_ns);
	if (lifetime_ms == 0 || prob[0] > c->own.prob_c_high << 15 ||
	    prob[1] > c->own.prob_l_high << 15) {
		c->law_refused++;
		return (false);
	}
	if (!c->by_prob)
		l4s_end_law(c);
	c->by_prob = true;
	for (int i = 0; i < 2; i++)
		c->set_prob[i] = (uint64_t)prob[i] << 1;
	begin(c, lifetime_ms, now_ns);
	return (true);
}

void
l4s_end_law(struct l4s_core *c)
{
	if (c->by_prob)
		l4s_hand_back(c);
	c->by_prob = false;
	c->p = c->own;
	for (unsigned i = 0; i < L4S_FACTORS; i++)
		c->factor[i] = L4S_SAME;
	c->law_until_ns = L4S_NEVER;
}
