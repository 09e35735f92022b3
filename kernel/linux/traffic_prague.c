/*
 * SPDX-License-Identifier: MIT
 *
 * A paced UDP source with Prague's law: test traffic, not TCP Prague.
 *
 * The law is that of the L4S team's prague_cc, as l4s_gym/sim/prague.py has
 * it: it starts at 100 kbit/s with alpha 0 and without slow start, its packets
 * shrink to 150 bytes so that two are sent in a virtual round trip (25 ms, or
 * the real one where that is longer), and the window leaves more under way
 * than pacing does, so that it never blocks pacing. Where a round trip is too
 * short to tell a queue, the rate itself grows and shrinks.
 */
#include <sys/socket.h>

#include <string.h>
#include <unistd.h>

#include "traffic.h"

#define VIRTUAL_RTT 25e6	/* ns */
#define LEAST_RATE 100e3	/* bit/s; the first one, too */
#define SHORTEST 150.0		/* bytes of a packet */
#define LEAST_WINDOW 2		/* packets */
#define FIRST_WINDOW 10		/* packets before the first answer */
#define RATE_MODE 2e6		/* ns: round trip up to which the rate is it */
#define GROWTH 1e6		/* ns of queue that a round of growth may add */
#define GROWTH_WAIT 7		/* rounds without a mark before growth, and */
#define GROWTH_STEP 15.36e6	/* one more for each so many bit/s */
#define PROBE 1.03		/* faster in half of a round, then slower */
#define BURST 250000u		/* ns of sending late that may be made up */
#define TIMEOUT SECOND		/* ns without an answer: start anew */

enum state { AVOIDANCE, IN_LOSS, IN_CWR };

struct prague {
	double window;		/* full packets */
	double rate;		/* bit/s */
	double length;		/* bytes of the packets that are sent now */
	double alpha, srtt, min_rtt;	/* ns */
	uint64_t sent, received, bytes, ce, lost;
	uint64_t given_up;	/* not expected to be heard of any more */
	uint64_t round_ns, round_sent, round_received, round_ce;
	uint64_t growth_wait, undo_wait;	/* rounds */
	uint64_t loss_ns, loss_sent, cut_ns, cut_sent;
	int64_t lost_since;	/* of the last loss that halved it */
	double undo;		/* what that took away; 0: nothing to undo */
	uint64_t heard_at, next_ns;
	enum state state;
	int by_rate, undo_by_rate, heard;
	int fd;
};

static double
virtual_rtt(const struct prague *p)
{
	return (p->srtt > VIRTUAL_RTT ? p->srtt : VIRTUAL_RTT);
}

/* Two packets in a virtual round trip, of the lengths that there are. */
static void
set_length(struct prague *p, const struct options *o)
{
	double most = (double)o->size, fits;

	fits = p->rate * virtual_rtt(p) / 8e9 / LEAST_WINDOW;
	if (fits < SHORTEST)
		fits = SHORTEST;
	p->length = (double)(uint64_t)(fits < most ? fits : most);
}

static void
restart(struct prague *p, const struct options *o, uint64_t now)
{
	p->state = AVOIDANCE;
	p->by_rate = p->heard = 0;
	p->undo = p->alpha = p->srtt = p->window = 0;
	p->undo_wait = 0;
	p->lost_since = 0;
	p->round_ns = p->heard_at = now;
	p->round_sent = p->sent;
	p->round_received = p->received;
	p->round_ce = p->ce;
	p->growth_wait = GROWTH_WAIT;
	p->rate = LEAST_RATE;
	set_length(p, o);
}

/* Packets of which nothing more is expected. */
static uint64_t
settled(const struct prague *p)
{
	return (p->received + p->lost + p->given_up);
}

/* Whether all sent up to then is settled, and a virtual round trip is past. */
static int
is_over(const struct prague *p, uint64_t sent, uint64_t since, uint64_t now)
{
	return (settled(p) > sent && (double)(now - since) >= virtual_rtt(p));
}

/* Alpha, once a round. */
static void
average_marks(struct prague *p, uint64_t now)
{
	uint64_t received = p->received - p->round_received;

	if (!is_over(p, p->round_sent, p->round_ns, now))
		return;
	if (received > 0)
		p->alpha += ((double)(p->ce - p->round_ce) / (double)received -
		    p->alpha) / 16;
	p->round_received = p->received;
	p->round_ce = p->ce;
	p->round_sent = p->sent;
	p->round_ns = now;
	if (p->growth_wait > 0)
		p->growth_wait--;
}

/* What had been taken for lost has come late. */
static void
undo_loss(struct prague *p)
{
	p->by_rate = p->undo_by_rate;
	if (p->by_rate)
		p->rate += p->undo;
	else
		p->window += p->undo;
	p->undo = 0;
	p->growth_wait -= p->growth_wait < p->undo_wait ? p->growth_wait :
	    p->undo_wait;
	p->undo_wait = 0;
	p->state = AVOIDANCE;
}

/* Half, once a round; growth waits until a flow of 25 ms would be back. */
static void
reduce_for_loss(struct prague *p, const struct options *o, int64_t lost,
    uint64_t now)
{
	double rounds = p->rate / 16 / (double)o->size * VIRTUAL_RTT /
	    virtual_rtt(p) * VIRTUAL_RTT * 1e-9;
	uint64_t wait = (uint64_t)rounds;

	p->undo_wait = p->undo_wait + wait > p->growth_wait ?
	    p->undo_wait + wait - p->growth_wait : 0;
	if (p->undo_wait > wait)
		p->undo_wait = wait;
	p->growth_wait = wait;
	p->undo_by_rate = p->by_rate;
	p->undo = (p->by_rate ? p->rate : p->window) / 2;
	if (p->by_rate)
		p->rate -= p->undo;
	else
		p->window -= p->undo;
	p->lost_since = lost;
	p->state = IN_LOSS;
	p->loss_sent = p->sent;
	p->loss_ns = now;
}

/* A packet a round in each round, or a millisecond of queue after long calm. */
static void
grow(struct prague *p, const struct options *o, double unmarked)
{
	double size = (double)o->size, vrtt = virtual_rtt(p), step = 1, share;

	if (p->growth_wait == 0 && p->rate * GROWTH / 8e9 / size > 1)
		step = p->rate * GROWTH / 8e9 / size;
	if (p->by_rate) {
		p->rate += unmarked * step * size * 8e9 / vrtt /
		    (p->rate * vrtt / 8e9 / p->length);
		return;
	}
	share = p->srtt / vrtt;
	p->window += unmarked * p->length / size * step * share * share /
	    p->window;
}

static void
reduce_for_mark(struct prague *p, uint64_t now)
{
	p->state = IN_CWR;
	p->cut_sent = p->sent;
	p->cut_ns = now;
	p->growth_wait = (uint64_t)(p->rate / GROWTH_STEP) + GROWTH_WAIT;
	if (p->by_rate)
		p->rate *= 1 - p->alpha / 2;
	else
		p->window *= 1 - p->alpha / 2;
}

/* Rate from window or window from rate, within bounds, and the length. */
static void
follow(struct prague *p, const struct options *o)
{
	double of_one = (double)o->size * 8e9 / p->srtt;	/* bit/s */

	if (!p->by_rate)
		p->rate = p->window * of_one;
	if (p->rate < LEAST_RATE)
		p->rate = LEAST_RATE;
	if (o->rate_max != 0 && p->rate > (double)o->rate_max)
		p->rate = (double)o->rate_max;
	p->window = p->rate / of_one;
	set_length(p, o);
}

static void
choose_mode(struct prague *p, const struct options *o)
{
	int by_rate = p->srtt <= RATE_MODE ||
	    p->srtt <= p->length * 8e9 / p->rate;

	if (!p->heard || (p->by_rate && !by_rate))
		p->window = p->rate * p->srtt / ((double)o->size * 8e9);
	p->heard = 1;
	p->by_rate = by_rate;
}

static void
hear(struct prague *p, const struct options *o, const struct message *m,
    uint64_t now)
{
	double rtt = (double)(now - m->sent_ns), unmarked;
	int64_t lost = (int64_t)m->lost - (int64_t)p->lost;
	uint64_t marked;

	if (m->received < p->received)	/* an old one */
		return;
	marked = m->ce - p->ce;
	unmarked = (double)(m->received - p->received - marked);
	p->received = m->received;
	p->bytes = m->bytes;
	p->ce = m->ce;
	p->lost = m->lost;
	p->given_up = 0;
	p->heard_at = now;
	p->srtt = p->srtt == 0 ? rtt : p->srtt + (rtt - p->srtt) / 8;
	if (p->min_rtt == 0 || rtt < p->min_rtt)
		p->min_rtt = rtt;
	choose_mode(p, o);
	average_marks(p, now);
	p->lost_since += lost;
	if (p->undo > 0 && p->lost_since <= 0)
		undo_loss(p);
	if (p->state == IN_LOSS && is_over(p, p->loss_sent, p->loss_ns, now))
		p->state = AVOIDANCE;
	if (p->state != IN_LOSS && lost > 0)
		reduce_for_loss(p, o, lost, now);
	if (p->state != IN_LOSS && unmarked > 0)
		grow(p, o, unmarked);
	if (p->state == IN_CWR && is_over(p, p->cut_sent, p->cut_ns, now))
		p->state = AVOIDANCE;
	if (p->state == AVOIDANCE && marked > 0)
		reduce_for_mark(p, now);
	follow(p, o);
}

/* When it may send: by its pace, and once enough of what it sent has come. */
static uint64_t
prague_due(const struct prague *p, const struct options *o)
{
	uint64_t window = FIRST_WINDOW;

	if (p->heard) {
		window = (uint64_t)(p->window * (double)o->size * PROBE /
		    p->length + 1);
		if (window < LEAST_WINDOW)
			window = LEAST_WINDOW;
	}
	return (p->sent < settled(p) + window ? p->next_ns : UINT64_MAX);
}

static void
prague_send(struct prague *p, const struct options *o, uint64_t now)
{
	static uint8_t packet[LARGEST];
	struct message m = { .magic = MAGIC, .kind = DATA };
	double gap = p->length * 8e9 / p->rate;

	if ((double)(now - p->round_ns) < virtual_rtt(p) / 2)
		gap /= PROBE;
	else
		gap *= PROBE;
	if (p->next_ns + BURST < now)
		p->next_ns = now - BURST;
	while (prague_due(p, o) <= now) {
		m.sequence = p->sent;
		m.sent_ns = clock_ns();
		m.bytes = (uint64_t)p->length;
		memcpy(packet, &m, sizeof(m));
		if (send(p->fd, packet, m.bytes - HEADERS, MSG_DONTWAIT) < 0) {
			p->next_ns = now + SECOND / 1000;
			return;
		}
		if (p->sent++ == settled(p))
			p->heard_at = now;
		p->next_ns += (uint64_t)gap;
	}
}

static void
prague_turn(struct prague *p, const struct options *o)
{
	struct message m;
	uint64_t now;

	while (recv(p->fd, &m, sizeof(m), MSG_DONTWAIT) ==
	    (ssize_t)sizeof(m))
		if (m.magic == MAGIC && m.kind == FEEDBACK)
			hear(p, o, &m, clock_ns());
	now = clock_ns();
	if (now - p->heard_at > TIMEOUT && p->sent > settled(p)) {
		p->given_up = p->sent - p->received - p->lost;
		restart(p, o, now);
	}
	prague_send(p, o, now);
}

static void
prague_report(const struct prague *p, uint64_t flow, double elapsed_s)
{
	printf("{\"kind\": \"prague-like\", \"note\": \"test traffic, not TCP "
	    "Prague\", \"flow\": %llu, \"seconds\": %.6f, "
	    "\"goodput_mbps\": %.6f, \"srtt_us\": %.0f, \"min_rtt_us\": %.0f, "
	    "\"sent\": %llu, \"delivered\": %llu, \"delivered_ce\": %llu, "
	    "\"lost\": %llu, \"alpha\": %.6f, \"cwnd\": %.3f, "
	    "\"packet_length\": %.0f}\n",
	    (unsigned long long)flow, elapsed_s,
	    (double)(p->bytes - p->received * HEADERS) * 8e-6 / elapsed_s,
	    p->srtt / 1e3, p->min_rtt / 1e3, (unsigned long long)p->sent,
	    (unsigned long long)p->received, (unsigned long long)p->ce,
	    (unsigned long long)p->lost, p->alpha, p->window, p->length);
}

void
run_prague(const struct options *o)
{
	static struct prague flow[MOST_FLOWS];
	struct pollfd fds[MOST_FLOWS];
	uint64_t i, due, next, start = clock_ns(), end = end_of(o, start);

	for (i = 0; i < o->flows; i++) {
		flow[i] = (struct prague){ .fd = udp_socket(o, 1),
		    .next_ns = start };
		restart(&flow[i], o, start);
		fds[i] = (struct pollfd){ .fd = flow[i].fd, .events = POLLIN };
	}
	while (!stopped && clock_ns() < end) {
		next = clock_ns() + SECOND / 50;
		for (i = 0; i < o->flows; i++) {
			prague_turn(&flow[i], o);
			due = prague_due(&flow[i], o);
			if (due < next)
				next = due;
		}
		wait_until(fds, o->flows, next < end ? next : end);
	}
	for (i = 0; i < o->flows; i++) {
		prague_report(&flow[i], i,
		    (double)(clock_ns() - start) / 1e9);
		close(flow[i].fd);
	}
}
