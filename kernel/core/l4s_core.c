/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The two queues: arrivals, departures, control intervals, rows.
 */
#include "l4s_internal.h"

/* DualPI2's target, L's step. */
const uint64_t l4s_reference_ns[2] = { 15000000, 1000000 };

#define TARGET_US 1	/* its place in L4S_PARAMETERS */

/* -- parameters */

void
l4s_params_default(struct l4s_params *p, uint64_t variant)
{
#define SET(name, normal, low, high, text) p->name = (normal);
	L4S_PARAMETERS(SET)
#undef SET
	p->variant = variant;
	if (variant != L4S_TESTBED)
		p->tupdate_us = 16000;
}

int
l4s_params_check(const struct l4s_params *p)
{
	int index = 0;
	/* Both sides are one larger: nothing is below a lowest value of 0. */
#define CHECK(name, normal, low, high, text)                                   \
	if (p->name + 1 < (uint64_t)(low) + 1 || p->name > (high))             \
		return (index);                                                \
	index++;
	L4S_PARAMETERS(CHECK)
#undef CHECK
	/* What the update of RFC 9332 adds must stay below 2^63. */
	if (p->alpha_q * p->target_us > (1ULL << 62) / 1000)
		return (TARGET_US);
	return (-1);
}

/* -- the generator */

static uint64_t
random64(struct l4s_core *c)
{
	uint64_t z;

	c->rng += 0x9E3779B97F4A7C15;
	z = c->rng;
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
	return (z ^ (z >> 31));
}

uint64_t
l4s_random31(struct l4s_core *c)
{
	return (random64(c) >> 33);
}

uint64_t
l4s_random32(struct l4s_core *c)
{
	return (random64(c) >> 32);
}

/* -- start and change */

static void
start_law(struct l4s_core *c, uint64_t now_ns)
{
	uint64_t first = now_ns + c->p.tupdate_us * 1000;
	bool testbed = c->p.variant == L4S_TESTBED;

	c->prob = 0;
	c->qdelay_old_ns = 0;
	c->credit = c->p.variant == L4S_LINUX ? l4s_linux_credit(c) : 0;
	c->update_at = testbed ? L4S_NEVER : first;
	for (int i = 0; i < 2; i++) {
		struct l4s_queue *q = &c->q[i];

		q->prob = q->accu = q->qdelay_old_us = 0;
		q->burst_us = testbed && q->packets > 0 ? c->p.max_burst_us : 0;
		q->active = testbed && q->packets > 0;
		q->update_at = q->active ? first : L4S_NEVER;
	}
}

static void
relist(struct l4s_core *c)
{
	c->fresh[0] = c->fresh[1] = c->old[0] = c->old[1] = -1;
	for (int i = 0; i < 2; i++) {
		c->q[i].listed = 0;
		if (c->p.variant == L4S_TESTBED && c->q[i].packets > 0)
			l4s_testbed_enlist(c, &c->q[i]);
	}
}

void
l4s_init(struct l4s_core *c, const struct l4s_params *p, uint64_t seed,
    uint64_t now_ns)
{
	/* Not by a compound literal: it may pass over a small kernel stack. */
	__builtin_memset(c, 0, sizeof(*c));
	c->own = *p;
	l4s_end_law(c);
	c->rng = seed;
	c->integrated_ns = now_ns;
	l4s_set_bounds(c);
	for (int i = 0; i < 2; i++)
		c->q[i].hit_credit = c->q[i].drop_credit = L4S_MOST_CREDIT;
	relist(c);
	start_law(c, now_ns);
	l4s_tick_start(c, now_ns);
}

void
l4s_configure(struct l4s_core *c, const struct l4s_params *p, uint64_t now_ns)
{
	uint64_t variant = c->p.variant;
	bool round_robin = l4s_round_robin(c);

	c->own = *p;
	l4s_end_law(c);
	l4s_set_bounds(c);
	if (variant != p->variant)
		start_law(c, now_ns);
	if (variant != p->variant || round_robin != l4s_round_robin(c))
		relist(c);
}

/* -- measurement */

const struct l4s_totals *
l4s_measure(struct l4s_core *c, uint64_t now_ns)
{
	uint64_t elapsed = now_ns - c->integrated_ns;

	c->integrated_ns = now_ns;
	if (c->q[0].packets > 0)
		c->totals.delay_c_ns += (elapsed * c->q[0].normalised) >> 16;
	if (c->q[1].packets > 0)
		c->totals.delay_l_ns += (elapsed * c->q[1].normalised) >> 16;
	return (&c->totals);
}

uint32_t
l4s_flows(const struct l4s_core *c, int queue, uint64_t now_ns)
{
	uint32_t flows = 0;

	for (int i = 0; i < L4S_SEEN; i++) {
		uint64_t seen_ns = c->seen_ns[queue][i];

		flows += seen_ns != 0 && now_ns - seen_ns < L4S_SEEN_NS;
	}
	return (flows);
}

/* -- rows */

static uint64_t
in_records_unit(uint64_t q32)
{
	return ((q32 * L4S_MAX_PROB) >> 32);
}

/* The probability of a queue, in the records' unit. */
static uint64_t
probability(const struct l4s_core *c, const struct l4s_queue *q)
{
	switch (c->p.variant) {
	case L4S_TESTBED:
		return (q->prob);
	case L4S_LINUX:
		return (c->prob >> 1);
	default:
		return (in_records_unit(c->prob));
	}
}

uint64_t
l4s_probability(const struct l4s_core *c)
{
	return (probability(c, &c->q[0]));
}

/* A gain as the rows show it: in the kernel's unit; RFC 9332 has none. */
static uint32_t
gain(const struct l4s_core *c, uint64_t of_testbed, uint64_t of_linux)
{
	switch (c->p.variant) {
	case L4S_TESTBED:
		return ((uint32_t)of_testbed);
	case L4S_LINUX:
		return ((uint32_t)of_linux);
	default:
		return (0);
	}
}

static uint64_t
accumulated(const struct l4s_core *c, const struct l4s_queue *q)
{
	return (c->p.variant == L4S_TESTBED ? q->accu :
	    in_records_unit(q->accu));
}

static void
write_before(struct l4s_core *c, struct l4s_packet *packet, uint64_t now_ns)
{
	const struct l4s_params *p = &c->p;
	const struct l4s_queue *q = &c->q[packet->queue];
	bool testbed = p->variant == L4S_TESTBED;

	packet->row = (struct l4s_record){
		.queue_type = packet->queue,
		.qdelay_ref = (uint32_t)p->target_us,
		.tupdate = (uint32_t)p->tupdate_us,
		.max_burst = (uint32_t)p->max_burst_us,
		.max_ecn_threshold = (uint16_t)p->max_ecn_threshold,
		.alpha = gain(c, p->alpha, p->pi2_alpha),
		.beta = gain(c, p->beta, p->pi2_beta),
		.flags = (uint32_t)p->flags,
		.burst_allowance = (uint32_t)q->burst_us,
		.drop_probability = (uint32_t)probability(c, q),
		.current_queue_delay = (uint32_t)(testbed ? q->qdelay_us :
		    q->delay_ns / 1000),
		.queue_delay_old = (uint32_t)(testbed ? q->qdelay_old_us :
		    c->qdelay_old_ns / 1000),
		.measurement_start = (uint32_t)q->measurement_start_us,
		.status_flags = q->active ? 3 : 0,
		.total_packets = q->total_packets,
		.total_bytes = q->total_bytes,
		.length_in_packets = (uint32_t)q->packets,
		.length_in_bytes = (uint32_t)q->bytes,
		.total_drops = (uint32_t)q->drops,
		.packet_length = packet->length,
		.sequence = c->sequence,
		.time_us = now_ns / 1000,
		.flow_id = packet->flow,
		.ecn = packet->ecn,
		.accumulated_probability_before = accumulated(c, q),
		.interval_drops = (uint32_t)q->interval_drops,
	};
}

/* -- the queues */

static void
append(struct l4s_queue *q, struct l4s_packet *packet)
{
	packet->next = 0;
	if (q->tail != 0)
		q->tail->next = packet;
	else
		q->head = packet;
	q->tail = packet;
	q->packets++;
	q->bytes += packet->length;
}

static struct l4s_packet *
pop(struct l4s_queue *q)
{
	struct l4s_packet *packet = q->head;

	q->head = packet->next;
	if (q->head == 0)
		q->tail = 0;
	packet->next = 0;
	q->packets--;
	q->bytes -= packet->length;
	return (packet);
}

static void
count_drop(struct l4s_queue *q)
{
	q->drops++;
	q->interval_drops++;
}

/* Whether the buffer is full; the testbed's kernel looks after the enqueue. */
static bool
no_room(const struct l4s_core *c, uint32_t length)
{
	const struct l4s_params *p = &c->p;
	uint64_t reserve = p->variant == L4S_RFC9332 ? L4S_MTU : length;

	if (p->variant == L4S_TESTBED && (p->quirks & L4S_HEAD_DROP) != 0)
		return (false);
	if (p->limit_packets > 0 &&
	    c->q[0].packets + c->q[1].packets + 1 > p->limit_packets)
		return (true);
	return (p->limit_bytes > 0 &&
	    c->q[0].bytes + c->q[1].bytes + reserve > p->limit_bytes);
}

/* Decide about a packet that arrives: what is logged, and what is done. */
static void
decide(struct l4s_core *c, struct l4s_packet *packet, uint64_t now_ns)
{
	struct l4s_queue *q = &c->q[packet->queue];
	bool testbed = c->p.variant == L4S_TESTBED;
	uint8_t logged = L4S_ENQUEUE, applied = L4S_ENQUEUE;
	int action = l4s_outside(c, packet, now_ns);

	if (action >= 0) {
		logged = applied = (uint8_t)action;
		if (action == L4S_MARK && packet->ecn == L4S_NOT_ECT)
			applied = L4S_DROP;
		/* The law goes on as if the decision were its own. */
		if (testbed) {
			(void)l4s_testbed_step(c, q);
			if (applied != L4S_ENQUEUE)
				q->accu = 0;
		}
		packet->decided = !packet->later;
	} else if (testbed) {
		l4s_testbed_decide(c, q, packet, &logged, &applied);
		packet->decided = 1;
	}
	if (applied != L4S_DROP && no_room(c, packet->length)) {
		applied = L4S_DROP;
		packet->decided = 1;
	}
	packet->row.accumulated_probability = accumulated(c, q);
	packet->row.action = logged;
	packet->row.applied_action = applied;
	packet->row_ready = packet->decided;
}

int
l4s_offer(struct l4s_core *c, struct l4s_packet *packet, uint64_t now_ns)
{
	struct l4s_queue *q;
	uint8_t applied;

	l4s_expire_law(c, now_ns);
	packet->queue = l4s_classify(&c->p, packet->ecn);
	packet->decided = packet->row_ready = packet->asks = packet->later = 0;
	q = &c->q[packet->queue];
	c->seen_ns[packet->queue][packet->flow % L4S_SEEN] = now_ns;
	write_before(c, packet, now_ns);
	c->sequence++;
	decide(c, packet, now_ns);
	applied = packet->row.applied_action;
	if (c->p.variant == L4S_TESTBED)
		l4s_testbed_after(c, q, now_ns, applied);
	q->total_packets++;
	q->total_bytes += packet->length;
	q->decided[packet->row.decided_by]++;
	if (applied == L4S_DROP) {
		count_drop(q);
		return (L4S_DROP);
	}
	if (applied == L4S_MARK)
		q->marks++;
	packet->enqueued_ns = l4s_clock(c, now_ns);
	packet->step_ok = q->packets >= c->p.min_qlen_step;
	(void)l4s_measure(c, now_ns);
	append(q, packet);
	if (c->p.variant == L4S_TESTBED && !q->listed)
		l4s_testbed_enlist(c, q);
	return (applied);
}

struct l4s_packet *
l4s_evict(struct l4s_core *c, uint64_t now_ns)
{
	struct l4s_queue *q = &c->q[c->q[1].packets > c->q[0].packets];
	struct l4s_packet *packet;

	if (c->p.limit_packets == 0 ||
	    c->q[0].packets + c->q[1].packets <= c->p.limit_packets)
		return (0);
	(void)l4s_measure(c, now_ns);
	count_drop(q);
	packet = pop(q);
	packet->row_ready = 1;	/* L's may wait for what is never decided */
	return (packet);
}

static int
pick(struct l4s_core *c, uint64_t now_ns)
{
	switch (c->p.variant) {
	case L4S_TESTBED:
		return (l4s_testbed_pick(c, now_ns));
	case L4S_LINUX:
		return (l4s_linux_pick(c));
	default:
		return (l4s_rfc9332_pick(c, now_ns));
	}
}

/* The decision of a law that decides at departure. */
static uint8_t
decide_departing(struct l4s_core *c, struct l4s_queue *q,
    const struct l4s_packet *packet)
{
	return (c->p.variant == L4S_LINUX ? l4s_linux_decide(c, packet) :
	    l4s_rfc9332_decide(c, q, packet));
}

/* Account a packet to the scheduler; of laws that drop at departure, those cost nothing. */
static void
charge(struct l4s_core *c, int index, uint32_t length, uint8_t decision)
{
	if (l4s_round_robin(c))
		c->q[index].deficit -= length;
	else if (decision == L4S_DROP && c->p.variant != L4S_TESTBED)
		return;
	else if (c->p.variant == L4S_LINUX)
		l4s_linux_charge(c, index, length);
	else
		l4s_rfc9332_charge(c, index, length);
}

/* A packet has left its queue: its sojourn is the delay of the queue now. */
static struct l4s_packet *
leave(struct l4s_core *c, struct l4s_queue *q, uint64_t now_ns)
{
	struct l4s_packet *packet;
	uint64_t sojourn;

	(void)l4s_measure(c, now_ns);
	packet = pop(q);
	sojourn = l4s_clock(c, now_ns) - packet->enqueued_ns;
	q->delay_ns = sojourn;
	q->qdelay_us = sojourn / 1000;
	q->normalised = (sojourn << 16) /
	    (sojourn + l4s_reference_ns[packet->queue]);
	return (packet);
}

struct l4s_packet *
l4s_take(struct l4s_core *c, uint64_t now_ns, int *action)
{
	struct l4s_packet *packet;
	struct l4s_queue *q;
	uint8_t decision = L4S_ENQUEUE;
	int index, outside;

	l4s_expire_law(c, now_ns);
	index = pick(c, now_ns);
	*action = L4S_ENQUEUE;
	if (index < 0)
		return (0);
	q = &c->q[index];
	packet = leave(c, q, now_ns);
	outside = l4s_outside_leaving(c, packet, now_ns);
	if (outside >= 0 ||
	    (!packet->decided && c->p.variant != L4S_TESTBED)) {
		decision = outside >= 0 ? (uint8_t)outside :
		    decide_departing(c, q, packet);
		packet->row.action = decision;
		packet->row.applied_action = decision;
	}
	packet->row_ready = 1;
	charge(c, index, packet->length, decision);
	*action = decision;
	if (decision == L4S_DROP) {
		count_drop(q);
		return (packet);
	}
	if (decision == L4S_MARK)
		q->marks++;
	q->left++;
	q->left_ns += q->delay_ns;
	c->totals.served_bytes += packet->length;
	c->totals.power_bytes += packet->length * (65536 - q->normalised);
	return (packet);
}

/* -- control intervals */

static uint64_t
head_delay(const struct l4s_core *c, int index, uint64_t now_ns)
{
	const struct l4s_packet *head = c->q[index].head;

	return (head == 0 ? 0 : l4s_clock(c, now_ns) - head->enqueued_ns);
}

static uint64_t
next_after(const struct l4s_core *c, uint64_t due, uint64_t now_ns)
{
	uint64_t step = c->p.tupdate_us * 1000;

	/* A caller who is more than an interval late does not catch up. */
	return (due + step > now_ns ? due + step : now_ns + step);
}

uint64_t
l4s_next_update(const struct l4s_core *c)
{
	uint64_t next = c->update_at < c->tick.due_ns ? c->update_at :
	    c->tick.due_ns;

	for (int i = 0; i < 2; i++)
		if (c->q[i].update_at < next)
			next = c->q[i].update_at;
	return (next);
}

static void
update_law(struct l4s_core *c, uint64_t now_ns)
{
	uint64_t c_delay, l_delay;

	for (int i = 0; i < 2; i++) {
		struct l4s_queue *q = &c->q[i];

		if (q->update_at > now_ns)
			continue;
		q->update_at = next_after(c, q->update_at, now_ns);
		l4s_testbed_update(c, q);
	}
	if (c->update_at > now_ns)
		return;
	c->update_at = next_after(c, c->update_at, now_ns);
	c_delay = head_delay(c, 0, now_ns);
	l_delay = head_delay(c, 1, now_ns);
	if (c->p.variant == L4S_LINUX)
		l4s_linux_update(c, c_delay > l_delay ? c_delay : l_delay);
	else
		l4s_rfc9332_update(c, c_delay > l_delay ? c_delay : l_delay);
	c->q[0].interval_drops = c->q[1].interval_drops = 0;
}

void
l4s_update(struct l4s_core *c, uint64_t now_ns)
{
	l4s_expire_law(c, now_ns);
	update_law(c, now_ns);
	if (c->tick.due_ns <= now_ns)
		l4s_tick(c, now_ns);
}
