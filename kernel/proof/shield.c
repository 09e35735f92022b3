/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the shield promises, for a bounded model checker (CBMC): each function
 * below takes any state that the shield can be in, any parameters within their
 * ranges, any packet, any decision and any time, does one step, and asserts.
 * The states are not those of a run of some length: `sane` says which, every
 * step keeps it, and so what is asserted holds in runs of any length.
 *
 * QUEUE is the queue of the packet or the decision.
 *
 * `prove.sh` gives a copy of l4s_outside.c in which some functions have `real_`
 * before their names. In the places of likelihood(), earn(), may_drop() and
 * take_answer() are those below, which do anything that is proved of them apart; note_latency() only counts; a model may say anything; and the clock of a
 * law with ticks is any time since the oldest packet came. Functions of other
 * files are open: they return anything. Microseconds times 1000 are ns(), any
 * function, which spares the solver multipliers. Arrays that the shield does not read are
 * short in its copy of l4s_core.h.
 */
#include "l4s_internal.h"

uint64_t likelihood(const struct l4s_core *c, int index, uint64_t now_ns);
void note_latency(struct l4s_core *c, const struct l4s_decision *d,
    uint64_t now_ns);
static uint64_t ns(uint64_t us);
bool by_model(const struct l4s_core *c);
static uint64_t l4s_clock(const struct l4s_core *c, uint64_t now_ns);
static int ask_model(struct l4s_core *c, const struct l4s_record *row);
static int take_answer(struct l4s_core *c, struct l4s_queue *q,
    uint64_t now_ns);
static void earn(const struct l4s_core *c, uint64_t *credit, uint64_t likely);
static bool may_drop(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns);

#include "l4s_outside.c"

#define LATEST_NS (UINT64_C(1) << 62)	/* 146 years after the clock's start */

struct l4s_core core;
struct l4s_packet packet, queued[2];
uint64_t any_u64(void);
uint8_t any_u8(void);
struct l4s_core any_core(void);
struct l4s_packet any_packet(void);
struct l4s_bounds any_bounds(void);
bool any_bool(void);
bool passed;	/* may_drop() has let a drop pass */
uint64_t clock_ns;

static uint64_t
l4s_clock(const struct l4s_core *c, uint64_t now_ns)
{
	(void)c;
	(void)now_ns;
	return (clock_ns);
}

static void
earn(const struct l4s_core *c, uint64_t *credit, uint64_t likely)
{
	uint64_t more = any_u64();

	(void)c;
	(void)likely;
	__CPROVER_assume(more >= *credit && more <= L4S_MOST_CREDIT);
	*credit = more;
}

uint64_t __CPROVER_uninterpreted_ns(uint64_t us);

static uint64_t
ns(uint64_t us)
{
	uint64_t found = __CPROVER_uninterpreted_ns(us);

	__CPROVER_assume(found <= UINT64_C(60000000000000));
	return (found);
}

static int
ask_model(struct l4s_core *c, const struct l4s_record *row)
{
	uint8_t action = any_u8();

	(void)c;
	(void)row;
	__CPROVER_assume(action <= L4S_MARK);
	return (action);
}

static int
take_answer(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	uint8_t waited = q->given - q->used, waits = any_u8(), action = any_u8();

	(void)c;
	(void)now_ns;
	__CPROVER_assume(waits <= waited && action <= L4S_MARK);
	q->used = q->given - waits;
	return (any_bool() ? NONE : action);
}

static bool
may_drop(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	passed = any_bool();
	if (passed)
		q->window_drops++;
	else
		trip(c, q, L4S_EVENT_SHIELD_DROPS, any_u64(), now_ns);
	return (passed);
}

static bool
in_range(const struct l4s_params *p)
{
	bool good = true;

#define L4S_WITHIN(name, normal, low, high, text)                              \
	good = good && p->name >= (low) && p->name <= (high);
	L4S_PARAMETERS(L4S_WITHIN)
#undef L4S_WITHIN
	return (good);
}

/* Each bound in force is the operator's, or tighter. */
static bool
no_looser(const struct l4s_bounds *b, const struct l4s_params *p)
{
	return ((p->shield_c_us == 0 ||
	    (b->c_us != 0 && b->c_us <= p->shield_c_us)) &&
	    (p->shield_l_us == 0 ||
	    (b->l_us != 0 && b->l_us <= p->shield_l_us)) &&
	    (p->shield_hits == 0 ||
	    (b->hits != 0 && b->hits <= p->shield_hits)) &&
	    b->drops <= p->shield_drops && b->window <= p->shield_window &&
	    b->hold_us >= p->shield_hold_us);
}

/* Any bounds within their ranges; masks tell the solver how short they are. */
static void
bound(void)
{
	struct l4s_bounds *b = &core.bounds;

	b->c_us = any_u64() & 0x3ffffff;
	b->l_us = any_u64() & 0x3ffffff;
	b->drops = any_u64() & 0x1ffff;
	b->window = any_u64() & 0x1ffff;
	b->hold_us = any_u64() & 0x3fffffff;
	b->hits = any_u64() & 0x1ffff;
	__CPROVER_assume(b->c_us <= 60000000 && b->l_us <= 60000000 &&
	    b->drops <= 65536 && b->window >= 16 && b->window <= 65536 &&
	    b->hold_us >= 1000 && b->hold_us <= 600000000 && b->hits <= 65536);
}

static bool
few_drops(const struct l4s_queue *q, const struct l4s_bounds *b)
{
	return (b->drops >= 65536 ||
	    q->window_drops * 65536 <= b->drops * b->window);
}

/* The states: what every step may rely on, and keeps. */
static bool
sane(const struct l4s_queue *q)
{
	return (q->hit_credit <= L4S_MOST_CREDIT &&
	    q->drop_credit <= L4S_MOST_CREDIT &&
	    q->window_packets <= 65536 &&
	    q->window_decisions <= q->window_packets &&
	    q->before_decisions <= 65536 &&
	    (uint8_t)(q->given - q->used) <= L4S_ANSWERS);
}

/* Any state, at a time. */
static uint64_t
anything(void)
{
	uint64_t now_ns = any_u64();

	clock_ns = any_u64();
	__CPROVER_assume(clock_ns <= now_ns);
	core = any_core();
	packet = any_packet();
	packet.queue = QUEUE;
	for (int i = 0; i < 2; i++) {
		queued[i] = any_packet();
		core.q[i].head = &queued[i];
		__CPROVER_assume(queued[i].enqueued_ns <= clock_ns);
		__CPROVER_assume(core.q[i].delay_ns < LATEST_NS);
		__CPROVER_assume(core.q[i].trips < LATEST_NS);
		__CPROVER_assume(core.q[i].packets < LATEST_NS);
		__CPROVER_assume(core.q[i].window_drops <= 65536);
		/* What is counted: a packet of L that leaves was the agent's. */
		for (int k = 0; k < 3; k++)
			__CPROVER_assume(core.q[i].decided[k] > 0 &&
			    core.q[i].decided[k] < LATEST_NS);
	}
	for (int i = 0; i < L4S_REFUSALS; i++)
		__CPROVER_assume(core.refused[i] < LATEST_NS);
	__CPROVER_assume(core.until_ask > 0);
	__CPROVER_assume(now_ns < LATEST_NS);
	__CPROVER_assume(in_range(&core.p));
	bound();
	for (int i = 0; i < 2; i++)
		__CPROVER_assume(sane(&core.q[i]));
	__CPROVER_assume(packet.row.sequence < LATEST_NS);
	return (now_ns);
}

/* The delay that the shield sees: of the last packet, or the oldest one's age. */
static uint64_t
seen_ns(const struct l4s_queue *q)
{
	uint64_t age = q->packets == 0 ? 0 : clock_ns - q->head->enqueued_ns;

	return (q->packets > 0 && q->delay_ns > age ? q->delay_ns : age);
}

static uint64_t
limit_ns(const struct l4s_core *c, int index)
{
	uint64_t us = index == L4S_L4S ? c->bounds.l_us : c->bounds.c_us;

	return (us == 0 ? UINT64_MAX : ns(us));
}

/*
 * A packet arrives. While a queue is held, the law decides. An agent decides
 * only where the delay is within the bound, or where no agent has decided in
 * this window and the one before; else the queue is held from now on, for the
 * whole hold. What an agent drops or marks, it has the credit for.
 */
void
prove_arrival(void)
{
	uint64_t now_ns = anything(), delay_ns, limit;
	struct l4s_queue *q = &core.q[packet.queue], before = *q;
	bool fresh, held, drops, hits;
	int action;

	delay_ns = seen_ns(q);
	limit = limit_ns(&core, packet.queue);
	/* As the window may begin anew with this packet. */
	fresh = before.window_packets + 1 > core.bounds.window ?
	    before.window_decisions == 0 :
	    before.window_decisions == 0 && before.before_decisions == 0;
	held = before.held_until_ns != 0 && now_ns < before.held_until_ns;
	action = l4s_outside(&core, &packet, now_ns);
	drops = action == L4S_DROP ||
	    (action == L4S_MARK && packet.ecn == L4S_NOT_ECT);
	hits = drops || action == L4S_MARK;

	__CPROVER_assert(sane(q), "the state stays sane");
	__CPROVER_assert(!held || action == NONE, "held: the law decides");
	__CPROVER_assert(!held || q->held_until_ns == before.held_until_ns,
	    "held: for as long as said");
	__CPROVER_assert(action == NONE || fresh || delay_ns <= limit,
	    "an agent decides at delays within the bound only");
	__CPROVER_assert(held || fresh || delay_ns <= limit ||
	    (core.interval == 0 && !core.by_prob) ||
	    q->held_until_ns == now_ns + ns(core.bounds.hold_us),
	    "beyond the bound the queue is held for the whole hold");
	__CPROVER_assert(q->held_until_ns == 0 || action == NONE,
	    "no agent's decision where the queue is held after it");
	__CPROVER_assert(q->held_until_ns == before.held_until_ns ||
	    q->held_until_ns == 0 || q->used == q->given,
	    "what waits is void when a hold begins");
	__CPROVER_assert(!hits || core.bounds.hits == 0 ||
	    q->hit_credit <= L4S_MOST_CREDIT - L4S_ONE,
	    "each hit costs credit");
	__CPROVER_assert(!drops || core.bounds.hits == 0 ||
	    q->drop_credit <= L4S_MOST_CREDIT - L4S_ONE,
	    "each drop costs credit of both kinds");
	__CPROVER_assert(!drops || passed, "drops pass the bound of a window");
	__CPROVER_assert(passed || q->window_drops == 0 ||
	    q->window_drops == before.window_drops,
	    "a window's drops end with it");
	__CPROVER_assert(action == NONE || action == L4S_ENQUEUE || hits,
	    "an action is one of three");
}

/* A packet of L leaves, by a set probability. */
void
prove_departure(void)
{
	uint64_t now_ns = anything(), credit;
	struct l4s_queue *q = &core.q[packet.queue];
	bool held = q->held_until_ns != 0;
	uint64_t dropped = q->window_drops;
	int action;

	credit = q->hit_credit;
	action = l4s_outside_leaving(&core, &packet, now_ns);
	__CPROVER_assert(sane(q), "the state stays sane");
	__CPROVER_assert(!held || action == NONE, "held: the law decides");
	__CPROVER_assert(action != L4S_DROP || core.bounds.hits == 0 ||
	    (credit >= L4S_ONE && q->hit_credit == credit - L4S_ONE),
	    "a drop costs credit");
	__CPROVER_assert(action != L4S_DROP ||
	    (passed && q->window_drops == dropped + 1),
	    "drops pass the bound of a window");
}

/* A drop passes while those of a window are few; else the queue is held. */
void
prove_drops(void)
{
	uint64_t now_ns = anything();
	struct l4s_queue *q = &core.q[QUEUE];
	uint64_t before = q->window_drops;

	if (real_may_drop(&core, q, now_ns)) {
		__CPROVER_assert(q->window_drops == before + 1, "counted");
	} else {
		__CPROVER_assert(q->window_drops == 0, "a new window");
		__CPROVER_assert(q->held_until_ns ==
		    now_ns + ns(core.bounds.hold_us), "held");
		__CPROVER_assert(q->used == q->given, "what waits is void");
	}
	__CPROVER_assert(few_drops(q, &core.bounds), "few in each window");
}

/* Credit is what the law would do, times `hits`, and never more than two. */
void
prove_credit(void)
{
	uint64_t credit = any_u64(), before = credit, likely = any_u64();

	bound();
	__CPROVER_assume(credit <= L4S_MOST_CREDIT && likely <= L4S_ONE);
	real_earn(&core, &credit, likely);
	__CPROVER_assert(credit <= L4S_MOST_CREDIT, "never more than two hits");
	__CPROVER_assert(credit >= before, "never less than before");
	__CPROVER_assert(likely != 0 || credit == before, "nothing for nothing");
	__CPROVER_assert(core.bounds.hits != 256 || credit <= before + likely,
	    "with hits of 256 as much as the law would");
}

/* The law's likelihood of a hit is a probability. */
void
prove_likelihood(void)
{
	uint64_t now_ns = anything(), likely;

	__CPROVER_assume(core.prob <= L4S_ONE);
	for (int i = 0; i < 2; i++)
		__CPROVER_assume(core.q[i].prob <= L4S_MAX_PROB);
	likely = real_likelihood(&core, packet.queue, now_ns);
	__CPROVER_assert(likely <= L4S_ONE, "at most 1");
}

/* An answer comes: none is taken while the queue is held, or too late. */
void
prove_answer(void)
{
	uint64_t now_ns = anything();
	struct l4s_decision d;
	enum l4s_refusal refusal;
	struct l4s_queue *q;

	d.sequence = any_u64();
	d.expires_ns = any_u64();
	d.given_ns = any_u64();
	d.queue = QUEUE;
	d.action = any_u8();
	refusal = l4s_decide(&core, &d, now_ns);
	if (refusal != L4S_ACCEPTED)
		return;
	q = &core.q[d.queue];
	__CPROVER_assert(sane(q), "the state stays sane");
	__CPROVER_assert(q->held_until_ns == 0, "none while the queue is held");
	__CPROVER_assert(d.expires_ns > now_ns, "none too late");
	__CPROVER_assert(d.action <= L4S_MARK, "an action is one of three");
	__CPROVER_assert(q->answered == d.sequence + 1, "none twice");
}

/* An answer is taken: it was given, and its time is not over. */
void
prove_taking(void)
{
	uint64_t now_ns = any_u64(), latest = 0;
	uint8_t waited, waits;
	int action;

	core = any_core();
	core.q[0].used = 0;	/* the numbers go round: where they start is all one */
	waited = core.q[0].given;
	__CPROVER_assume(waited <= L4S_ANSWERS);
	for (int i = 0; i < L4S_ANSWERS; i++) {
		__CPROVER_assume(core.q[0].answer[i].action <= L4S_MARK);
		if (i < waited && core.q[0].answer[i].expires_ns > latest)
			latest = core.q[0].answer[i].expires_ns;
	}
	__CPROVER_assume(core.refused[L4S_EXPIRED] < LATEST_NS);
	action = real_take_answer(&core, &core.q[0], now_ns);
	waits = core.q[0].given - core.q[0].used;
	__CPROVER_assert(action >= NONE && action <= L4S_MARK,
	    "none, or one of three");
	__CPROVER_assert(action == NONE || waits < waited, "no answer twice");
	__CPROVER_assert(waits <= waited, "no more wait than before");
	__CPROVER_assert(action == NONE || now_ns < latest, "none too late");
}

/* A controller asks for bounds of its own, then goes. */
void
prove_bounds(void)
{
	struct l4s_bounds wanted = any_bounds();

	(void)anything();
	l4s_tighten(&core, &wanted);
	__CPROVER_assert(no_looser(&core.bounds, &core.p),
	    "never looser than the operator's");
}
