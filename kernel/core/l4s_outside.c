/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Decisions from outside: a controller's, taken if they are fresh, by the
 * probabilities that it has set, or those of a loaded model; and the shield,
 * which hands a queue back to the native law.
 */
#include "l4s_internal.h"

#define NONE (-1)

/* -- who may decide, and within which bounds */

struct l4s_bounds
l4s_bounds_of(const struct l4s_params *p)
{
	struct l4s_bounds bounds;

#define L4S_BOUND(name) bounds.name = p->shield_##name;
	L4S_SHIELD(L4S_BOUND)
#undef L4S_BOUND
	return (bounds);
}

/* The bounds in force, after the operator's or the controller's changed. */
void
l4s_set_bounds(struct l4s_core *c)
{
	c->bounds = l4s_bounds_of(&c->p);
	if (c->tightened)
		c->bounds = l4s_tighter(c->bounds, &c->wanted);
}

void
l4s_tighten(struct l4s_core *c, const struct l4s_bounds *wanted)
{
	c->wanted = *wanted;
	c->tightened = true;
	l4s_set_bounds(c);
}

void
l4s_attach(struct l4s_core *c, uint64_t interval)
{
	l4s_detach(c);
	c->interval = interval;
	c->until_ask = 1;
	__builtin_memset(c->latency, 0, sizeof(c->latency));
}

static bool
undisturbed(const struct l4s_queue *q)
{
	return (q->window_decisions == 0 && q->before_decisions == 0);
}

/*
 * The law goes on learning while somebody else decides, and then learns from
 * delays that it did not make: its integral winds up. So it gets its queue back
 * with the probability that it had before, where that is the lower one.
 */
static void
remember(struct l4s_core *c, struct l4s_queue *q)
{
	if (undisturbed(q))
		q->calm_prob = q->prob;
	if (undisturbed(&c->q[0]) && undisturbed(&c->q[1]))
		c->calm_prob = c->prob;
}

static void
hand_back(struct l4s_core *c, struct l4s_queue *q)
{
	/* Where most packets were its own to decide, it knows best. */
	if (2 * (q->window_decisions + q->before_decisions) >
	    q->window_packets +
	    (q->before_decisions > 0 ? c->bounds.window : 0)) {
		if (q->calm_prob < q->prob)
			q->prob = q->calm_prob;
		if (c->calm_prob < c->prob)
			c->prob = c->calm_prob;
	}
	q->window_decisions = q->before_decisions = 0;
}

/* What may still be dropped stays: nobody gains by coming again. */
void
l4s_hand_back(struct l4s_core *c)
{
	for (int i = 0; i < 2; i++)
		hand_back(c, &c->q[i]);
}

void
l4s_detach(struct l4s_core *c)
{
	if (c->interval > 0)
		l4s_hand_back(c);
	for (int i = 0; i < 2; i++) {
		struct l4s_queue *q = &c->q[i];

		/* The next one is held for as long as the operator says. */
		if (q->held_until_ns != 0)
			q->held_until_ns = q->tripped_ns +
			    c->p.shield_hold_us * 1000;
		q->used = q->given;
		q->waits = 0;
		/* What was asked before is nobody's to answer any more. */
		q->answered = q->asked;
	}
	c->interval = 0;
	c->tightened = false;
	l4s_end_law(c);
	l4s_set_bounds(c);
}

static void
note_latency(struct l4s_core *c, const struct l4s_decision *d, uint64_t now_ns)
{
	uint64_t slot = d->sequence % L4S_ASKS, asked_ns = c->asked_ns[slot];
	uint64_t us, bin;
	unsigned shift = 0;

	if (c->asked[slot] != d->sequence + 1)
		return;
	/* It may have waited to be read; a time that cannot be is not believed. */
	if (d->given_ns >= asked_ns && d->given_ns < now_ns)
		now_ns = d->given_ns;
	us = (now_ns - asked_ns) / 1000;
	while ((us >> shift) >= 16)
		shift++;
	bin = 8 * (uint64_t)shift + (us >> shift);
	c->latency[bin < L4S_LATENCY_BINS ? bin : L4S_LATENCY_BINS - 1]++;
}

uint64_t
l4s_latency_us(const struct l4s_core *c, uint64_t per_mille)
{
	uint64_t all = 0, seen = 0;

	for (int i = 0; i < L4S_LATENCY_BINS; i++)
		all += c->latency[i];
	for (unsigned i = 0; i < L4S_LATENCY_BINS; i++) {
		unsigned shift = i < 16 ? 0 : i / 8 - 1;

		seen += c->latency[i];
		if (seen > 0 && seen * 1000 >= all * per_mille)
			return ((uint64_t)(i - 8 * shift) << shift);
	}
	return (0);
}

static enum l4s_refusal
judge(const struct l4s_core *c, const struct l4s_decision *d, uint64_t now_ns)
{
	const struct l4s_queue *q;

	if (c->interval == 0)
		return (L4S_DETACHED);
	if (d->queue > L4S_L4S || d->action > L4S_MARK)
		return (L4S_MALFORMED);
	q = &c->q[d->queue];
	if (d->sequence >= q->asked)
		return (L4S_UNASKED);
	if (d->sequence < q->answered)
		return (L4S_OUT_OF_ORDER);
	if (d->expires_ns <= now_ns)
		return (L4S_EXPIRED);
	if (q->held_until_ns != 0)
		return (L4S_SHIELDED);
	return (L4S_ACCEPTED);
}

enum l4s_refusal
l4s_decide(struct l4s_core *c, const struct l4s_decision *d, uint64_t now_ns)
{
	enum l4s_refusal refusal = judge(c, d, now_ns);
	uint64_t latest = now_ns + c->p.lifetime_us * 1000;
	struct l4s_queue *q;

	c->refused[refusal]++;
	if (refusal != L4S_ACCEPTED)
		return (refusal);
	q = &c->q[d->queue];
	if ((uint8_t)(q->given - q->used) == L4S_ANSWERS)
		q->used++;
	q->answer[q->given++ % L4S_ANSWERS] = (struct l4s_answer){
	    .expires_ns = d->expires_ns < latest ? d->expires_ns : latest,
	    .action = d->action };
	q->answered = d->sequence + 1;
	q->waits = 0;
	note_latency(c, d, now_ns);
	return (L4S_ACCEPTED);
}

static void
trip(struct l4s_core *c, struct l4s_queue *q, uint8_t kind, uint64_t value,
    uint64_t now_ns)
{
	uint8_t index = q == &c->q[1];

	q->tripped_ns = now_ns;
	q->held_until_ns = now_ns + c->bounds.hold_us * 1000;
	q->used = q->given;
	q->trips++;
	hand_back(c, q);
	q->window_packets = q->window_drops = 0;
	c->event[index] = (struct l4s_event){ .time_ns = now_ns,
	    .value = value, .kind = kind, .queue = index };
}

/* One more packet of the shield's window, whoever decides about it. */
static void
count_packet(struct l4s_core *c, struct l4s_queue *q)
{
	if (++q->window_packets <= c->bounds.window)
		return;
	q->window_packets = 1;
	q->before_decisions = q->window_decisions;
	q->window_drops = q->window_decisions = 0;
}

/* For how long the oldest packet of a queue has waited. */
static uint64_t
age_ns(const struct l4s_core *c, const struct l4s_queue *q, uint64_t now_ns)
{
	return (q->packets == 0 ? 0 :
	    l4s_clock(c, now_ns) - q->head->enqueued_ns);
}

/* Whether the queue is out of reach from outside, because of the shield. */
static bool
shielded(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	uint64_t limit_us, delay_ns = age_ns(c, q, now_ns);
	uint8_t index = q == &c->q[1];

	if (q->held_until_ns != 0) {
		if (now_ns < q->held_until_ns)
			return (true);
		q->held_until_ns = 0;
		c->event[index] = (struct l4s_event){ .time_ns = now_ns,
		    .kind = L4S_EVENT_SHIELD_RELEASE, .queue = index };
	}
	remember(c, q);
	/* Where the native law alone has decided, the delay is its own. */
	if (undisturbed(q))
		return (false);
	if (q->packets > 0 && q->delay_ns > delay_ns)
		delay_ns = q->delay_ns;
	limit_us = index == L4S_L4S ? c->bounds.l_us : c->bounds.c_us;
	if (limit_us == 0 || delay_ns <= limit_us * 1000)
		return (false);
	trip(c, q, L4S_EVENT_SHIELD_DELAY, delay_ns / 1000, now_ns);
	return (true);
}

/* How likely the law's step or ramp is to hit a packet of L, 2^-32. */
static uint64_t
step(const struct l4s_core *c, uint64_t delay_ns)
{
	const struct l4s_params *p = &c->p;

	switch (p->variant) {
	case L4S_TESTBED:
		return ((p->quirks & L4S_NO_L4S_STEP) == 0 &&
		    delay_ns > p->step_ns ? L4S_ONE : 0);
	case L4S_LINUX:
		return ((p->step_packets > 0 ?
		    c->q[1].packets > p->step_packets :
		    delay_ns > p->step_ns) ? L4S_ONE : 0);
	default:
		return (c->q[1].packets > p->th_len ?
		    l4s_rfc9332_ramp(p, delay_ns) : 0);
	}
}

/* How likely the native law is to mark or drop a packet that comes now. */
static uint64_t
likelihood(const struct l4s_core *c, int index, uint64_t now_ns)
{
	const struct l4s_params *p = &c->p;
	bool testbed = p->variant == L4S_TESTBED;
	uint64_t prob = testbed ? c->q[index].prob << 1 : c->prob, steps;

	if (index == L4S_CLASSIC)
		return (l4s_square(prob));
	if (p->variant == L4S_LINUX)
		prob *= p->coupling_factor;
	else if (!testbed)
		prob = (prob * p->coupling) >> 8;
	else if ((p->quirks & L4S_DEAD_COUPLING) == 0 &&
	    prob < c->q[0].prob << 2)
		prob = c->q[0].prob << 2;
	steps = step(c, age_ns(c, &c->q[1], now_ns));
	if (steps > prob)
		prob = steps;
	return (prob < L4S_ONE ? prob : L4S_ONE);
}

static void
earn(const struct l4s_core *c, uint64_t *credit, uint64_t likely)
{
	*credit += (likely * c->bounds.hits) >> 8;
	if (*credit > L4S_MOST_CREDIT)
		*credit = L4S_MOST_CREDIT;
}

/*
 * Each packet lets an agent mark or drop as much more as the native law would
 * at this moment, times `hits`. The law's integral answers to what the agent
 * does: where that leaves the link idle, the law would hit less, and so can the
 * agent. It drops no more often than the law would in C, from L too.
 */
static void
earn_hits(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	uint64_t in_c = likelihood(c, L4S_CLASSIC, now_ns);

	earn(c, &q->drop_credit, in_c);
	earn(c, &q->hit_credit, q == &c->q[L4S_L4S] ?
	    likelihood(c, L4S_L4S, now_ns) : in_c);
}

/* Whether the shield lets one more mark or drop of an agent pass. */
static bool
may_hit(struct l4s_core *c, struct l4s_queue *q, bool drops)
{
	if (c->bounds.hits == 0)
		return (true);
	if (q->hit_credit < L4S_ONE || (drops && q->drop_credit < L4S_ONE)) {
		c->refused[L4S_SHIELDED]++;
		return (false);
	}
	q->hit_credit -= L4S_ONE;
	if (drops)
		q->drop_credit -= L4S_ONE;
	return (true);
}

/* Whether the shield lets one more drop of an agent pass. */
static bool
may_drop(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	uint64_t drops = q->window_drops + 1;

	/* As L is decided as it leaves, more may go than come in a window. */
	if (c->bounds.drops >= 65536 ||
	    drops * 65536 <= c->bounds.drops * c->bounds.window) {
		q->window_drops = drops;
		return (true);
	}
	trip(c, q, L4S_EVENT_SHIELD_DROPS, drops, now_ns);
	return (false);
}

void
l4s_set_model(struct l4s_core *c, const struct l4s_model *model,
    uint64_t now_ns)
{
	if (c->tick.sets)
		l4s_end_law(c);
	c->model = model;
	l4s_tick_start(c, now_ns);
}

/* Whether a model decides each packet. */
static bool
by_model(const struct l4s_core *c)
{
	return (c->model != 0 && c->model->form == L4S_FORM_PACKET);
}

static int
ask_model(struct l4s_core *c, const struct l4s_record *row)
{
	const uint64_t raw[L4S_FEATURES] = { row->queue_type,
	    row->burst_allowance, row->drop_probability,
	    row->current_queue_delay, row->accumulated_probability_before,
	    row->length_in_bytes, row->interval_drops, row->packet_length };
	uint32_t out[L4S_OUTPUTS];
	uint64_t number;

	l4s_model_outputs(c->model, 0, raw, out);
	number = l4s_random31(c);
	if (number < out[0])
		return (L4S_DROP);
	return (number < (uint64_t)out[0] + out[1] ? L4S_MARK : L4S_ENQUEUE);
}

/* The controller's oldest decision for a packet, if there is a fresh one. */
static int
take_answer(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	while (q->used != q->given) {
		const struct l4s_answer *answer =
		    &q->answer[q->used++ % L4S_ANSWERS];

		if (now_ns < answer->expires_ns)
			return (answer->action);
		c->refused[L4S_EXPIRED]++;
	}
	return (NONE);
}

/* Whether the packet is asked about; the one before may have gone unanswered. */
static bool
ask(struct l4s_core *c, struct l4s_queue *q, struct l4s_packet *packet,
    uint64_t now_ns)
{
	uint64_t sequence = packet->row.sequence;
	bool missed;

	if (c->interval == 0 || --c->until_ask > 0)
		return (false);
	c->until_ask = c->interval;
	missed = q->waits;
	packet->asks = 1;
	q->waits = 1;
	q->asked = sequence + 1;
	c->asked[sequence % L4S_ASKS] = sequence + 1;
	c->asked_ns[sequence % L4S_ASKS] = now_ns;
	return (missed);
}

/* By a set probability: C as it arrives, L as it leaves. */
static int
draw(struct l4s_core *c, struct l4s_packet *packet)
{
	uint64_t p_c = c->set_prob[L4S_CLASSIC];

	packet->later = packet->queue == L4S_L4S;
	if (packet->later || l4s_random32(c) >= p_c)
		return (L4S_ENQUEUE);
	return (packet->ecn == L4S_NOT_ECT || p_c >= L4S_OVERLOAD ? L4S_DROP :
	    L4S_MARK);
}

/* How likely L's own ramp or step is to mark a packet that has left, 2^-32. */
static uint64_t
own_mark(const struct l4s_core *c, const struct l4s_packet *packet)
{
	const struct l4s_queue *q = &c->q[L4S_L4S];

	if (c->p.variant == L4S_LINUX)
		return (packet->step_ok ? step(c, q->delay_ns) : 0);
	/* The packet itself still counts as queued. */
	return (q->packets + 1 > c->p.th_len ?
	    l4s_rfc9332_ramp(&c->p, q->delay_ns) : 0);
}

/*
 * The action for a packet of L that has left its queue, or -1: not by a set
 * probability, or no more. Marks of L's own ramp or step are not the agent's.
 */
int
l4s_outside_leaving(struct l4s_core *c, struct l4s_packet *packet,
    uint64_t now_ns)
{
	struct l4s_queue *q = &c->q[packet->queue];
	uint64_t p_c = c->set_prob[L4S_CLASSIC], number;
	bool drops = false;

	if (!packet->later)
		return (NONE);
	if (c->by_prob && q->held_until_ns == 0) {
		number = l4s_random32(c);
		if (p_c >= L4S_OVERLOAD)
			drops = number < p_c;
		else if (number < own_mark(c, packet))
			return (L4S_MARK);
		else if (number >= c->set_prob[L4S_L4S])
			return (L4S_ENQUEUE);
		if (may_hit(c, q, drops) && (!drops || may_drop(c, q, now_ns)))
			return (drops ? L4S_DROP : L4S_MARK);
	}
	packet->row.decided_by = L4S_BY_FALLBACK;
	q->decided[L4S_BY_AGENT]--;
	q->decided[L4S_BY_FALLBACK]++;
	return (NONE);
}

/* The action from outside, or -1; packet->row.decided_by says who decides. */
int
l4s_outside(struct l4s_core *c, struct l4s_packet *packet, uint64_t now_ns)
{
	struct l4s_queue *q = &c->q[packet->queue];
	bool missed = ask(c, q, packet, now_ns), wanted, drops;
	int action = NONE;

	count_packet(c, q);
	earn_hits(c, q, now_ns);
	if (c->interval == 0 && !by_model(c) && !c->by_prob) {
		if (q->held_until_ns != 0)
			(void)shielded(c, q, now_ns);
		return (NONE);
	}
	if (!shielded(c, q, now_ns)) {
		action = take_answer(c, q, now_ns);
		if (action == NONE && c->by_prob)
			action = draw(c, packet);
		else if (action == NONE && by_model(c))
			action = ask_model(c, &packet->row);
	}
	wanted = action != NONE;
	drops = action == L4S_DROP ||
	    (action == L4S_MARK && packet->ecn == L4S_NOT_ECT);
	if (((drops || action == L4S_MARK) && !may_hit(c, q, drops)) ||
	    (drops && !may_drop(c, q, now_ns)))
		action = NONE;
	if (action != NONE) {
		q->window_decisions++;
		packet->row.decided_by = L4S_BY_AGENT;
	} else if (missed || wanted || ((by_model(c) || c->by_prob) &&
	    q->held_until_ns != 0)) {
		packet->row.decided_by = L4S_BY_FALLBACK;
	}
	return (action);
}
