/*
 * SPDX-License-Identifier: MIT
 *
 * The daemon's parts; each calls only those that are named after it here.
 * main.c waits and calls, clients.c is the connections of clients, commands.c
 * what they ask for, device.c the end towards the queue, relay.c what the queue
 * says, control.c who controls it, tell.c what the daemon itself says, clock.c
 * the time.
 *
 * Nothing here waits for anybody. What cannot be sent now stays in a table of
 * fixed size; what does not fit there is dropped and counted (rows), makes its
 * sender wait (commands), or ends the connection (the queue's).
 */
#ifndef L4S_BRIDGE_H
#define L4S_BRIDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "l4s_wire.h"
#include "listener.h"
#include "options.h"
#include "outbox.h"
#include "pass.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
    "entries and commands are little-endian, and so must this machine be");

/* What events are tagged with. */
enum { TAG_LISTENER, TAG_SIGNAL, TAG_DEVICE, TAG_CLIENT };

#define NOBODY (-1)
#define MAX_PENDING 8u		/* questions of one client to the queue */
#define COMMANDS_READ 64u	/* at a time */

/* A client's question that the queue has not answered yet. */
struct pending {
	uint64_t device_tag;	/* 0: free */
	uint64_t client_tag;
	uint8_t kind;
};

struct client {
	int fd;			/* -1: free */
	unsigned watched;
	bool rows;		/* subscribed */
	bool blocked;		/* the socket is full */
	int passing;		/* a descriptor to go with what is sent, or -1 */
	bool voided;		/* controlled a queue that was lost */
	bool closing;		/* as soon as all is sent, or by close_by_ms */
	uint64_t close_by_ms;
	uint64_t uncontrolled;	/* decisions without control */
	unsigned pending_count;
	struct pending pending[MAX_PENDING];
	size_t in_bytes;
	uint8_t in[COMMANDS_READ * L4S_COMMAND_SIZE];
	struct outbox out;
};

#define DEVICE_ENTRIES 1024u	/* read at a time */
#define DEVICE_COMMANDS 1024u	/* that wait to be written */

struct device {
	int fd;			/* -1: away */
	int passed;		/* a descriptor that came, or -1 */
	bool there;		/* has said HELLO */
	bool rows;		/* subscribed */
	unsigned watched;
	unsigned failures;	/* since the last HELLO */
	uint64_t act_at_ms;	/* try again; before HELLO: give up */
	uint64_t clock_offset_us;	/* its clock less ours */
	uint64_t serial;
	struct l4s_hello hello;
	size_t in_bytes, out_bytes;
	uint8_t *in;		/* [DEVICE_ENTRIES * L4S_ENTRY_SIZE] */
	uint8_t out[DEVICE_COMMANDS * L4S_COMMAND_SIZE];
	char complaint[256];	/* the last one, to say it once */
};

struct bridge {
	const struct options *options;
	int events;
	bool again;		/* there may be something to send */
	bool listening;		/* the listener is watched */
	struct listener listener;
	int controller;		/* index of a client, or NOBODY */
	bool announced;		/* the queue has accepted it */
	struct client *clients;	/* [options->clients] */
	struct device device;
};

static inline int
client_index(const struct bridge *b, const struct client *c)
{
	return (int)(c - b->clients);
}

/* clients.c */
bool clients_init(struct bridge *b);
void clients_end(struct bridge *b);
void clients_accept(struct bridge *b);
void clients_tick(struct bridge *b);
void client_happened(struct bridge *b, unsigned index, unsigned what);
void client_close(struct bridge *b, struct client *c);
bool client_may_ask(const struct client *c);
/* Send what can be sent, and take commands that had to wait. */
void clients_settle(struct bridge *b);

/* commands.c */
void command_take(struct bridge *b, struct client *c,
    const struct l4s_command *command);

/* device.c */
bool device_init(struct bridge *b);
void device_end(struct bridge *b);
void device_tick(struct bridge *b);
void device_happened(struct bridge *b, unsigned what);
void device_flush(struct bridge *b);
void device_lose(struct bridge *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* False: no room (a decision), or the device is lost (others). */
bool device_send(struct bridge *b, const struct l4s_command *command);
/* Subscribe to rows while somebody wants them. */
void device_subscribe(struct bridge *b);
/* Nobody controls any more, and the queue is told. */
void device_release(struct bridge *b);

/* relay.c */
/* An entry of the device, other than HELLO. */
void relay_entry(struct bridge *b, const struct l4s_entry *entry);
void relay_device_lost(struct bridge *b);
void relay_device_back(struct bridge *b);

/* control.c */
/* From ATTACH on, before the queue has answered. */
void control_begin(struct bridge *b, struct client *c);
/* The queue's answer to ATTACH. */
void control_answered(struct bridge *b, const struct client *c, bool accepted,
    uint64_t interval);
void control_end(struct bridge *b);
/* Along with the queue. */
void control_lost(struct bridge *b);

/* tell.c */
void entry_start(struct l4s_entry *entry, enum l4s_entry_kind kind,
    uint64_t tag);
void tell_error(struct client *c, const struct l4s_command *command,
    enum l4s_error_code code, const char *text);
void tell_hello(struct bridge *b, struct client *c);
void tell_event(struct bridge *b, struct client *c, enum l4s_event_kind kind,
    uint64_t value);
void tell_all(struct bridge *b, enum l4s_event_kind kind, uint64_t value);

/* clock.c */
uint64_t now_us(void);
uint64_t now_ms(void);

#endif
