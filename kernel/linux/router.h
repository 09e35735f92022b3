/*
 * SPDX-License-Identifier: MIT
 *
 * The Linux router: what its parts share. A packet comes from the senders' TUN
 * device, passes the core and the link, waits in a delay line and leaves by
 * the receivers' TUN device; the way back has the delay line alone.
 */
#ifndef L4S_ROUTER_H
#define L4S_ROUTER_H

#include <sys/types.h>

#include <stddef.h>
#include <stdint.h>

#include "l4s_entry.h"

#define ROUTER_BATCH 64		/* packets read of a device in one turn */
#define ROUTER_DELAYS 256	/* addresses with a delay of their own */

/* ---- config.c: the configuration file ---- */

struct delay {
	uint32_t address;	/* IPv4, network order */
	uint64_t ns;		/* one way, each direction */
};

struct rate_step {
	uint64_t at_ns;		/* since the first packet */
	uint64_t rate_bps;
};

struct config {
	struct l4s_params params;
	uint64_t rate_bps;	/* 0: unshaped */
	uint64_t packets, ring, seed, mtu;
	struct delay delay[ROUTER_DELAYS];	/* by address */
	uint32_t delays;
	uint64_t default_ns;
	struct rate_step *step;
	size_t steps;
};

/* 0, or -1 after a line on stderr. */
int config_read(struct config *config, const char *path);
/* A checked model, to be freed; NULL after a line on stderr. */
struct l4s_model *config_model(const char *path);
/* A bound of the shield from the command line: NAME=NUMBER. */
int config_shield(struct config *config, char *text);

/* ---- stats.c: histograms and the report ---- */

#define HIST_BINS 496		/* 8 an octave of 64 bits */

struct hist {
	uint64_t bin[HIST_BINS];
	uint64_t count, sum, max;
};

void hist_add(struct hist *hist, uint64_t value);
uint64_t hist_quantile(const struct hist *hist, unsigned per_mille);

struct direction {
	uint64_t packets, bytes;	/* read of the device */
	uint64_t delivered, delivered_bytes;
	uint64_t malformed, oversized;	/* no IP; longer than mtu */
	uint64_t pool_missed;		/* dropped: the pool was empty */
	uint64_t write_failed;
};

/* By the codepoint on arrival: L4S_L4S is ECT(1) and CE. */
struct class_stats {
	uint64_t packets, bytes, marks, drops, served_packets, served_bytes;
	struct hist sojourn_ns;
};

struct stats {
	struct direction forward, reverse;
	struct class_stats class[2];
	struct hist late_ns;	/* deliveries behind their schedule */
	uint64_t started_ns;
};

/* ---- packet.c: the pool and the IP header ---- */

struct packet {
	struct l4s_packet core;	/* first: what the core links is this */
	struct packet *next;
	struct l4s_totals totals;
	uint64_t arrived_ns;
	uint64_t release_ns;
	uint64_t reader;	/* connection that waits for its row, or 0 */
	uint32_t length;
	uint32_t line;		/* of the delay */
	uint8_t class;
	uint8_t *data;		/* mtu + 1 bytes */
};

struct pool {
	struct packet *packets, *free;
	uint8_t *data;
	size_t count, used, stride;	/* used: taken at least once */
};

int pool_make(struct pool *pool, uint64_t count, uint64_t mtu);
struct packet *pool_get(struct pool *pool);
void pool_put(struct pool *pool, struct packet *packet);

#define FLOWS 4096		/* slots: a power of two */

struct flows {
	uint64_t key[FLOWS];
	uint32_t index[FLOWS];
	uint32_t count;
};

struct header {
	uint8_t version, ecn;
	uint32_t source, destination;	/* IPv4 alone; network order */
	uint64_t flow_key;
};

/* 0, or -1: no IP packet of this length. */
int header_parse(struct header *header, const uint8_t *data, size_t length);
/* Number of the flow, in the order of their first packets. */
uint32_t flow_index(struct flows *flows, uint64_t key);
/* Sets CE; -1 where the packet is not ECN-capable. */
int l4s_set_ce(uint8_t *data, size_t length);

/* ---- tun.c ---- */

/* where: NETNS:IFNAME. A non-blocking descriptor, or -1 after a line. */
int tun_open(const char *where);

/* ---- device.c, direct.c, ring.c: the sockets of the wire protocol ---- */

struct ring {
	struct l4s_entry *entry;
	uint32_t size, head, count;	/* head: the oldest */
};

int ring_make(struct ring *ring, uint32_t size);
/* Room for one more; NULL where it is full. */
struct l4s_entry *ring_push(struct ring *ring);
/* The oldest, which leaves; NULL: empty. Valid until the next push. */
const struct l4s_entry *ring_pop(struct ring *ring);

#define DEVICE_ANSWERS 256
#define DEVICE_STAGE 128
#define DEVICE_COMMANDS 64
#define DEVICE_TURN 8		/* stages sent in one turn */

#define DIRECT_COMMANDS 16	/* read in one go */

struct direct {
	int fd;			/* -1: none */
	int passing;		/* its other end, on its way out, or -1 */
	uint8_t input[DIRECT_COMMANDS * L4S_COMMAND_SIZE];
	size_t received;
	uint32_t lost;		/* asks, not yet told */
};

struct device {
	const char *path;
	int listener, peer;	/* -1: none */
	uint64_t session;
	uint64_t connection;	/* number of the connection, from 1 */
	int subscribed, attached, blocked;
	struct direct direct;	/* of whom is attached */
	struct ring rows, answers;
	/* what is on its way: entries that can no longer be dropped */
	struct l4s_entry stage[DEVICE_STAGE];
	size_t staged, sent;	/* bytes */
	uint8_t input[DEVICE_COMMANDS * L4S_COMMAND_SIZE];
	size_t received;
	uint32_t lost;		/* not yet told */
	uint64_t lost_here;	/* of this connection */
	uint64_t rows_sent, asks_sent, rows_lost, connections, refused;
};

struct router;

int device_listen(struct device *device, const char *path, uint64_t ring);
void device_close(struct device *device);
/* Events of poll() that its connection waits for. */
short device_wants(const struct device *device);
void device_accept(struct router *router);
void device_read(struct router *router);
void device_flush(struct router *router);
void device_ask(struct router *router, const struct packet *packet);
void device_row(struct router *router, struct packet *packet);
void device_events(struct router *router);

int direct_open(struct direct *direct);
void direct_close(struct direct *direct);
/* An ask has gone that way, or is lost; -1: there is no such way. */
int direct_ask(struct device *device, const struct packet *packet);
/* The decisions that have come that way. */
void direct_read(struct router *router, uint64_t now_ns);

/* ---- commands.c: what a connection may ask ---- */

void device_hello(struct router *router, struct l4s_entry *entry);
void device_error(struct l4s_entry *entry, unsigned code, unsigned command,
    const char *text);
void device_decide(struct router *router, const struct l4s_command *command,
    uint64_t given_ns, uint64_t now_ns);
/* 0, or -1: answered by an error, and the connection must be closed. */
int device_command(struct router *router, const struct l4s_command *command,
    uint64_t now_ns);

/* ---- pipe.c: queue, link, delay lines ---- */

struct line {
	struct packet *head, *tail;
};

struct pipe {
	/* Of the link now; agents know the configured rate alone. */
	uint64_t rate_bps;
	uint64_t free_ns;	/* the link's last packet has left */
	uint64_t remainder;	/* of that division, so that nothing is lost */
	int busy;		/* something waits for free_ns */
	uint64_t first_ns;	/* of the first packet, or 0 */
	size_t step;		/* next of config.step */
	struct line forward[ROUTER_DELAYS + 1], reverse[ROUTER_DELAYS + 1];
};

struct router {
	struct config config;
	struct l4s_core core;
	struct l4s_model *model;	/* NULL: none */
	struct pipe pipe;
	struct pool forward, reverse;
	struct flows flows;
	struct device device;
	struct stats stats;
	int senders, receivers;	/* TUN descriptors */
};

uint64_t clock_ns(void);
/* All that was scheduled up to now, in order. */
void pipe_advance(struct router *router, uint64_t now_ns);
/* Packets that have waited long enough leave. */
void pipe_release(struct router *router, uint64_t now_ns);
/* When the next thing is due, or L4S_NEVER. */
uint64_t pipe_next(const struct router *router);
/* Reads up to ROUTER_BATCH packets; their number, or -1: device has gone. */
int pipe_read_forward(struct router *router);
int pipe_read_reverse(struct router *router);

int stats_write(const struct router *router, const char *path);

#endif
