/*
 * SPDX-License-Identifier: MIT
 *
 * Many packets through the module behind a link of constant rate, for
 * comparison with the simulator: the same events in the same order.
 */
#include "kernel.h"

struct harness_arrival {
	int64_t time_ns;
	uint32_t length;
	uint32_t flow;
	uint32_t ecn;
	uint32_t unused;
};

struct drive {
	uint32_t number;
	double ns_per_byte;
	int64_t free_at;	/* INT64_MAX: the link is idle */
	int fd;
	struct l4s_record *rows;
	int64_t count, first, got;
};

static void
serve(struct drive *d)
{
	struct harness_sent sent;

	d->free_at = INT64_MAX;
	if (harness_dequeue(d->number, 0, &sent) == 1)
		d->free_at = harness_now() +
		    (int64_t)(sent.length * d->ns_per_byte);
}

/* Take the finished rows; a lost one ends the run. */
static int
collect(struct drive *d)
{
	struct l4s_entry entry[64];
	int64_t n, at;

	while ((n = harness_read(d->fd, entry, sizeof(entry), 1)) > 0) {
		for (int i = 0; i < (int)(n / (int64_t)sizeof(entry[0])); i++) {
			if (entry[i].lost > 0)
				return (-1);
			if (entry[i].kind != L4S_ROW)
				continue;
			at = (int64_t)entry[i].u.row.record.sequence - d->first;
			if (at < 0 || at >= d->count)
				return (-1);
			d->rows[at] = entry[i].u.row.record;
			d->got++;
		}
	}
	return (n == -EWOULDBLOCK ? 0 : -1);
}

/* Everything before a time: the link before timers, timers before arrivals. */
static void
run_until(struct drive *d, int64_t to_ns)
{
	int64_t timer;

	for (;;) {
		timer = sim_callout_ns();
		if (d->free_at <= to_ns && d->free_at <= timer) {
			sim_pass(d->free_at);
			serve(d);
		} else if (timer <= to_ns) {
			harness_advance(timer);
		} else {
			break;
		}
	}
	harness_advance(to_ns);
}

/*
 * Offer packets to a scheduler behind a link of constant rate. The row of
 * sequence number first + i goes to rows[i]. Rows gained, or -1.
 */
int64_t harness_drive(uint32_t number, double ns_per_byte,
    const struct harness_arrival *arrivals, int64_t count, int64_t first,
    struct l4s_record *rows);
int64_t
harness_drive(uint32_t number, double ns_per_byte,
    const struct harness_arrival *arrivals, int64_t count, int64_t first,
    struct l4s_record *rows)
{
	struct drive d = { .number = number, .ns_per_byte = ns_per_byte,
	    .free_at = INT64_MAX, .rows = rows, .count = count,
	    .first = first };
	struct l4s_command command = { .magic = L4S_WIRE_MAGIC,
	    .version = L4S_WIRE_VERSION, .kind = L4S_SUBSCRIBE,
	    .args = { 1 } };
	int failed = 0;

	d.fd = harness_open(FREAD | FWRITE);
	if (d.fd < 0 || harness_write(d.fd, &command, sizeof(command)) < 0)
		return (-1);
	for (int64_t i = 0; i < count && !failed; i++) {
		run_until(&d, arrivals[i].time_ns);
		(void)harness_arrive(number, 0, arrivals[i].length,
		    arrivals[i].flow, arrivals[i].ecn, 0);
		if (d.free_at == INT64_MAX)
			serve(&d);
		if (i % 32 == 31)
			failed = collect(&d);
	}
	while (!failed && d.free_at != INT64_MAX) {
		run_until(&d, d.free_at);
		failed = collect(&d);
	}
	failed = failed || collect(&d) != 0;
	(void)harness_close(d.fd);
	return (failed ? -1 : d.got);
}
