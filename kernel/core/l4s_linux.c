/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * DualPI2 as Linux's sch_dualpi2 decides: 32-bit probabilities, random draws,
 * decisions at departure, credits of whole frames. What of the qdisc is left
 * out, l4s_gym/sim/dualpi2_linux.py says.
 */
#include "l4s_internal.h"

#define CERTAIN UINT32_MAX	/* probability 1 */
#define LINK_HEADER 14		/* bytes of a frame around the IP packet */
#define LEAST ((uint64_t)2 * L4S_QUANTUM)	/* bytes: p' spares less */

/* One step of the PI controller; what does not fit wraps, as there. */
void
l4s_linux_update(struct l4s_core *c, uint64_t current_ns)
{
	uint32_t old = (uint32_t)c->prob, prob;
	uint64_t delta;

	delta = (current_ns - c->p.target_us * 1000) * c->p.pi2_alpha +
	    (current_ns - c->qdelay_old_ns) * c->p.pi2_beta;
	if ((int64_t)delta > 0) {
		prob = (uint32_t)(old + (delta >> 6));
		if (prob < old)
			prob = CERTAIN;
	} else {
		prob = (uint32_t)(old - (-delta >> 6));
		if (prob > old)
			prob = 0;
	}
	if (!c->p.drop_on_overload && prob > CERTAIN / c->p.coupling_factor)
		prob = (uint32_t)(CERTAIN / c->p.coupling_factor);
	c->prob = prob;
	c->qdelay_old_ns = current_ns;
}

static uint8_t
mark_or_drop(uint8_t ecn)
{
	return (ecn == L4S_NOT_ECT ? L4S_DROP : L4S_MARK);
}

/* By the probability p', which both queues share. */
static uint8_t
decide_by_prob(struct l4s_core *c, const struct l4s_packet *packet)
{
	uint64_t coupled = c->prob * c->p.coupling_factor;
	uint64_t first = l4s_random32(c), second = l4s_random32(c);
	bool overload = coupled > CERTAIN;
	bool squared = first <= c->prob && second <= c->prob;

	if (packet->queue == L4S_CLASSIC) {
		if (!squared)
			return (L4S_ENQUEUE);
		return (overload ? L4S_DROP : mark_or_drop(packet->ecn));
	}
	if (!overload)
		return (first <= coupled ? mark_or_drop(packet->ecn) :
		    L4S_ENQUEUE);
	if (squared && c->p.drop_on_overload)
		return (L4S_DROP);
	return (packet->ecn == L4S_NOT_ECT ? L4S_ENQUEUE : L4S_MARK);
}

/* The decision for a packet that has just left its queue. */
uint8_t
l4s_linux_decide(struct l4s_core *c, const struct l4s_packet *packet)
{
	const struct l4s_queue *q = &c->q[packet->queue];
	uint64_t packets = c->q[0].packets + c->q[1].packets;
	uint64_t bytes = c->q[0].bytes + c->q[1].bytes + LINK_HEADER * packets;
	uint8_t decision = L4S_ENQUEUE;

	if (bytes >= LEAST)
		decision = decide_by_prob(c, packet);
	if (packet->queue == L4S_CLASSIC || decision == L4S_DROP ||
	    !packet->step_ok)
		return (decision);
	if (c->p.step_packets > 0 ? q->packets > c->p.step_packets :
	    q->delay_ns > c->p.step_ns)
		decision = mark_or_drop(packet->ecn);
	return (decision);
}

/* Credit when both queues have been empty. */
int64_t
l4s_linux_credit(const struct l4s_core *c)
{
	return (L4S_QUANTUM * (2 * (int64_t)c->p.classic_protection - 100));
}

/* Weighted round robin: L where C is empty or without credit. */
int
l4s_linux_pick(struct l4s_core *c)
{
	if (c->q[1].packets > 0 && (c->q[0].packets == 0 || c->credit <= 0))
		return (1);
	if (c->q[0].packets > 0)
		return (0);
	c->credit = l4s_linux_credit(c);
	return (-1);
}

/* Charge the round robin; the credit moves only while the other one waits. */
void
l4s_linux_charge(struct l4s_core *c, int index, uint32_t length)
{
	int64_t weight = (int64_t)c->p.classic_protection;
	int64_t frame = (int64_t)length + LINK_HEADER;

	if (c->q[1 - index].packets > 0)
		c->credit += (index == 1 ? weight : weight - 100) * frame;
}
