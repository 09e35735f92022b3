/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The law of the testbed's FreeBSD kernel: PIE's arithmetic for each of two
 * queues, decisions at enqueue, deficit round robin (L : C = 2 : 1, or else).
 * Sources: dn_sched_l4s.c and dn_sched_dualpi2.c of the L4S-LLM work, and
 * FreeBSD's dn_aqm_pie.h, read for their arithmetic.
 */
#include "l4s_internal.h"

#define DERANDOMISE_LOW 1825361099	/* 0.85 of L4S_MAX_PROB */
#define DERANDOMISE_HIGH 18253610999	/* 8.5 of it */
#define ONE_THIRD (10240 / 2 / 3)
#define STEP_FACTOR (((uint64_t)L4S_MAX_PROB << 12) / 1000000)
#define SMALL_QUEUE 1600		/* bytes */

static bool
has(const struct l4s_core *c, uint64_t quirk)
{
	return ((c->p.quirks & quirk) != 0);
}

static unsigned
autotune(uint64_t prob)
{
	if (prob < L4S_MAX_PROB / 1000000)
		return (11);
	if (prob < L4S_MAX_PROB / 100000)
		return (9);
	if (prob < L4S_MAX_PROB / 10000)
		return (7);
	if (prob < L4S_MAX_PROB / 1000)
		return (5);
	if (prob < L4S_MAX_PROB / 100)
		return (3);
	if (prob < L4S_MAX_PROB / 10)
		return (1);
	return (0);
}

/* One update of a probability; delays in us. */
static uint64_t
new_probability(const struct l4s_core *c, uint64_t prob, uint64_t current,
    uint64_t previous)
{
	unsigned shift = 25 + (has(c, L4S_AUTOTUNE) ? autotune(prob) : 0);
	uint64_t step;
	bool negative;

	/* Unsigned: what does not fit wraps, as it does in the simulator. */
	step = c->p.alpha * (current - c->p.target_us) +
	    c->p.beta * (current - previous);
	negative = (int64_t)step < 0;
	if (negative)
		step = -step;
	step = (uint64_t)((int64_t)(step * STEP_FACTOR) >> shift);
	if (negative) {
		if ((int64_t)(prob - step) < 0)
			return (0);
		prob -= step;
	} else {
		if (has(c, L4S_CAPDROP) && prob >= L4S_MAX_PROB / 10 &&
		    (int64_t)step > L4S_MAX_PROB / 50)
			step = L4S_MAX_PROB / 50;
		if ((int64_t)(prob + step) < 0)
			return (0);
		prob += step;
	}
	if (has(c, L4S_IDLE_DECAY) && current == 0 && previous == 0)
		prob -= prob >> 6;
	return (prob < L4S_MAX_PROB ? prob : L4S_MAX_PROB);
}

/* The update of one queue, every tupdate while its controller is active. */
void
l4s_testbed_update(struct l4s_core *c, struct l4s_queue *q)
{
	uint64_t current;

	if (q->bytes == 0)
		q->qdelay_us = 0;
	current = q->qdelay_us;
	if (!has(c, L4S_PER_QUEUE_CONTROL))
		current = c->q[0].qdelay_us > c->q[1].qdelay_us ?
		    c->q[0].qdelay_us : c->q[1].qdelay_us;
	q->prob = new_probability(c, q->prob, current, q->qdelay_old_us);
	q->qdelay_old_us = current;
	q->interval_drops = 0;
	q->burst_us = q->burst_us > c->p.tupdate_us ?
	    q->burst_us - c->p.tupdate_us : 0;
}

/* The packet's step of the accumulated probability; whether it can be hit. */
bool
l4s_testbed_step(const struct l4s_core *c, struct l4s_queue *q)
{
	/* The guard looks at the last update's delay, as the kernel does. */
	if (has(c, L4S_SMALL_QUEUE_GUARD) &&
	    ((q->qdelay_old_us < c->p.target_us / 2 &&
	    q->prob < L4S_MAX_PROB / 5) || q->bytes <= SMALL_QUEUE))
		return (false);
	q->accu = q->prob == 0 ? 0 : q->accu + q->prob;
	return (true);
}

static bool
draw(const struct l4s_core *c, struct l4s_queue *q, bool is_l4s,
    uint64_t random_1, uint64_t random_2)
{
	uint64_t local = q->prob;
	bool hit;

	if (has(c, L4S_DERANDOMISE)) {
		if (q->accu < DERANDOMISE_LOW)
			return (false);
		if (q->accu >= DERANDOMISE_HIGH) {
			if (!has(c, L4S_ACCU_KEPT))
				q->accu = 0;
			return (true);
		}
	}
	if (is_l4s && !has(c, L4S_DEAD_COUPLING) && local < 2 * c->q[0].prob)
		local = 2 * c->q[0].prob;
	if (is_l4s && local <= L4S_MAX_PROB)
		hit = random_1 < local;
	else
		hit = random_1 < q->prob && random_2 < q->prob;
	if (hit)
		q->accu = 0;
	return (hit);
}

/* The law's own decision at enqueue: what is logged, and what is done. */
void
l4s_testbed_decide(struct l4s_core *c, struct l4s_queue *q,
    const struct l4s_packet *packet, uint8_t *logged, uint8_t *applied)
{
	bool is_l4s = packet->queue == L4S_L4S, may_mark;
	uint64_t random_1, random_2;

	*logged = *applied = L4S_ENQUEUE;
	if (is_l4s && !has(c, L4S_NO_L4S_STEP) && q->packets >= 1 &&
	    q->qdelay_us * 1000 > c->p.step_ns) {
		*logged = *applied = L4S_MARK;
		return;
	}
	if (!l4s_testbed_step(c, q))
		return;
	/* Both are always drawn: the generator must not depend on the outcome. */
	random_1 = l4s_random31(c);
	random_2 = l4s_random31(c);
	if (!draw(c, q, is_l4s, random_1, random_2))
		return;
	*logged = L4S_DROP;
	if (!q->active || (q->burst_us > 0 && has(c, L4S_BURST_ALLOWANCE)))
		return;
	if (has(c, L4S_ECN_DROP_THRESHOLD))
		may_mark = q->prob < c->p.max_ecn_threshold << 18;
	else
		may_mark = is_l4s || q->prob <= L4S_MAX_PROB >> 1;
	if (packet->ecn != L4S_NOT_ECT && may_mark)
		*logged = L4S_MARK;
	*applied = *logged;
}

/* What follows a decision and its row: activation, burst allowance. */
void
l4s_testbed_after(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns,
    uint8_t applied)
{
	uint64_t half = c->p.target_us / 2;

	if (applied == L4S_DROP)
		q->accu = 0;
	if (!q->active && (q->bytes >= ONE_THIRD || !q->listed)) {
		q->active = 1;
		q->update_at = now_ns + c->p.tupdate_us * 1000;
		if (has(c, L4S_RESTART_ON_DRAIN) || q->total_packets == 0) {
			q->prob = 0;
			q->qdelay_old_us = 0;
			q->accu = 0;
			q->burst_us = c->p.max_burst_us;
			q->measurement_start_us = l4s_clock(c, now_ns) / 1000;
		}
	}
	if (q->prob == 0 && q->qdelay_us < half && q->qdelay_old_us < half)
		q->burst_us = c->p.max_burst_us;
}

static void
append(int8_t list[2], int index)
{
	list[list[0] < 0 ? 0 : 1] = (int8_t)index;
}

static void
remove_first(int8_t list[2])
{
	list[0] = list[1];
	list[1] = -1;
}

/* A packet has joined a queue that the scheduler had forgotten. */
void
l4s_testbed_enlist(struct l4s_core *c, struct l4s_queue *q)
{
	q->listed = 1;
	if (has(c, L4S_DRR)) {
		q->deficit = L4S_QUANTUM;
		append(c->fresh, q == &c->q[1]);
	}
}

static int
pick_by_deficit(struct l4s_core *c)
{
	for (;;) {
		bool from_fresh = c->fresh[0] >= 0;
		int index = from_fresh ? c->fresh[0] : c->old[0];
		struct l4s_queue *q;

		if (index < 0)
			return (-1);
		q = &c->q[index];
		if (q->deficit >= 0 && q->packets > 0)
			return (index);
		remove_first(from_fresh ? c->fresh : c->old);
		if (q->deficit < 0) {
			q->deficit += L4S_QUANTUM *
			    (index == L4S_L4S ? (int64_t)c->p.drr_weight : 1);
			append(c->old, index);
		} else if (from_fresh) {
			append(c->old, index);
		} else {
			q->listed = 0;
			q->active = 0;
		}
	}
}

/* The queue to serve, or -1; a controller whose queue is found empty stops. */
int
l4s_testbed_pick(struct l4s_core *c, uint64_t now_ns)
{
	int index;

	if (has(c, L4S_DRR)) {
		index = pick_by_deficit(c);
	} else {
		index = l4s_rfc9332_pick(c, now_ns);
		for (int i = 0; i < 2; i++)
			if (c->q[i].packets == 0 && c->q[i].listed)
				c->q[i].listed = c->q[i].active = 0;
	}
	for (int i = 0; i < 2; i++)
		if (!c->q[i].active)
			c->q[i].update_at = L4S_NEVER;
	return (index);
}
