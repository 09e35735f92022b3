/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * DualPI2 as RFC 9332 appendix A writes it, in fixed point: probabilities are
 * multiples of 2^-32, decisions fall at departure, hits are spread evenly.
 */
#include "l4s_internal.h"

#define LONGEST_NS 2147483647	/* a delay that is longer counts as this */

static int64_t
at_most(uint64_t delay_ns)
{
	return ((int64_t)(delay_ns < LONGEST_NS ? delay_ns : LONGEST_NS));
}

/* One step of the PI controller (figure 6); the larger of both delays. */
void
l4s_rfc9332_update(struct l4s_core *c, uint64_t current_ns)
{
	int64_t current = at_most(current_ns);
	int64_t previous = at_most(c->qdelay_old_ns);
	int64_t target = (int64_t)(c->p.target_us * 1000);
	int64_t prob;

	prob = (int64_t)c->prob +
	    (((int64_t)c->p.alpha_q * (current - target) +
	    (int64_t)c->p.beta_q * (current - previous)) >> 16);
	if (prob < 0)
		prob = 0;
	c->prob = (uint64_t)(prob < L4S_ONE ? prob : L4S_ONE);
	c->qdelay_old_ns = current_ns;
}

/* Evenly spread hits: the sum of the likelihoods, without its whole part. */
static bool
recur(uint64_t *count, uint64_t likelihood)
{
	*count += likelihood;
	if (*count <= L4S_ONE)
		return (false);
	*count -= L4S_ONE;
	return (true);
}

/* Native marking probability of L: a ramp over the packet's own delay. */
uint64_t
l4s_rfc9332_ramp(const struct l4s_params *p, uint64_t delay_ns)
{
	if (delay_ns <= p->min_th_ns)
		return (0);
	if (delay_ns >= p->min_th_ns + p->range_ns)
		return (L4S_ONE);
	return (((delay_ns - p->min_th_ns) << 32) / p->range_ns);
}

static uint8_t
decide_l4s(struct l4s_core *c, struct l4s_queue *q, uint8_t ecn)
{
	uint64_t coupled = (c->prob * c->p.coupling) >> 8, native = 0;
	bool hit;

	if (coupled < L4S_ONE) {
		/* The packet itself still counts as queued. */
		if (q->packets + 1 > c->p.th_len)
			native = l4s_rfc9332_ramp(&c->p, q->delay_ns);
		hit = recur(&q->accu, native > coupled ? native : coupled);
	} else {
		if (recur(&q->accu, l4s_square(c->prob)))
			return (L4S_DROP);
		hit = recur(&q->accu, L4S_ONE);
	}
	if (!hit)
		return (L4S_ENQUEUE);
	return (ecn != L4S_NOT_ECT ? L4S_MARK : L4S_DROP);
}

static uint8_t
decide_classic(struct l4s_core *c, struct l4s_queue *q, uint8_t ecn)
{
	uint64_t prob = l4s_square(c->prob);

	if (!recur(&q->accu, prob))
		return (L4S_ENQUEUE);
	return (ecn == L4S_NOT_ECT || prob >= c->p.p_c_max ? L4S_DROP :
	    L4S_MARK);
}

/* The decision for a packet that has just left its queue. */
uint8_t
l4s_rfc9332_decide(struct l4s_core *c, struct l4s_queue *q,
    const struct l4s_packet *packet)
{
	return (packet->queue == L4S_L4S ? decide_l4s(c, q, packet->ecn) :
	    decide_classic(c, q, packet->ecn));
}

static uint64_t
head_delay(const struct l4s_core *c, int index, uint64_t now_ns)
{
	return (now_ns - c->q[index].head->enqueued_ns);
}

/* Conditional priority: weighted round robin, or time-shifted FIFO. */
int
l4s_rfc9332_pick(const struct l4s_core *c, uint64_t now_ns)
{
	if (c->q[1].packets == 0)
		return (c->q[0].packets > 0 ? 0 : -1);
	if (c->q[0].packets == 0)
		return (1);
	if (c->p.shift_ns > 0)
		return (head_delay(c, 1, now_ns) + c->p.shift_ns >=
		    head_delay(c, 0, now_ns));
	return (c->credit <= 0);
}

/* Charge the round robin; the credit moves only while the other one waits. */
void
l4s_rfc9332_charge(struct l4s_core *c, int index, uint32_t length)
{
	int64_t weight = (int64_t)c->p.classic_weight;

	if (c->q[0].packets == 0 && c->q[1].packets == 0)
		c->credit = -(int64_t)L4S_QUANTUM * (65536 - 2 * weight);
	else if (c->q[1 - index].packets > 0)
		c->credit += index == 1 ? weight * length :
		    -(65536 - weight) * (int64_t)length;
}
