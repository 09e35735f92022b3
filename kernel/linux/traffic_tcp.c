/*
 * SPDX-License-Identifier: MIT
 *
 * TCP of this kernel, as fast as it goes.
 */
#include <sys/socket.h>

#include <errno.h>
#include <linux/tcp.h>
#include <string.h>
#include <unistd.h>

#include "traffic.h"

static int
tcp_socket(const struct options *o)
{
	struct timeval patience = { .tv_sec = (time_t)o->seconds + 1 };
	struct linger at_once = { .l_onoff = 1 };
	int fd = bound_socket(o, SOCK_STREAM), unsent = 1 << 17;

	if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, o->cc,
	    (socklen_t)strlen(o->cc)) != 0)
		die("--cc %s: this kernel does not have it: %s", o->cc,
		    strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent,
	    sizeof(unsent));
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	connect_to(o, fd);
	return (fd);
}

static void
tcp_report(const struct options *o, int fd, uint64_t flow, double elapsed_s)
{
	struct tcp_info info = { 0 };
	socklen_t length = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0)
		die("TCP_INFO: %s", strerror(errno));
	printf("{\"kind\": \"tcp\", \"cc\": \"%s\", \"flow\": %llu, "
	    "\"seconds\": %.6f, \"goodput_mbps\": %.6f, \"srtt_us\": %u, "
	    "\"min_rtt_us\": %u, \"retransmits\": %u, \"delivered\": %u, "
	    "\"delivered_ce\": %u, \"ecn\": %s, \"cwnd\": %u}\n", o->cc,
	    (unsigned long long)flow, elapsed_s,
	    (double)info.tcpi_bytes_acked * 8e-6 / elapsed_s, info.tcpi_rtt,
	    info.tcpi_min_rtt, info.tcpi_total_retrans, info.tcpi_delivered,
	    info.tcpi_delivered_ce,
	    info.tcpi_options & TCPI_OPT_ECN ? "true" : "false",
	    info.tcpi_snd_cwnd);
}

void
run_tcp(const struct options *o)
{
	static const char zeros[1 << 16];
	struct pollfd flow[MOST_FLOWS];
	uint64_t i, start, end;
	ssize_t done;

	start = clock_ns();
	end = end_of(o, start);
	for (i = 0; i < o->flows; i++)
		flow[i] = (struct pollfd){ .fd = tcp_socket(o),
		    .events = POLLOUT };
	while (!stopped && clock_ns() < end) {
		if (poll(flow, o->flows, 20) <= 0)
			continue;
		for (i = 0; i < o->flows; i++) {
			if (flow[i].revents == 0)
				continue;
			done = send(flow[i].fd, zeros, sizeof(zeros),
			    MSG_DONTWAIT | MSG_NOSIGNAL);
			if (done < 0 && errno != EAGAIN && errno != EINTR)
				die("tcp flow %llu: %s", (unsigned long long)i,
				    strerror(errno));
		}
	}
	for (i = 0; i < o->flows; i++) {
		tcp_report(o, flow[i].fd, i,
		    (double)(clock_ns() - start) / 1e9);
		close(flow[i].fd);
	}
}
