/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The wire protocol, the same on /dev/l4s, between the Linux router and the
 * daemon, and between the daemon and its clients: entries of 192 bytes one
 * way, commands of 64 bytes the other, both little-endian, nothing else.
 *
 * The first entry of every connection is HELLO. A reader sends SUBSCRIBE and
 * then gets ROW entries; a controller sends ATTACH and then gets an ASK for
 * each interval-th packet, which it may answer by DECIDE until the ask's
 * time + lifetime. Nothing ever waits for an answer: the packet that was asked
 * about has been decided, an answer is used for the queue's next packet that
 * has none yet (a few wait in line), and where none has come in time the native
 * law decides. DECIDE itself is never
 * answered; STATUS counts what was refused, and why. CONFIGURE can make the
 * shield's bounds tighter than the operator's, not wider, and ends with the
 * control: its answer, STATUS, has those in force. SET_LAW sets parameters
 * of the native law for a while, which then still decides every packet (ATTACH
 * with an interval of 0: no asks); HELLO has their bounds, outside of which they
 * are refused. After their lifetime without another SET_LAW, and where the
 * control ends, the operator's parameters hold again. SET_PROB is the same with
 * probabilities of C and L that take the law's place, within the shield's bounds;
 * the later one of both commands holds. Where entries are lost
 * because a reader is slow, the oldest go, and the next entry that comes tells
 * how many.
 *
 * A server that offers DIRECT gives a controller who asks for it a socket of the
 * queue's own, as a descriptor that comes with (or before) the answer, STATUS.
 * From then on asks come there, in the same entries, and DECIDE may be sent
 * there, nothing else; all else stays where it is. The queue looks for decisions
 * there when its next packet comes; their tag tells when they were given, in ns
 * of its clock (0: not known), for the latency in STATUS. That socket ends with
 * the control. Without it, where it has ended, or where no descriptor came (a
 * forwarded connection), asks and answers take the way of all others.
 */
#ifndef L4S_WIRE_H
#define L4S_WIRE_H

#include "l4s_record.h"
#include "l4s_types.h"

#define L4S_WIRE_MAGIC 0x344c	/* "L4" */
#define L4S_WIRE_VERSION 1
#define L4S_ENTRY_SIZE 192
#define L4S_COMMAND_SIZE 64
#define L4S_NO_PROB 0xffffffff	/* no probability is set */

enum l4s_entry_kind {
	L4S_HELLO = 1,
	L4S_ROW = 2,	/* a finished row */
	L4S_ASK = 3,	/* a row before its decision; answer by DECIDE */
	L4S_EVENT = 4,
	L4S_STATUS = 5,	/* answer to GET_STATUS, ATTACH, DETACH, CONFIGURE, DIRECT */
	L4S_ERROR = 6,	/* answer to a command that was refused */
	L4S_LAW = 7	/* answer to SET_LAW, GET_LAW, SET_PROB */
};

enum l4s_command_kind {
	L4S_SUBSCRIBE = 1,	/* args[0]: 1 rows, 0 no rows */
	L4S_ATTACH = 2,		/* args[0]: decision interval, packets; 0: none */
	L4S_DETACH = 3,
	L4S_DECIDE = 4,		/* sequence, expires_us, queue, action */
	L4S_CONFIGURE = 5,	/* controller: args[0..5] the six shield_* */
	L4S_GET_STATUS = 6,
	L4S_DIRECT = 7,		/* controller: where HELLO offers it */
	/*
	 * Controller: args[0..4] target, alpha, beta, coupling, L threshold,
	 * as factors of the operator's, 1/65536; args[5] lifetime, ms.
	 */
	L4S_SET_LAW = 8,
	L4S_GET_LAW = 9,
	/* Controller: args[0..1] of C, L, 2^-31; args[2] lifetime, ms. */
	L4S_SET_PROB = 10
};

enum l4s_event_kind {
	/* 1, 2, 3: shield tripped by delay, by drops, released (l4s_core.h) */
	L4S_EVENT_CONTROLLER_CAME = 16,
	L4S_EVENT_CONTROLLER_LEFT = 17,
	L4S_EVENT_DEVICE_LOST = 18,	/* the daemon lost the queue */
	L4S_EVENT_DEVICE_BACK = 19	/* and has it again: new session */
};

enum l4s_error_code {
	L4S_E_MALFORMED = 1,	/* magic, version, kind, argument: closed */
	L4S_E_BUSY = 2,		/* somebody else controls */
	L4S_E_NOT_CONTROLLER = 3,
	L4S_E_REFUSED = 4,	/* by user: closed */
	L4S_E_NO_DEVICE = 5,	/* the daemon has no queue now */
	L4S_E_TOO_MANY = 6,	/* clients: closed */
	L4S_E_NOT_OFFERED = 7,
	/* SET_LAW, SET_PROB: the operator's; all stays as it was */
	L4S_E_OUT_OF_BOUNDS = 8
};

struct L4S_PACKED l4s_hello {
	uint16_t schema_version;
	uint16_t record_size;
	uint16_t entry_size;
	uint16_t command_size;
	uint8_t layout[8];	/* digest of the record's layout */
	uint64_t session;	/* another number after each start */
	uint64_t clock_us;	/* the clock of time_us and expires_us, now */
	uint64_t rate_bps;	/* of the link; 0: not known */
	uint32_t ring_entries;
	uint8_t variant;	/* L4S_TESTBED, L4S_RFC9332, L4S_LINUX */
	uint8_t direct;		/* 1: DIRECT is offered */
	uint8_t reserved[2];
	char name[32];		/* of the server, NUL-padded */
	/* bounds of SET_LAW's factors, both 65536 where the law has none */
	uint32_t law_low[5];
	uint32_t law_high[5];
	uint32_t law_lifetime_ms;	/* longest; 0: SET_LAW is not offered */
	uint32_t prob_high[2];	/* of SET_PROB, 1/65536; both 0: not offered */
	/* operator's: l4s_law_values(), at most 2^32 - 1; all 0: not told */
	uint32_t law_value[11];
};

struct L4S_PACKED l4s_row {
	struct l4s_record record;
	uint8_t reserved;
	uint64_t served_bytes;	/* struct l4s_totals, at the arrival */
	uint64_t power_bytes;
	uint64_t delay_c_ns;
	uint64_t delay_l_ns;
};

struct L4S_PACKED l4s_event_body {
	uint64_t time_us;
	uint64_t value;
	uint8_t kind;
	uint8_t queue;
};

struct L4S_PACKED l4s_status {
	uint64_t clock_us;
	uint64_t packets[2];	/* offered to C, L */
	uint64_t agent[2];	/* of them decided by the controller or model */
	uint64_t fallback[2];	/* asked about and not answered in time */
	uint64_t drops[2];
	uint64_t marks[2];
	uint64_t lost;		/* rows lost to this reader */
	uint32_t refused[7];	/* decisions by enum l4s_refusal; [0] taken */
	uint32_t trips[2];	/* of the shield */
	uint32_t interval;	/* 0: nobody is asked */
	uint32_t latency_p50_us;	/* from ask to answer */
	uint32_t latency_p99_us;
	uint8_t held;		/* bit 0 C, bit 1 L: held by the shield */
	uint8_t model;		/* a model is loaded */
	uint8_t controls;	/* you are the controller */
	uint8_t reserved;
	uint32_t shield[6];	/* bounds in force, as CONFIGURE's args */
};

/* What is counted in 32 bits starts over after 2^32. Pairs are C, L. */
struct L4S_PACKED l4s_law {
	uint64_t clock_us;
	uint64_t rate_bps;	/* of the link; 0: not known */
	uint64_t offered_bytes[2];
	uint64_t left_ns[2];	/* sum of the sojourns of what was sent */
	uint64_t served_bytes;	/* struct l4s_totals */
	uint64_t power_bytes;
	uint64_t delay_c_ns;
	uint64_t delay_l_ns;
	uint32_t offered[2];	/* packets, as the next three */
	uint32_t left[2];	/* sent */
	uint32_t marks[2];
	uint32_t drops[2];
	uint32_t queued_bytes[2];
	uint32_t prob;		/* of the law, 1/(2^31 - 1); testbed: of C */
	uint32_t factor[5];	/* in force, as SET_LAW's args */
	uint32_t lasts_ms;	/* for so long still; 0: the operator's hold */
	uint32_t sets;		/* how often set, */
	uint32_t expired;	/* expired, */
	uint32_t refused;	/* out of bounds */
	uint32_t set_prob[2];	/* in force, 2^-31; L4S_NO_PROB: the law decides */
	uint16_t flows[2];	/* that offered a packet in the last .5 s */
};

struct L4S_PACKED l4s_error {
	uint16_t code;
	uint8_t command;	/* kind of the command, as far as known */
	uint8_t reserved;
	char text[160];		/* NUL-padded */
};

struct L4S_PACKED l4s_entry {
	uint16_t magic;
	uint8_t version;
	uint8_t kind;
	uint32_t lost;		/* entries lost just before this one */
	uint64_t tag;		/* of the command that it answers, or 0 */
	union {
		struct l4s_hello hello;
		struct l4s_row row;	/* ROW and ASK */
		struct l4s_event_body event;
		struct l4s_status status;
		struct l4s_error error;
		struct l4s_law law;
		uint8_t bytes[176];
	} u;
};

struct L4S_PACKED l4s_command {
	uint16_t magic;
	uint8_t version;
	uint8_t kind;
	uint8_t queue;
	uint8_t action;
	uint16_t reserved;	/* 0 */
	uint64_t tag;		/* echoed in the answer */
	uint64_t sequence;
	uint64_t expires_us;
	uint32_t args[8];
};

_Static_assert(sizeof(struct l4s_record) == L4S_RECORD_SIZE, "record");
_Static_assert(sizeof(struct l4s_row) == 168, "row");
_Static_assert(sizeof(struct l4s_hello) <= 176, "hello");
_Static_assert(sizeof(struct l4s_status) <= 176, "status");
_Static_assert(sizeof(struct l4s_law) <= 176, "law");
_Static_assert(sizeof(struct l4s_error) <= 176, "error");
_Static_assert(sizeof(struct l4s_entry) == L4S_ENTRY_SIZE, "entry");
_Static_assert(sizeof(struct l4s_command) == L4S_COMMAND_SIZE, "command");

#endif
