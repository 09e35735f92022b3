/*
 * SPDX-License-Identifier: MIT
 *
 * The receiving end: discards TCP, answers UDP flows, echoes pings, and counts
 * the codepoints that arrive.
 */
#include <sys/epoll.h>
#include <sys/socket.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "traffic.h"

#define PEERS 4096		/* slots */

struct peer {
	struct sockaddr_in from;
	uint64_t received, bytes, ce, next;	/* next: highest sequence + 1 */
};

struct totals {
	uint64_t tcp_bytes, tcp_flows, udp, ecn[4], blast, lost_peers;
};

static struct peer *
find_peer(struct peer *peers, const struct sockaddr_in *from)
{
	uint32_t hash = (from->sin_addr.s_addr * 0x9e3779b1u) ^
	    from->sin_port * 0x85ebca6bu;
	uint32_t i, slot;

	for (i = 0; i < 32; i++) {
		slot = ((hash >> 12) + i) % PEERS;
		if (peers[slot].from.sin_port == 0)
			peers[slot].from = *from;
		if (peers[slot].from.sin_port == from->sin_port &&
		    peers[slot].from.sin_addr.s_addr == from->sin_addr.s_addr)
			return (&peers[slot]);
	}
	return (NULL);
}

static unsigned
ecn_of(struct msghdr *header)
{
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c))
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS)
			return (*(const unsigned char *)CMSG_DATA(c) & 3);
	return (0);
}

static void
respond(int fd, struct peer *peers, const struct sockaddr_in *from,
    struct message *m, unsigned ecn, uint64_t every)
{
	struct peer *peer;

	if (m->kind == PING) {
		m->kind = PONG;
	} else if (m->kind == DATA && (peer = find_peer(peers, from)) != NULL) {
		if (m->sequence == 0)
			peer->received = peer->bytes = peer->ce =
			    peer->next = 0;
		peer->received++;
		peer->bytes += m->bytes;
		peer->ce += ecn == 3;
		if (m->sequence >= peer->next)
			peer->next = m->sequence + 1;
		if (peer->received % every != 0)
			return;
		m->kind = FEEDBACK;
		m->received = peer->received;
		m->bytes = peer->bytes;
		m->ce = (uint32_t)peer->ce;
		m->lost = peer->next > peer->received ?
		    (uint32_t)(peer->next - peer->received) : 0;
	} else {
		return;
	}
	(void)sendto(fd, m, sizeof(*m), MSG_DONTWAIT,
	    (const struct sockaddr *)from, sizeof(*from));
}

static void
sink_udp(int fd, struct peer *peers, struct totals *totals, uint64_t every)
{
	static struct message message[BATCH];
	static struct sockaddr_in from[BATCH];
	static union { char bytes[64]; struct cmsghdr align; } control[BATCH];
	struct mmsghdr header[BATCH];
	struct iovec part[BATCH];
	unsigned ecn;
	int i, got;

	for (i = 0; i < BATCH; i++) {
		part[i] = (struct iovec){ &message[i], sizeof(message[i]) };
		header[i].msg_hdr = (struct msghdr){ .msg_name = &from[i],
		    .msg_namelen = sizeof(from[i]), .msg_iov = &part[i],
		    .msg_iovlen = 1, .msg_control = control[i].bytes,
		    .msg_controllen = sizeof(control[i]) };
	}
	got = recvmmsg(fd, header, BATCH, MSG_DONTWAIT, NULL);
	for (i = 0; i < got; i++) {
		if (header[i].msg_len < sizeof(struct message) ||
		    message[i].magic != MAGIC)
			continue;
		ecn = ecn_of(&header[i].msg_hdr);
		totals->udp++;
		totals->ecn[ecn]++;
		totals->blast += message[i].kind == BLAST;
		respond(fd, peers, &from[i], &message[i], ecn, every);
	}
}

static void
watch(int events, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(events, EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl: %s", strerror(errno));
}

static void
sink_tcp(int fd, struct totals *totals)
{
	ssize_t got = recv(fd, NULL, 1 << 20, MSG_TRUNC | MSG_DONTWAIT);

	if (got > 0)
		totals->tcp_bytes += (uint64_t)got;
	else if (got == 0 || errno != EAGAIN)
		close(fd);
}

void
run_sink(const struct options *o)
{
	static struct peer peers[PEERS];
	struct totals t = { 0 };
	struct epoll_event ready[64];
	uint64_t end = end_of(o, clock_ns());
	int events, listener, udp, i, n, fd;

	if (!o->bound || o->bind.sin_port == 0)
		die("sink: --bind ADDR:PORT is needed");
	events = epoll_create1(EPOLL_CLOEXEC);
	udp = bound_socket(o, SOCK_DGRAM);
	listener = bound_socket(o, SOCK_STREAM);
	if (listen(listener, MOST_FLOWS) != 0)
		die("listen: %s", strerror(errno));
	watch(events, udp);
	watch(events, listener);
	while (!stopped && (o->seconds == 0 || clock_ns() < end)) {
		n = epoll_wait(events, ready, 64, 100);
		for (i = 0; i < n; i++) {
			fd = ready[i].data.fd;
			if (fd == udp) {
				sink_udp(udp, peers, &t, o->every);
			} else if (fd != listener) {
				sink_tcp(fd, &t);
			} else if ((fd = accept4(listener, NULL, NULL,
			    SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
				t.tcp_flows++;
				watch(events, fd);
			}
		}
	}
	printf("{\"kind\": \"sink\", \"tcp_flows\": %llu, \"tcp_bytes\": %llu, "
	    "\"udp\": %llu, \"not_ect\": %llu, \"ect1\": %llu, \"ect0\": %llu, "
	    "\"ce\": %llu, \"blast\": %llu}\n", (unsigned long long)t.tcp_flows,
	    (unsigned long long)t.tcp_bytes, (unsigned long long)t.udp,
	    (unsigned long long)t.ecn[0], (unsigned long long)t.ecn[1],
	    (unsigned long long)t.ecn[2], (unsigned long long)t.ecn[3],
	    (unsigned long long)t.blast);
}
