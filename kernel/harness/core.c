/*
 * SPDX-License-Identifier: MIT
 *
 * The core behind a link of constant rate, for comparison with the simulator:
 * the same events in the same order, so that every record must be the same.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "l4s_core.h"

/* As l4s_gym.sim.drive.ARRIVAL. */
struct arrival {
	int64_t time_ns;
	int32_t length, flow, ecn, action;
};

struct run {
	struct l4s_core core;
	struct l4s_record *rows;
	struct l4s_packet *sending;
	uint64_t link_at;
	const uint32_t *prob;	/* set probabilities, or NULL */
	double rate_bps;
	double free_ns;	/* when the packet that is sent is through */
};

const char *harness_parameter(int index, uint64_t *low, uint64_t *high);
int64_t harness_drive(const struct l4s_params *p, uint64_t seed,
    double rate_bps, const struct arrival *arrivals, int64_t count,
    struct l4s_record *rows, const void *model, uint64_t size,
    const uint32_t *prob);
uint64_t harness_core_size(void);
void harness_rate(struct l4s_core *c, uint64_t rate_bps);
int harness_outputs(const void *model, uint64_t size, const uint64_t *raw,
    int64_t count, uint32_t *out);

/* Name and range of a parameter, in order; NULL past the last. */
const char *
harness_parameter(int index, uint64_t *low, uint64_t *high)
{
	static const struct {
		const char *name;
		uint64_t low, high;
	} table[] = {
#define ROW(name, normal, low, high, text) { #name, low, high },
		L4S_PARAMETERS(ROW)
#undef ROW
	};

	if (index < 0 || (size_t)index >= sizeof(table) / sizeof(table[0]))
		return (NULL);
	*low = table[index].low;
	*high = table[index].high;
	return (table[index].name);
}

uint64_t
harness_core_size(void)
{
	return (sizeof(struct l4s_core));
}

/*
 * What a model tells for rows of raw features, one after the other; L4S_OUTPUTS
 * numbers each. Returns what is wrong with it.
 */
int
harness_outputs(const void *model, uint64_t size, const uint64_t *raw,
    int64_t count, uint32_t *out)
{
	enum l4s_fault fault = l4s_model_check(model, size);
	const struct l4s_model *head = model;
	struct l4s_memory memory = { 0 };

	for (int64_t i = 0; fault == L4S_FAULTLESS && i < count; i++)
		l4s_model_outputs(head, &memory, raw + i * head->features,
		    out + i * L4S_OUTPUTS);
	return ((int)fault);
}

void
harness_rate(struct l4s_core *c, uint64_t rate_bps)
{
	c->rate_bps = rate_bps;
}

static void
finish(struct run *r, struct l4s_packet *packet)
{
	if (!packet->row_ready)
		abort();
	r->rows[packet->row.sequence] = packet->row;
	free(packet);
}

/* What a controller sets ends: set it anew. */
static void
set_prob(struct run *r, uint64_t now)
{
	if (r->prob != NULL &&
	    !l4s_set_prob(&r->core, r->prob, UINT32_MAX, now))
		abort();
}

/* The link is free since some time: the next packet, if there is one. */
static void
serve(struct run *r, uint64_t now, double since_ns)
{
	struct l4s_packet *packet;
	int action;

	r->sending = NULL;
	r->link_at = L4S_NEVER;
	set_prob(r, now);
	while ((packet = l4s_take(&r->core, now, &action)) != NULL) {
		if (action == L4S_DROP) {
			finish(r, packet);
			continue;
		}
		r->sending = packet;
		r->free_ns = since_ns + packet->length * 8e9 / r->rate_bps;
		r->link_at = (uint64_t)r->free_ns;
		r->link_at += (double)r->link_at < r->free_ns;
		return;
	}
}

static void
run_until(struct run *r, uint64_t time, int rest)
{
	for (;;) {
		uint64_t due = l4s_next_update(&r->core);

		if ((due < r->link_at ? due : r->link_at) > time ||
		    (rest && r->sending == NULL))
			return;
		if (r->link_at <= due) {
			struct l4s_packet *sent = r->sending;
			uint64_t now = r->link_at;

			finish(r, sent);
			serve(r, now, r->free_ns);
		} else {
			l4s_update(&r->core, due);
		}
	}
}

/*
 * Answer the last ask of the queue that the next packet will go to, so that
 * the answer is used for it; without an ask yet the law decides.
 */
static void
answer(struct run *r, const struct arrival *a, uint64_t now)
{
	const struct l4s_params *p = &r->core.p;
	int ce_in_c = p->variant == L4S_TESTBED &&
	    (p->quirks & L4S_CE_IN_CLASSIC) != 0;
	int queue = a->ecn == L4S_ECT_1 || (a->ecn == L4S_CE && !ce_in_c);
	const struct l4s_queue *q = &r->core.q[queue];
	struct l4s_decision d = { .sequence = q->asked - 1,
	    .expires_ns = now + 1, .queue = (uint8_t)queue,
	    .action = (uint8_t)a->action };

	if (q->asked > q->answered && l4s_decide(&r->core, &d, now) != 0)
		abort();
}

static void
arrive(struct run *r, const struct arrival *a)
{
	struct l4s_packet *packet = calloc(1, sizeof(*packet)), *victim;
	uint64_t now = (uint64_t)a->time_ns;

	if (packet == NULL)
		abort();
	packet->length = (uint32_t)a->length;
	packet->flow = (uint32_t)a->flow;
	packet->ecn = (uint8_t)a->ecn;
	if (a->action >= 0)
		answer(r, a, now);
	set_prob(r, now);
	if (l4s_offer(&r->core, packet, now) == L4S_DROP)
		finish(r, packet);
	while ((victim = l4s_evict(&r->core, now)) != NULL)
		finish(r, victim);
	if (r->sending == NULL)
		serve(r, now, (double)now);
}

/*
 * Offer packets; a row for each. `prob`: set all the time. Ends with empty queues. Returns the number of
 * rows, or -1 for parameters out of range.
 */
int64_t
harness_drive(const struct l4s_params *p, uint64_t seed, double rate_bps,
    const struct arrival *arrivals, int64_t count, struct l4s_record *rows,
    const void *model, uint64_t size, const uint32_t *prob)
{
	struct run *r = calloc(1, sizeof(*r));

	if (r == NULL || l4s_params_check(p) >= 0 ||
	    (model != NULL &&
	    l4s_model_check(model, size) != L4S_FAULTLESS)) {
		free(r);
		return (-1);
	}
	l4s_init(&r->core, p, seed, 0);
	r->rows = rows;
	r->prob = prob;
	r->rate_bps = rate_bps;
	r->link_at = L4S_NEVER;
	r->core.rate_bps = (uint64_t)rate_bps;
	l4s_set_model(&r->core, model, 0);
	for (int64_t i = 0; i < count; i++) {
		if (arrivals[i].action >= 0 && r->core.interval == 0)
			l4s_attach(&r->core, 1);
		run_until(r, (uint64_t)arrivals[i].time_ns, 0);
		arrive(r, &arrivals[i]);
	}
	run_until(r, L4S_NEVER, 1);
	free(r);
	return (count);
}
