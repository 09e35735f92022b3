/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the files of the module share.
 *
 * Locks. One mutex, l4s_mtx, guards everything: the cores, the instances, the
 * ring, the descriptors, the parameters. dummynet holds its uh_mtx where it
 * calls us, so the order is
 *
 *	dummynet's uh_mtx -> l4s_mtx -> those of select, kqueue, callout
 *
 * and nothing here takes uh_mtx. Nothing sleeps, copies to or from user space,
 * or allocates with M_WAITOK under either.
 *
 * The one callout runs under l4s_mtx (callout_init_mtx) and serves every
 * instance in the list. It refers to none of them by itself, so an instance
 * that has left the list can be freed at once, and only unloading waits for it.
 */
#ifndef L4S_KERN_H
#define L4S_KERN_H

#include "l4s_entry.h"

#define L4S_REPLIES 8		/* entries kept for one descriptor alone */
#define L4S_OPENS 32
#define L4S_BATCH 64		/* entries of one read(2) */
#define L4S_RING_NORMAL 8192
#define L4S_RING_LEAST 16
#define L4S_RING_MOST 262144

/* A packet while the core has it. */
struct l4s_item {
	struct l4s_packet packet;	/* first: the core gives this back */
	struct l4s_totals totals;	/* at the arrival */
	struct mbuf *m;
	bool reported;
};

/* What dummynet keeps for a configured scheduler, after its own. */
struct l4s_schk {
	bool counted;
};

/* An instance of the scheduler. dummynet looks at the queue after _si. */
struct l4s_si {
	struct dn_sch_inst _si;
	struct dn_queue main_q;
	struct l4s_core core;
	struct vnet *vnet;
	uint32_t number;	/* of `ipfw sched` */
	TAILQ_ENTRY(l4s_si) link;
};

/*
 * The core of the controlled instance after dummynet has expired that one
 * because it was idle, until it makes the next: sequence numbers and counters
 * go on.
 */
struct l4s_parked {
	struct l4s_core core;
	struct vnet *vnet;
	uint32_t number;	/* 0: nothing here */
};

/* An open descriptor of /dev/l4s. */
struct l4s_client {
	LIST_ENTRY(l4s_client) link;
	uint64_t cursor;	/* number of the next entry of the ring */
	uint64_t rows_from, asks_from;	/* from these on they are its */
	uint64_t lost_total;
	uint32_t lost;		/* since the last entry that it got */
	unsigned int first_reply, replies;
	bool subscribed, sleeps, selects;
	struct selinfo select;
	struct l4s_entry reply[L4S_REPLIES];
};

struct l4s_softc {
	struct cdev *dev;
	uma_zone_t zone;
	struct callout callout;
	uint64_t armed_at;	/* L4S_NEVER: not */
	uint64_t last_ns;
	TAILQ_HEAD(, l4s_si) instances;
	struct l4s_si *current;	/* the one that /dev/l4s speaks of */
	struct l4s_parked parked;
	LIST_HEAD(, l4s_client) clients;
	struct l4s_client *controller;
	uint64_t interval;	/* of the controller */
	struct l4s_bounds bounds;	/* that it asked for, where `tightened` */
	bool tightened;
	struct l4s_model *model;
	struct l4s_entry *ring;
	uint64_t head;		/* number of the next entry written */
	uint64_t session;
	unsigned int opens, subscribers;
	bool leaving;		/* the module is being unloaded */
	/* sysctls */
	struct l4s_params params;
	uint32_t ring_entries;
	uint32_t instance;	/* number of the scheduler; 0: the first */
	uint32_t log;
	uint64_t packets, rows, rows_lost, no_memory;
};

extern struct mtx l4s_mtx;
extern struct l4s_softc l4s_softc;

MALLOC_DECLARE(M_L4S);

/* l4s_instance.c; l4s_mtx is held */
uint64_t l4s_now(void);
void l4s_arm(const struct l4s_core *c);
void l4s_choose(void);
void l4s_apply(const struct l4s_params *p);
struct l4s_core *l4s_current(void);
void l4s_join(struct l4s_si *si, uint64_t rate_bps);
void l4s_part(struct l4s_si *si);

/* l4s_packet.c */
struct mbuf *l4s_parse(struct mbuf *m, struct l4s_packet *packet);

/* l4s_ring.c; l4s_mtx is held */
bool l4s_watched(void);
void l4s_report_row(const struct l4s_item *item);
void l4s_report_ask(const struct l4s_item *item);
void l4s_report_events(struct l4s_core *c);
struct l4s_entry *l4s_reply(struct l4s_client *client, uint8_t kind,
    uint64_t tag);
bool l4s_readable(struct l4s_client *client);
unsigned int l4s_take_entries(struct l4s_client *client,
    struct l4s_entry *entries, unsigned int room);
void l4s_wake(struct l4s_client *client);
/* not held: it sleeps */
int l4s_ring_resize(uint32_t entries);

/* l4s_control.c; l4s_mtx is held */
void l4s_hello(struct l4s_client *client);
int l4s_command(struct l4s_client *client, const struct l4s_command *command);
int l4s_decide_now(struct l4s_client *client,
    const struct l4s_command *command);
int l4s_law_now(struct l4s_client *client, const struct l4s_command *command,
    struct l4s_law *law);
void l4s_status(const struct l4s_client *client, struct l4s_status *status);
void l4s_leave(struct l4s_client *client);

/* l4s_dev.c; not held: they sleep */
int l4s_dev_attach(void);
void l4s_dev_detach(void);

#endif
