/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the parts of the core call of each other.
 */
#ifndef L4S_INTERNAL_H
#define L4S_INTERNAL_H

#include "l4s_core.h"

#define L4S_QUANTUM 1514	/* bytes a round; where credits start from */
#define L4S_MOST_CREDIT (2 * (uint64_t)L4S_ONE)	/* hits that an agent saves */
#define L4S_OVERLOAD (L4S_ONE / 4)	/* of p_C: RFC 9332, appendix A */
#define L4S_MTU 1500	/* RFC 9332 keeps room for one */

/* Delays that rewards and observations take as their unit, ns. */
extern const uint64_t l4s_reference_ns[2];

/* Queue of a packet that arrives. */
static inline uint8_t
l4s_classify(const struct l4s_params *p, uint8_t ecn)
{
	bool ce_in_c = p->variant == L4S_TESTBED &&
	    (p->quirks & L4S_CE_IN_CLASSIC) != 0;

	return (ecn == L4S_ECT_1 || (ecn == L4S_CE && !ce_in_c) ? L4S_L4S :
	    L4S_CLASSIC);
}

/* The law's clock: whole ticks, where it has ticks. */
static inline uint64_t
l4s_clock(const struct l4s_core *c, uint64_t now_ns)
{
	return (c->p.tick_ns == 0 ? now_ns : now_ns - now_ns % c->p.tick_ns);
}

static inline bool
l4s_round_robin(const struct l4s_core *c)
{
	return (c->p.variant == L4S_TESTBED &&
	    (c->p.quirks & L4S_DRR) != 0);
}

/* Square of a probability, 2^-32. */
static inline uint64_t
l4s_square(uint64_t prob)
{
	return (((prob >> 1) * (prob >> 1)) >> 30);
}

/* Uniform in [0, 2^31): the next number of splitmix64. */
uint64_t l4s_random31(struct l4s_core *c);

/* Uniform in [0, 2^32), from the same numbers. */
uint64_t l4s_random32(struct l4s_core *c);

/* The testbed's law: l4s_testbed.c. */
bool l4s_testbed_step(const struct l4s_core *c, struct l4s_queue *q);
void l4s_testbed_decide(struct l4s_core *c, struct l4s_queue *q,
    const struct l4s_packet *packet, uint8_t *logged, uint8_t *applied);
void l4s_testbed_after(struct l4s_core *c, struct l4s_queue *q,
    uint64_t now_ns, uint8_t applied);
void l4s_testbed_update(struct l4s_core *c, struct l4s_queue *q);
void l4s_testbed_enlist(struct l4s_core *c, struct l4s_queue *q);
int l4s_testbed_pick(struct l4s_core *c, uint64_t now_ns);

/* RFC 9332: l4s_rfc9332.c. */
void l4s_rfc9332_update(struct l4s_core *c, uint64_t current_ns);
uint8_t l4s_rfc9332_decide(struct l4s_core *c, struct l4s_queue *q,
    const struct l4s_packet *packet);
uint64_t l4s_rfc9332_ramp(const struct l4s_params *p, uint64_t delay_ns);
int l4s_rfc9332_pick(const struct l4s_core *c, uint64_t now_ns);
void l4s_rfc9332_charge(struct l4s_core *c, int index, uint32_t length);

/* Linux: l4s_linux.c. */
void l4s_linux_update(struct l4s_core *c, uint64_t current_ns);
uint8_t l4s_linux_decide(struct l4s_core *c, const struct l4s_packet *packet);
int64_t l4s_linux_credit(const struct l4s_core *c);
int l4s_linux_pick(struct l4s_core *c);
void l4s_linux_charge(struct l4s_core *c, int index, uint32_t length);

/* Decisions from outside: l4s_outside.c. */
void l4s_set_bounds(struct l4s_core *c);
int l4s_outside(struct l4s_core *c, struct l4s_packet *packet,
    uint64_t now_ns);
int l4s_outside_leaving(struct l4s_core *c, struct l4s_packet *packet,
    uint64_t now_ns);
void l4s_hand_back(struct l4s_core *c);

/* Models of interval forms: l4s_tick.c. */
void l4s_tick_start(struct l4s_core *c, uint64_t now_ns);
void l4s_tick(struct l4s_core *c, uint64_t now_ns);

#endif
