/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * A model of an interval form: each of its intervals it observes what the queue
 * did, as l4s_gym/sim/intervals.py does, and sets parameters of the law or
 * probabilities, as a controller would: within the operator's bounds, and for a
 * while.
 */
#include "l4s_internal.h"

#define LIVES 3		/* intervals for which an action holds */
#define UNIT (1ULL << L4S_SEEN_BITS)
#define MOST_BYTES (1ULL << 30)	/* that are told apart */
#define MOST (1ULL << 40)	/* of all other numbers */
#define PLAIN 12	/* features of the last interval alone */
#define PER_LN 1488522236	/* ln(2), 2^-31 */
#define PER_LOG 3098164010	/* log2(e), 2^-31 */
#define LEAST_BPS 56000

/* Time constants of the moving averages, ns. */
static const uint64_t constant_ns[2] = { 250000000, 500000000 };

/* Which features of the last interval are averaged. */
static const uint8_t averaged[L4S_MOVING] = { 0, 1, 4, 5, 6, 7, 10 };

static uint64_t
at_most(uint64_t value, uint64_t most)
{
	return (value < most ? value : most);
}

/* Growth of a counter since the last look. */
static uint64_t
grown(uint64_t *before, uint64_t now)
{
	uint64_t growth = now - *before;

	*before = now;
	return (growth);
}

static uint64_t
ratio(uint64_t part, uint64_t whole)
{
	return ((at_most(part, MOST) << L4S_SEEN_BITS) / (whole > 0 ? whole :
	    1));
}

/* For how long the link sends so many bytes, ns. */
static uint64_t
sending_ns(const struct l4s_core *c, uint64_t bytes)
{
	return (at_most(bytes, MOST_BYTES) * 8000000000 /
	    (c->rate_bps > 0 ? c->rate_bps : 1));
}

/* ln(number / unit), in 2^-20; 0 below the unit. */
static uint64_t
logarithm(uint64_t number, uint64_t unit)
{
	number = at_most(number, MOST);
	if (number <= unit)
		return (0);
	return (((l4s_log2(number) - l4s_log2(unit)) * PER_LN) >> 31);
}

static void
observe_queue(struct l4s_core *c, int index, uint64_t elapsed_ns,
    uint64_t *raw)
{
	const struct l4s_queue *q = &c->q[index];
	struct l4s_look *look = &c->tick.look[index];
	uint64_t unit_ns = l4s_reference_ns[index];
	uint64_t packets = grown(&look->packets, q->total_packets);
	uint64_t left = grown(&look->left, q->left);
	uint64_t left_ns = grown(&look->left_ns, q->left_ns);

	raw += index;
	raw[0] = at_most(ratio(left > 0 ? left_ns / left : 0, unit_ns),
	    100 * UNIT);
	raw[2] = at_most(ratio(sending_ns(c, q->bytes), unit_ns), 100 * UNIT);
	raw[4] = at_most(ratio(sending_ns(c, grown(&look->bytes,
	    q->total_bytes)), elapsed_ns), 100 * UNIT);
	raw[6] = at_most(ratio(grown(&look->marks, q->marks), packets), UNIT);
	raw[8] = at_most(ratio(grown(&look->drops, q->drops), packets), UNIT);
}

/* Moving averages, and what else is seen. */
static void
observe_more(struct l4s_core *c, uint64_t elapsed_ns, uint64_t now_ns,
    uint64_t raw[L4S_SEEN_MOST])
{
	uint64_t *told = raw + PLAIN;

	for (unsigned w = 0; w < 2; w++) {
		/* 1 - exp(-elapsed / constant), 2^-24 */
		uint64_t share = at_most((elapsed_ns << 16) / constant_ns[w],
		    16 << 16);
		int64_t weight = (1 << 24) - (int64_t)(l4s_power(
		    -(int64_t)((share * PER_LOG) >> 31)) >> 7);

		for (unsigned i = 0; i < L4S_MOVING; i++) {
			int64_t *held = &c->tick.moving[w][i];

			*held += (((int64_t)(raw[averaged[i]] << 8) - *held) *
			    weight) >> 24;
			*told++ = (uint64_t)*held >> 8;
		}
	}
	for (int i = 0; i < 2; i++)
		*told++ = logarithm(1 + (uint64_t)l4s_flows(c, i, now_ns), 1);
	*told = at_most(logarithm(c->rate_bps, LEAST_BPS), 16 * UNIT);
}

static void
observe(struct l4s_core *c, uint64_t now_ns, uint64_t raw[L4S_SEEN_MOST])
{
	/* An instance that slept has seen nothing for long: some is enough. */
	uint64_t elapsed_ns = at_most(grown(&c->tick.at_ns, now_ns), MOST);
	uint64_t served;

	if (elapsed_ns == 0)
		elapsed_ns = 1;
	for (int i = 0; i < 2; i++)
		observe_queue(c, i, elapsed_ns, raw);
	served = grown(&c->tick.served_bytes, c->totals.served_bytes);
	raw[10] = at_most(ratio(sending_ns(c, served), elapsed_ns), 10 * UNIT);
	raw[11] = l4s_probability(c) >> (31 - L4S_SEEN_BITS);
	if (c->model->features > PLAIN)
		observe_more(c, elapsed_ns, now_ns, raw);
}

/* What the model wants, within the operator's bounds. */
static void
set(struct l4s_core *c, uint32_t out[L4S_OUTPUTS], uint64_t now_ns)
{
	uint32_t lifetime_ms = LIVES * c->model->interval_us / 1000;
	uint32_t low, high;

	if (c->model->form == L4S_FORM_PROBABILITY) {
		out[0] = (uint32_t)at_most(out[0], c->own.prob_c_high << 15);
		out[1] = (uint32_t)at_most(out[1], c->own.prob_l_high << 15);
		if (l4s_set_prob(c, out, lifetime_ms, now_ns))
			c->tick.sets = true;
		return;
	}
	for (unsigned i = 0; i < L4S_FACTORS; i++) {
		l4s_law_range(&c->own, i, &low, &high);
		out[i] = out[i] < low ? low : out[i] > high ? high : out[i];
	}
	if (l4s_set_law(c, out, lifetime_ms, now_ns))
		c->tick.sets = true;
}

/* A model begins to look: all counters are those of now. */
void
l4s_tick_start(struct l4s_core *c, uint64_t now_ns)
{
	uint64_t raw[L4S_SEEN_MOST];

	__builtin_memset(&c->tick, 0, sizeof(c->tick));
	c->tick.due_ns = L4S_NEVER;
	if (c->model == 0 || c->model->form == L4S_FORM_PACKET)
		return;
	observe(c, now_ns, raw);
	__builtin_memset(c->tick.moving, 0, sizeof(c->tick.moving));
	c->tick.due_ns = now_ns + c->model->interval_us * 1000ULL;
}

/*
 * The end of an interval. What a controller has set stays. Without a rate
 * nothing can be observed, and what was set ends by itself.
 */
void
l4s_tick(struct l4s_core *c, uint64_t now_ns)
{
	uint64_t step_ns = c->model->interval_us * 1000ULL;
	uint64_t raw[L4S_SEEN_MOST];
	uint32_t out[L4S_OUTPUTS];

	c->tick.due_ns = c->tick.due_ns + step_ns > now_ns ?
	    c->tick.due_ns + step_ns : now_ns + step_ns;
	if (c->rate_bps == 0)
		return;
	observe(c, now_ns, raw);
	l4s_model_outputs(c->model, &c->tick.memory, raw, out);
	if (c->law_until_ns == L4S_NEVER || c->tick.sets)
		set(c, out, now_ns);
}
