/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The wire protocol and the core: entries from its state, its types from
 * commands. What both devices, FreeBSD's module and Linux's router, share.
 */
#ifndef L4S_ENTRY_H
#define L4S_ENTRY_H

#include "l4s_core.h"
#include "l4s_wire.h"

/* An entry of zeros with its header. */
void l4s_entry_start(struct l4s_entry *entry, uint8_t kind, uint64_t tag);

/* The constants of this protocol and record, and the operator's variant and law. */
void l4s_entry_hello(struct l4s_hello *hello, const struct l4s_params *p);

/* A finished row, or for an ask the row without what was decided. */
void l4s_entry_row(struct l4s_row *row, const struct l4s_packet *packet,
    const struct l4s_totals *totals);
void l4s_entry_ask(struct l4s_row *row, const struct l4s_packet *packet,
    const struct l4s_totals *totals);

void l4s_entry_event(struct l4s_event_body *body,
    const struct l4s_event *event);

/* Counters of the queues; who controls is the caller's to add. */
void l4s_entry_status(struct l4s_status *status, const struct l4s_core *c);

/* Bounds in force, where there is no queue yet. */
void l4s_entry_bounds(struct l4s_status *status,
    const struct l4s_bounds *bounds);

/* The law in force, and what it is judged by. */
void l4s_entry_law(struct l4s_law *law, struct l4s_core *c, uint64_t now_ns);

uint32_t l4s_fit(uint64_t value);

/* Whether a command is of this protocol. */
bool l4s_command_valid(const struct l4s_command *command);

struct l4s_decision l4s_command_decision(const struct l4s_command *command);

/* CONFIGURE's bounds of the shield; false: out of range. */
bool l4s_command_bounds(const struct l4s_command *command,
    struct l4s_bounds *bounds);

/* SET_LAW or SET_PROB; false: out of the operator's bounds. */
bool l4s_command_law(const struct l4s_command *command, struct l4s_core *c,
    uint64_t now_ns);

#endif
