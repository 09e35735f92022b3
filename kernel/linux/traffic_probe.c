/*
 * SPDX-License-Identifier: MIT
 *
 * Datagrams that respond to nothing, and the round trips of small ones.
 */
#include <sys/socket.h>

#include <string.h>
#include <unistd.h>

#include "traffic.h"

#define SAMPLES 1000000

void
run_blast(const struct options *o)
{
	static uint8_t packet[BATCH][LARGEST];
	struct message m = { .magic = MAGIC, .kind = BLAST };
	struct mmsghdr header[BATCH] = { 0 };
	struct iovec part[BATCH];
	uint64_t start = clock_ns(), end = end_of(o, start), now, due;
	uint64_t sent = 0, failed = 0, all;
	int fd = udp_socket(o, o->tos), n, done;

	if (o->pps == 0)
		die("blast: --pps is needed");
	all = (uint64_t)(o->seconds * (double)o->pps + 0.5);
	while (!stopped && sent + failed < all) {
		now = clock_ns();
		if (now > end + SECOND)
			break;
		due = (uint64_t)((double)(now - start) * 1e-9 *
		    (double)o->pps) + 1;
		due = (due < all ? due : all) - sent - failed;
		if (due == 0) {
			wait_until(NULL, 0, now + 100000);
			continue;
		}
		for (n = 0; n < BATCH && (uint64_t)n < due; n++) {
			m.sequence = sent + (uint64_t)n;
			m.sent_ns = now;
			memcpy(packet[n], &m, sizeof(m));
			part[n] = (struct iovec){ packet[n],
			    o->size - HEADERS };
			header[n].msg_hdr.msg_iov = &part[n];
			header[n].msg_hdr.msg_iovlen = 1;
		}
		done = sendmmsg(fd, header, (unsigned)n, 0);
		if (done > 0)
			sent += (uint64_t)done;
		else
			failed++;
	}
	printf("{\"kind\": \"blast\", \"seconds\": %.6f, \"sent\": %llu, "
	    "\"failed\": %llu, \"goodput_mbps\": null}\n",
	    (double)(clock_ns() - start) / 1e9, (unsigned long long)sent,
	    (unsigned long long)failed);
	close(fd);
}

static int
compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return ((x > y) - (x < y));
}

static double
quantile(const uint64_t *sorted_ns, uint64_t count, uint64_t percent)
{
	uint64_t index = count * percent / 100;

	if (count == 0)
		return (0);
	return ((double)sorted_ns[index < count ? index : count - 1] / 1e3);
}

void
run_ping(const struct options *o)
{
	static uint64_t rtt[SAMPLES];
	static uint8_t packet[LARGEST];
	struct message m = { .magic = MAGIC, .kind = PING };
	struct pollfd fds = { .fd = udp_socket(o, o->tos), .events = POLLIN };
	uint64_t next = clock_ns(), end = end_of(o, next), sent = 0, got = 0;

	while (!stopped && clock_ns() < end + SECOND / 5) {
		if (clock_ns() >= next && next < end) {
			m.kind = PING;
			m.sequence = sent++;
			m.sent_ns = clock_ns();
			memcpy(packet, &m, sizeof(m));
			(void)send(fds.fd, packet, o->size - HEADERS, 0);
			next += o->interval_us * 1000;
		}
		while (recv(fds.fd, &m, sizeof(m), MSG_DONTWAIT) ==
		    (ssize_t)sizeof(m))
			if (m.magic == MAGIC && m.kind == PONG && got < SAMPLES)
				rtt[got++] = clock_ns() - m.sent_ns;
		wait_until(&fds, 1, next < end ? next : end + SECOND / 5);
	}
	qsort(rtt, got, sizeof(rtt[0]), compare);
	printf("{\"kind\": \"ping\", \"sent\": %llu, \"received\": %llu, "
	    "\"rtt_p50_us\": %.3f, \"rtt_p99_us\": %.3f, \"rtt_max_us\": %.3f}"
	    "\n", (unsigned long long)sent, (unsigned long long)got,
	    quantile(rtt, got, 50), quantile(rtt, got, 99),
	    quantile(rtt, got, 100));
	close(fds.fd);
}
