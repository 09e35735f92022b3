/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * DualPI2 in integers: the queues, the control law, the scheduler, and the
 * place where a decision from outside takes the native law's.
 *
 * Three variants: that of RFC 9332 (appendix A), that of Linux's sch_dualpi2,
 * and that of the testbed's FreeBSD kernel with its quirks, each of which can
 * be switched off. The same laws in Python are dualpi2_rfc9332.py,
 * dualpi2_linux.py and dualpi2_freebsd.py in l4s_gym/sim; tests/kernel holds
 * each pair to the same records, bit for bit.
 *
 * The core allocates nothing, calls nothing, keeps no clock and takes no lock.
 * The caller gives the time in nanoseconds (it must not run backwards), owns
 * the packets (each with a `struct l4s_packet` of its own that the core links
 * into its queues), and keeps calls on one core from overlapping.
 *
 * A packet's way:
 *   l4s_offer()  on arrival: classified, decided, queued or to be freed;
 *   l4s_evict()  after each offer, until NULL: packets pushed out by a full
 *                buffer (testbed's variant), to be freed;
 *   l4s_take()   when the link can send: the next packet, or one to be freed;
 *   l4s_update() at l4s_next_update(): the control law's interval, and a
 *                model's.
 * A packet's row is complete when `row_ready` is set: after l4s_offer(), or,
 * where the law decides at departure (not the testbed's), after l4s_take().
 */
#ifndef L4S_CORE_H
#define L4S_CORE_H

#include "l4s_model.h"
#include "l4s_record.h"
#include "l4s_types.h"

#define L4S_CLASSIC 0
#define L4S_L4S 1

#define L4S_NOT_ECT 0
#define L4S_ECT_1 1
#define L4S_ECT_0 2
#define L4S_CE 3

/* Actions, as the records bear them. */
#define L4S_ENQUEUE 0
#define L4S_DROP 1
#define L4S_MARK 2

/* Who decided, as the records bear it. */
#define L4S_BY_KERNEL 0
#define L4S_BY_AGENT 1
#define L4S_BY_FALLBACK 2

#define L4S_NEVER UINT64_MAX

/* Variants. */
#define L4S_TESTBED 0
#define L4S_RFC9332 1
#define L4S_LINUX 2

#define L4S_MAX_PROB 2147483647	/* probability 1 in the records: 2^31 - 1 */
#define L4S_ONE 4294967296	/* probability 1 in RFC 9332's variant: 2^32 */

/* Departures of the testbed's kernel from RFC 9332: sim/dualpi2_freebsd.py. */
#define L4S_DEAD_COUPLING 0x0001
#define L4S_CE_IN_CLASSIC 0x0002
#define L4S_NO_L4S_STEP 0x0004
#define L4S_BURST_ALLOWANCE 0x0008
#define L4S_DERANDOMISE 0x0010
#define L4S_ACCU_KEPT 0x0020
#define L4S_ECN_DROP_THRESHOLD 0x0040
#define L4S_AUTOTUNE 0x0080
#define L4S_CAPDROP 0x0100
#define L4S_IDLE_DECAY 0x0200
#define L4S_RESTART_ON_DRAIN 0x0400
#define L4S_SMALL_QUEUE_GUARD 0x0800
#define L4S_PER_QUEUE_CONTROL 0x1000
#define L4S_DRR 0x2000
#define L4S_HEAD_DROP 0x4000
#define L4S_ALL_QUIRKS 0x7fff

/*
 * Every parameter: X(name, default, lowest, highest, meaning). From this list
 * come the struct, the defaults, the check, the sysctls of the FreeBSD module
 * and the keys of the Linux router's configuration.
 */
#define L4S_PARAMETERS(X)                                                      \
	X(variant, 0, 0, 2, "0 the testbed's kernel, 1 RFC 9332, 2 Linux")     \
	X(target_us, 15000, 1, 10000000, "target delay, us")                   \
	X(tupdate_us, 15000, 100, 10000000, "control interval, us")            \
	X(limit_packets, 10240, 0, 1048576, "buffer, packets; 0: bytes count") \
	X(limit_bytes, 0, 0, 4294967295, "buffer, bytes; 0: packets count")    \
	X(tick_ns, 0, 0, 1000000000, "clock step, ns; 0: as fine as it comes") \
	X(max_burst_us, 150000, 0, 10000000, "testbed: burst allowance, us")   \
	X(max_ecn_threshold, 819, 0, 8192,                                     \
	    "testbed: probability from which ECN drops, 1/8192")               \
	X(alpha, 1024, 0, 32768, "testbed: integral gain, 1/8192")             \
	X(beta, 10240, 0, 32768, "testbed: proportional gain, 1/8192")         \
	X(flags, 19, 0, 255, "testbed: flags, as the rows show them")          \
	X(quirks, 32767, 0, 32767, "testbed: departures from RFC 9332, bits")  \
	X(drr_weight, 2, 1, 64, "testbed: L in the round robin, C being 1")    \
	X(step_ns, 1000000, 0, 10000000000,                                    \
	    "Linux, and testbed without no_l4s_step: L step, ns")              \
	X(coupling, 512, 1, 65536, "RFC 9332: k, 1/256")                       \
	X(alpha_q, 45036, 0, 1073741824, "RFC 9332: alpha, 2^-48 per ns")      \
	X(beta_q, 900720, 0, 1073741824, "RFC 9332: beta, 2^-48 per ns")       \
	X(min_th_ns, 800000, 0, 10000000000, "RFC 9332: foot of L's ramp, ns") \
	X(range_ns, 400000, 0, 2147483647, "RFC 9332: width of L's ramp, ns")  \
	X(th_len, 1, 0, 1048576, "RFC 9332: no L ramp up to so many packets")  \
	X(p_c_max, 1073741824, 0, 4294967296,                                  \
	    "RFC 9332: overload threshold on p_C, 2^-32")                      \
	X(classic_weight, 4096, 0, 65536, "RFC 9332: share of C, 1/65536")     \
	X(shift_ns, 0, 0, 10000000000,                                         \
	    "RFC 9332: shift of the time-shifted FIFO, ns; 0: round robin")    \
	X(pi2_alpha, 44, 0, 4294967295,                                        \
	    "Linux: integral gain, as that kernel scales it")                  \
	X(pi2_beta, 879, 0, 4294967295, "Linux: proportional gain, likewise")  \
	X(coupling_factor, 2, 1, 255, "Linux: k")                              \
	X(drop_on_overload, 1, 0, 1, "Linux: overload drops from L too")       \
	X(step_packets, 0, 0, 1048576, "Linux: L step, packets; 0: by time")   \
	X(min_qlen_step, 0, 0, 1048576,                                        \
	    "Linux: the step is for packets that find so many in L")           \
	X(classic_protection, 10, 0, 100, "Linux: share of C, per cent")       \
	X(lifetime_us, 1000000, 1, 60000000, "longest life of a decision, us") \
	X(shield_c_us, 150000, 0, 60000000, "shield: delay of C, us; 0: none") \
	X(shield_l_us, 50000, 0, 60000000, "shield: delay of L, us; 0: none")  \
	X(shield_drops, 16384, 0, 65536,                                       \
	    "shield: share that an agent may drop, 1/65536; 65536: all")       \
	X(shield_window, 128, 16, 65536, "shield: packets of that share")      \
	X(shield_hold_us, 1000000, 1000, 600000000,                            \
	    "shield: time for which the native law then decides, us")          \
	X(shield_hits, 256, 0, 65536,                                          \
	    "shield: drops and marks of an agent, 1/256 of the law's; 0: all") \
	X(law_target_low, 8520, 1, 65536,                                      \
	    "law: least target, 1/65536 of the operator's")                    \
	X(law_target_high, 262144, 65536, 16777216,                            \
	    "law: greatest target, 1/65536 of the operator's")                 \
	X(law_alpha_low, 16384, 1, 65536,                                      \
	    "law: least integral gain, 1/65536 of the operator's")             \
	X(law_alpha_high, 131072, 65536, 16777216,                             \
	    "law: greatest integral gain, 1/65536 of the operator's")          \
	X(law_beta_low, 32768, 1, 65536,                                       \
	    "law: least proportional gain, 1/65536 of the operator's")         \
	X(law_beta_high, 393216, 65536, 16777216,                              \
	    "law: greatest proportional gain, 1/65536 of the operator's")      \
	X(law_coupling_low, 32768, 1, 65536,                                   \
	    "law: least coupling, 1/65536 of the operator's")                  \
	X(law_coupling_high, 275251, 65536, 16777216,                          \
	    "law: greatest coupling, 1/65536 of the operator's")               \
	X(law_threshold_low, 9830, 1, 65536,                                   \
	    "law: least foot of L's ramp or step, 1/65536 of the operator's")  \
	X(law_threshold_high, 445645, 65536, 16777216,                         \
	    "law: greatest foot of L's ramp or step, 1/65536 of the operator's")\
	X(law_lifetime_ms, 1000, 1, 60000,                                     \
	    "law: longest life of what an agent has set, ms")                  \
	X(prob_c_high, 65536, 0, 65536,                                        \
	    "greatest probability of C that an agent sets, 1/65536")           \
	X(prob_l_high, 65536, 0, 65536,                                        \
	    "greatest probability of L that an agent sets, 1/65536")

struct l4s_params {
#define L4S_MEMBER(name, normal, low, high, text) uint64_t name;
	L4S_PARAMETERS(L4S_MEMBER)
#undef L4S_MEMBER
};

/* The shield's bounds, in the order of the parameters shield_*. */
#define L4S_SHIELD(X)                                                          \
	X(c_us) X(l_us) X(drops) X(window) X(hold_us) X(hits)
#define L4S_BOUNDS 6	/* their number */

struct l4s_bounds {
#define L4S_MEMBER(name) uint64_t name;
	L4S_SHIELD(L4S_MEMBER)
#undef L4S_MEMBER
};

/* The tighter one of each two bounds; 0 is none of delays and hits. */
static inline struct l4s_bounds
l4s_tighter(struct l4s_bounds a, const struct l4s_bounds *b)
{
#define L4S_LESS(name) if (b->name < a.name) a.name = b->name;
#define L4S_CEILING(name)                                                      \
	if (a.name == 0 || (b->name != 0 && b->name < a.name))                 \
		a.name = b->name;
	L4S_CEILING(c_us)
	L4S_CEILING(l_us)
	L4S_LESS(drops)
	L4S_LESS(window)
	L4S_CEILING(hits)
	if (b->hold_us > a.hold_us)
		a.hold_us = b->hold_us;
#undef L4S_LESS
#undef L4S_CEILING
	return (a);
}

/*
 * The parameters of the law that a controller may set for a while, as factors
 * of the operator's, in this order: target, both gains, coupling, and the foot
 * of L's ramp or its step.
 */
#define L4S_LAW_TARGET 0
#define L4S_LAW_ALPHA 1
#define L4S_LAW_BETA 2
#define L4S_LAW_COUPLING 3
#define L4S_LAW_THRESHOLD 4
#define L4S_FACTORS 5	/* their number */
#define L4S_SAME 65536	/* the factor 1 */
#define L4S_LAW_VALUES 11	/* of l4s_law_values() */

/* One packet, in the caller's memory for as long as the core has it. */
struct l4s_packet {
	struct l4s_packet *next;	/* the core's while queued */
	uint64_t enqueued_ns;
	uint32_t length;		/* caller: IP length, bytes */
	uint32_t flow;			/* caller: any number of its flow */
	uint8_t ecn;			/* caller: codepoint on arrival */
	uint8_t queue;			/* L4S_CLASSIC or L4S_L4S */
	uint8_t decided;		/* at arrival: nothing at departure */
	uint8_t row_ready;		/* the row is complete */
	uint8_t asks;			/* a controller is asked about it */
	struct l4s_record row;
	uint8_t step_ok;		/* Linux: the step may apply */
	uint8_t later;			/* L: a set probability decides as it leaves */
};

/* What the rewards are made of, counted since the start. */
struct l4s_totals {
	uint64_t served_bytes;
	uint64_t power_bytes;	/* sum of length x (1 - normalised delay), 2^-16 */
	uint64_t delay_c_ns;	/* integral of C's normalised delay, ns */
	uint64_t delay_l_ns;	/* the same of L */
};

/* A decision from outside. */
struct l4s_decision {
	uint64_t sequence;	/* of the row that it answers */
	uint64_t expires_ns;
	uint64_t given_ns;	/* when, as far as known, for the latency */
	uint8_t queue;
	uint8_t action;
};

/* Why a decision was not taken; L4S_ACCEPTED where it was. */
enum l4s_refusal {
	L4S_ACCEPTED,
	L4S_DETACHED,	/* nobody controls */
	L4S_MALFORMED,	/* no such queue or action */
	L4S_EXPIRED,	/* its time is over */
	L4S_OUT_OF_ORDER, /* not newer than the last one taken for the queue */
	L4S_UNASKED,	/* answers a row that was not asked about (yet) */
	L4S_SHIELDED,	/* the shield has handed the queue back */
	L4S_REFUSALS
};

/* Events of the shield, for the caller to report. */
#define L4S_EVENT_NONE 0
#define L4S_EVENT_SHIELD_DELAY 1	/* value: delay, us */
#define L4S_EVENT_SHIELD_DROPS 2	/* value: agent's drops in the window */
#define L4S_EVENT_SHIELD_RELEASE 3	/* the queue may be controlled again */

struct l4s_event {
	uint64_t time_ns;
	uint64_t value;
	uint8_t kind;
	uint8_t queue;
};

#define L4S_SEEN 256		/* flows told apart, by a hash */
#define L4S_SEEN_NS 500000000	/* a flow is seen for so long */
#define L4S_LATENCY_BINS 192	/* 8 an octave of microseconds */
#define L4S_ASKS 64		/* asks whose time is kept */

/* One of the two queues; the caller may read. */
/* Decisions of a queue that wait for its packets, one each, oldest first. */
#define L4S_ANSWERS 4
struct l4s_answer {
	uint64_t expires_ns;
	uint8_t action;
};

struct l4s_queue {
	struct l4s_packet *head, *tail;
	uint64_t packets, bytes;
	/* control law; probabilities in the variant's own unit */
	uint64_t prob;		/* testbed: this queue's, 1/(2^31-1) */
	uint64_t accu;		/* testbed: 1/(2^31-1); RFC 9332: recur, 2^-32 */
	uint64_t delay_ns;	/* sojourn of the packet that left last */
	uint64_t qdelay_us;	/* testbed: the same, 0 after an idle update */
	uint64_t qdelay_old_us;
	uint64_t burst_us;
	uint64_t measurement_start_us;
	int64_t deficit;
	uint64_t update_at;	/* testbed: next update */
	uint8_t active, listed;
	/* statistics */
	uint64_t total_packets, total_bytes, drops, marks, interval_drops;
	uint64_t left, left_ns;	/* packets sent, sum of their sojourns */
	uint64_t decided[3];	/* by kernel, agent, fallback */
	uint64_t normalised;	/* delay / (delay + reference), 2^-16 */
	/* decisions from outside; the oldest that waits is answer[used % ..] */
	struct l4s_answer answer[L4S_ANSWERS];
	uint64_t answered;	/* sequence of the last decision taken, + 1 */
	uint64_t asked;		/* sequence of the last row asked about, + 1 */
	uint8_t given, used;	/* answers, modulo 256 */
	uint8_t waits;		/* the last row asked about was not answered */
	/* shield */
	uint64_t held_until_ns;	/* 0: not held */
	uint64_t tripped_ns;
	uint64_t window_packets, window_drops, window_decisions;
	uint64_t before_decisions;	/* in the window before */
	uint64_t hit_credit, drop_credit;	/* of an agent, 2^-32 */
	uint64_t calm_prob;	/* testbed: prob when nobody else decided */
	uint64_t trips;
};

/* Counters of a queue at the last look of a model. */
struct l4s_look {
	uint64_t packets, bytes, left, left_ns, marks, drops;
};

#define L4S_MOVING 7	/* features of which there are moving averages */

/* Of a model of an interval form. */
struct l4s_tick {
	uint64_t due_ns;	/* end of the interval; L4S_NEVER: no such model */
	uint64_t at_ns;		/* the last look */
	uint64_t served_bytes;
	struct l4s_look look[2];
	int64_t moving[2][L4S_MOVING];	/* averages over .25 and .5 s, 2^-28 */
	struct l4s_memory memory;
	bool sets;		/* what is in force is the model's */
};

struct l4s_core {
	struct l4s_params p;	/* in force: the operator's, or a controller's */
	struct l4s_params own;	/* the operator's */
	uint64_t rate_bps;	/* caller: of the link; 0: not known */
	uint32_t factor[L4S_FACTORS];	/* of `own`, in force */
	bool by_prob;		/* set_prob decides, not the law */
	uint64_t set_prob[2];	/* of C and L, 2^-32 */
	uint64_t law_until_ns;	/* L4S_NEVER: the operator's are in force */
	uint64_t law_sets, law_expired, law_refused;	/* how often */
	struct l4s_bounds bounds;	/* in force: the operator's, or tighter */
	struct l4s_bounds wanted;	/* of the controller, where `tightened` */
	bool tightened;
	struct l4s_queue q[2];
	uint64_t prob;		/* p': RFC 9332 2^-32, Linux 1/(2^32 - 1) */
	uint64_t calm_prob;	/* the same when nobody else decided */
	uint64_t qdelay_old_ns;	/* RFC 9332, Linux */
	int64_t credit;		/* RFC 9332, Linux: round robin */
	uint64_t update_at;	/* RFC 9332, Linux: next update */
	uint64_t rng;
	uint64_t sequence;	/* of the next packet offered */
	uint64_t integrated_ns;
	uint64_t refused[L4S_REFUSALS];	/* [L4S_ACCEPTED]: taken */
	uint64_t interval;	/* ask about each interval-th packet; 0: detached */
	uint64_t until_ask;
	const struct l4s_model *model;
	struct l4s_tick tick;
	struct l4s_totals totals;
	struct l4s_event event[2];	/* of each queue; kind NONE: none */
	uint64_t seen_ns[2][L4S_SEEN];	/* when flows last offered a packet */
	uint32_t latency[L4S_LATENCY_BINS];
	uint64_t asked[L4S_ASKS];	/* sequence + 1 of recent asks */
	uint64_t asked_ns[L4S_ASKS];
	int8_t fresh[2], old[2];	/* testbed: lists of the round robin */
};

/* Defaults of a variant. */
void l4s_params_default(struct l4s_params *p, uint64_t variant);

/* Index of the first parameter out of its range, or -1. */
int l4s_params_check(const struct l4s_params *p);

/* The operator's bounds of the shield. */
struct l4s_bounds l4s_bounds_of(const struct l4s_params *p);

/* Start with empty queues. */
void l4s_init(struct l4s_core *c, const struct l4s_params *p, uint64_t seed,
    uint64_t now_ns);

/*
 * Change the operator's parameters under traffic: packets stay queued; where
 * the variant changes, the control law starts anew. What a controller has set
 * ends. Checked parameters only.
 */
void l4s_configure(struct l4s_core *c, const struct l4s_params *p,
    uint64_t now_ns);

/*
 * A packet arrives. Returns what was done to it: L4S_ENQUEUE or L4S_MARK (it
 * is queued; on L4S_MARK the caller sets CE in the header), or L4S_DROP (the
 * caller frees it). The row is filled, and complete where row_ready is set.
 */
int l4s_offer(struct l4s_core *c, struct l4s_packet *packet, uint64_t now_ns);

/* A packet that a full buffer pushed out, to be freed; NULL: none. */
struct l4s_packet *l4s_evict(struct l4s_core *c, uint64_t now_ns);

/*
 * The next packet to send, or NULL where all is empty. *action: L4S_ENQUEUE
 * (send it), L4S_MARK (set CE and send it), L4S_DROP (free it and call again).
 */
struct l4s_packet *l4s_take(struct l4s_core *c, uint64_t now_ns, int *action);

/* When l4s_update() is due, or L4S_NEVER. */
uint64_t l4s_next_update(const struct l4s_core *c);

/* Run the updates that are due. */
void l4s_update(struct l4s_core *c, uint64_t now_ns);

/* A controller comes: asked about each interval-th packet; 0: about none. */
void l4s_attach(struct l4s_core *c, uint64_t interval);

/*
 * The controller goes: the native law decides, by the operator's parameters,
 * pending decisions are void, and the shield's bounds are the operator's again.
 */
void l4s_detach(struct l4s_core *c);

/*
 * The controller's own bounds of the shield, checked. Those in force are the
 * tighter ones of these and the operator's (the parameters), until it goes.
 */
void l4s_tighten(struct l4s_core *c, const struct l4s_bounds *wanted);

/*
 * A decision for the next packet of a queue that has none yet; where
 * L4S_ANSWERS wait, the oldest goes. See enum l4s_refusal.
 */
enum l4s_refusal l4s_decide(struct l4s_core *c, const struct l4s_decision *d,
    uint64_t now_ns);

/*
 * The controller's parameters of the native law, as factors of the operator's
 * (1/65536), for a lifetime that the operator bounds. False where a factor is
 * out of l4s_law_range(): all stay as they are.
 */
bool l4s_set_law(struct l4s_core *c, const uint32_t factor[L4S_FACTORS],
    uint32_t lifetime_ms, uint64_t now_ns);

/* The operator's bounds of a factor; where the law has no such parameter, 1. */
void l4s_law_range(const struct l4s_params *p, unsigned which, uint32_t *low,
    uint32_t *high);

/* The parameters of the variant's law and scheduler; the rest is 0. */
void l4s_law_values(const struct l4s_params *p,
    uint64_t values[L4S_LAW_VALUES]);

/*
 * The controller's probabilities of C and L (2^-31), by which packets are then
 * marked or dropped in place of the law, for a lifetime that the operator
 * bounds. L's own ramp or step stays; from 25 % of C on ECT is dropped, in L too. False where one is above the operator's bound: all stay as they are.
 */
bool l4s_set_prob(struct l4s_core *c, const uint32_t prob[2],
    uint32_t lifetime_ms, uint64_t now_ns);

/* Flows that have offered a packet of a queue lately; few of them share one. */
uint32_t l4s_flows(const struct l4s_core *c, int queue, uint64_t now_ns);

/* The operator's parameters hold again. */
void l4s_end_law(struct l4s_core *c);

/* Ends what a controller has set where its lifetime is over. */
static inline void
l4s_expire_law(struct l4s_core *c, uint64_t now_ns)
{
	if (now_ns < c->law_until_ns)
		return;
	c->law_expired++;
	l4s_end_law(c);
}

/*
 * Let a checked model decide every packet, or set the law's parameters or
 * probabilities at the end of each of its intervals, in l4s_update(); NULL:
 * none. What a controller decides or has set comes first. The caller keeps it.
 */
void l4s_set_model(struct l4s_core *c, const struct l4s_model *model,
    uint64_t now_ns);

/* The law's probability of C, or the base one of both, 1/(2^31 - 1). */
uint64_t l4s_probability(const struct l4s_core *c);

/* Brings the totals up to now, and returns them. */
const struct l4s_totals *l4s_measure(struct l4s_core *c, uint64_t now_ns);

/*
 * Latency of decisions, from ask to answer, since the controller came: quantile
 * (in 1/1000) in us, 0 without decisions.
 */
uint64_t l4s_latency_us(const struct l4s_core *c, uint64_t per_mille);

#endif
