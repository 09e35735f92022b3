/*
 * SPDX-License-Identifier: MIT
 *
 * l4s-traffic: what its parts share.
 */
#ifndef L4S_TRAFFIC_H
#define L4S_TRAFFIC_H

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define HEADERS 28		/* IPv4 and UDP */
#define LARGEST 9000		/* IP packet */
#define MAGIC 0x6c347347
#define MOST_FLOWS 256
#define BATCH 32		/* datagrams in one system call */
#define SECOND 1000000000u

enum { DATA = 1, FEEDBACK, BLAST, PING, PONG };

/* Both ends are this program on one machine: its byte order will do. */
struct message {
	uint32_t magic, kind;
	uint64_t sequence, sent_ns;
	uint64_t bytes;			/* DATA: IP length; FEEDBACK: so far */
	uint64_t received;		/* FEEDBACK: so far, and these */
	uint32_t ce, lost;
};

struct options {
	struct sockaddr_in to, bind;
	int bound;
	double seconds;
	const char *cc;
	uint64_t flows, pps, size, rate_max, interval_us, every;
	int tos;
};

extern volatile sig_atomic_t stopped;

/* A line on stderr, and the end. */
#define die(...)                                                               \
	(fprintf(stderr, "l4s-traffic: " __VA_ARGS__), fputc('\n', stderr),    \
	    exit(1))

uint64_t clock_ns(void);
uint64_t end_of(const struct options *o, uint64_t start);
int bound_socket(const struct options *o, int type);
void connect_to(const struct options *o, int fd);
int udp_socket(const struct options *o, int codepoint);
/* Wait for an answer, or until a time of the clock. */
void wait_until(struct pollfd *fds, uint64_t count, uint64_t until_ns);

/* Each runs to its end, and prints a JSON line a flow. */
void run_sink(const struct options *o);
void run_tcp(const struct options *o);
void run_prague(const struct options *o);
void run_blast(const struct options *o);
void run_ping(const struct options *o);

#endif
