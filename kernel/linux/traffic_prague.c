/*
 * SPDX-License-Identifier: MIT
 *
 * A paced UDP source with Prague's law: test traffic, not TCP Prague.
 *
 * It keeps what it may send in a virtual round trip (25 ms, or the real one
 * where that is longer), sends that paced, adds a packet to it each virtual
 * round trip, and takes alpha / 2 of it at most once in one that has marks.
 */
#include <sys/socket.h>

#include <string.h>
#include <unistd.h>

#include "traffic.h"

#define VIRTUAL_RTT 25e6	/* ns */
#define BURST 250000u		/* ns of sending late that may be made up */

struct prague {
	double window;		/* packets in a virtual round trip */
	double alpha, srtt, min_rtt;	/* ns */
	uint64_t sent, received, ce, lost;
	uint64_t given_up;	/* not expected to be heard of any more */
	uint64_t alpha_at, alpha_received, alpha_ce;
	uint64_t cut_at, heard_at, next_ns;
	uint64_t quiet_at;	/* since then nothing was marked or lost */
	int fd;
	int steady;		/* the start is over */
};

static double
virtual_rtt(const struct prague *p)
{
	return (p->srtt > VIRTUAL_RTT ? p->srtt : VIRTUAL_RTT);
}

/* At most one cut in a virtual round trip, whatever the reason. */
static void
cut(struct prague *p, double factor, uint64_t now)
{
	if (p->cut_at != 0 && (double)(now - p->cut_at) < virtual_rtt(p))
		return;
	p->cut_at = now;
	p->window = p->window * factor > 2 ? p->window * factor : 2;
}

static void
update_alpha(struct prague *p, uint64_t now)
{
	uint64_t received = p->received - p->alpha_received;
	double marked;

	if (received == 0 || (double)(now - p->alpha_at) < virtual_rtt(p))
		return;
	marked = (double)(p->ce - p->alpha_ce) / (double)received;
	if (p->steady)
		p->alpha += (marked - p->alpha) / 16;
	p->alpha_at = now;
	p->alpha_received = p->received;
	p->alpha_ce = p->ce;
}

/*
 * Packets by which a virtual round trip lets the window grow: one, and after
 * many without a mark (7, and more the faster it is) a millisecond's worth.
 */
static double
growth(const struct prague *p, const struct options *o, uint64_t now)
{
	double per_s = p->window * 1e9 / virtual_rtt(p), quiet;

	quiet = (double)(now - p->quiet_at) / virtual_rtt(p);
	if (quiet < 7 + per_s * (double)o->size / 1.92e6 || per_s < 1000)
		return (1);
	return (per_s / 1000);
}

static void
hear(struct prague *p, const struct options *o, const struct message *m,
    uint64_t now)
{
	double rtt = (double)(now - m->sent_ns), fresh, marked;
	int lost = m->lost > p->lost;

	if (m->received < p->received)	/* an old one */
		return;
	fresh = (double)(m->received - p->received);
	marked = (double)(m->ce - p->ce);
	p->received = m->received;
	p->ce = m->ce;
	p->lost = m->lost;
	p->given_up = 0;
	p->heard_at = now;
	p->srtt = p->srtt == 0 ? rtt : p->srtt + (rtt - p->srtt) / 8;
	if (p->min_rtt == 0 || rtt < p->min_rtt)
		p->min_rtt = rtt;
	if (!p->steady && (marked > 0 || lost)) {
		p->steady = 1;
		p->alpha = 1;	/* the first mark halves, as in RFC 8257 */
	}
	update_alpha(p, now);
	if (marked > 0 || lost)
		p->quiet_at = now;
	p->window += p->steady ? growth(p, o, now) * (fresh - marked) /
	    p->window : fresh;
	if (marked > 0)
		cut(p, 1 - p->alpha / 2, now);
	if (lost)
		cut(p, 0.5, now);
}

/* When it may send: by its pace, and once enough of what it sent has come. */
static uint64_t
prague_due(const struct prague *p)
{
	double flying = (double)(p->sent - p->given_up) -
	    (double)(p->received + p->lost);
	double window = p->window * p->srtt / virtual_rtt(p);

	return (flying < (window > 2 ? window : 2) + 1 || p->srtt == 0 ?
	    p->next_ns : UINT64_MAX);
}

static void
prague_send(struct prague *p, const struct options *o, uint64_t now)
{
	static uint8_t packet[LARGEST];
	struct message m = { .magic = MAGIC, .kind = DATA };
	double gap = virtual_rtt(p) / p->window;

	if (o->rate_max != 0 && gap < 8e9 * (double)o->size /
	    (double)o->rate_max) {
		gap = 8e9 * (double)o->size / (double)o->rate_max;
		p->window = virtual_rtt(p) / gap;	/* not beyond its use */
	}
	if (p->next_ns + BURST < now)
		p->next_ns = now - BURST;
	while (prague_due(p) <= now) {
		m.sequence = p->sent;
		m.sent_ns = clock_ns();
		memcpy(packet, &m, sizeof(m));
		if (send(p->fd, packet, o->size - HEADERS, MSG_DONTWAIT) < 0) {
			p->next_ns = now + SECOND / 1000;
			return;
		}
		if (p->sent++ == p->received + p->lost)
			p->heard_at = now;
		p->next_ns += (uint64_t)gap;
	}
}

static void
prague_turn(struct prague *p, const struct options *o)
{
	struct message m;
	uint64_t now, patience;

	while (recv(p->fd, &m, sizeof(m), MSG_DONTWAIT) ==
	    (ssize_t)sizeof(m))
		if (m.magic == MAGIC && m.kind == FEEDBACK)
			hear(p, o, &m, clock_ns());
	now = clock_ns();
	patience = (uint64_t)(4 * p->srtt) + SECOND / 4;
	if (now - p->heard_at > patience &&
	    p->sent - p->given_up > p->received + p->lost) {
		p->given_up = p->sent - p->received - p->lost;
		p->window = 2;
		p->heard_at = now;
	}
	prague_send(p, o, now);
}

static void
prague_report(const struct prague *p, const struct options *o, uint64_t flow,
    double elapsed_s)
{
	printf("{\"kind\": \"prague-like\", \"note\": \"test traffic, not TCP "
	    "Prague\", \"flow\": %llu, \"seconds\": %.6f, "
	    "\"goodput_mbps\": %.6f, \"srtt_us\": %.0f, \"min_rtt_us\": %.0f, "
	    "\"sent\": %llu, \"delivered\": %llu, \"delivered_ce\": %llu, "
	    "\"lost\": %llu, \"alpha\": %.6f, \"cwnd\": %.3f}\n",
	    (unsigned long long)flow, elapsed_s, (double)p->received *
	    (double)(o->size - HEADERS) * 8e-6 / elapsed_s, p->srtt / 1e3,
	    p->min_rtt / 1e3, (unsigned long long)p->sent,
	    (unsigned long long)p->received, (unsigned long long)p->ce,
	    (unsigned long long)p->lost, p->alpha,
	    p->window * p->srtt / virtual_rtt(p));
}

void
run_prague(const struct options *o)
{
	static struct prague flow[MOST_FLOWS];
	struct pollfd fds[MOST_FLOWS];
	uint64_t i, due, next, start = clock_ns(), end = end_of(o, start);

	for (i = 0; i < o->flows; i++) {
		flow[i] = (struct prague){ .fd = udp_socket(o, 1), .window = 10,
		    .next_ns = start, .heard_at = start, .alpha_at = start };
		fds[i] = (struct pollfd){ .fd = flow[i].fd, .events = POLLIN };
	}
	while (!stopped && clock_ns() < end) {
		next = clock_ns() + SECOND / 50;
		for (i = 0; i < o->flows; i++) {
			prague_turn(&flow[i], o);
			due = prague_due(&flow[i]);
			if (due < next)
				next = due;
		}
		wait_until(fds, o->flows, next < end ? next : end);
	}
	for (i = 0; i < o->flows; i++) {
		prague_report(&flow[i], o, i,
		    (double)(clock_ns() - start) / 1e9);
		close(flow[i].fd);
	}
}
