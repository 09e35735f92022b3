/*
 * SPDX-License-Identifier: MIT
 *
 * l4s-agent: a compiled policy on a live queue. It marks a packet whose queue
 * has a delay above a threshold, as the agent `threshold` of l4s_gym does; put
 * another rule into choose().
 */
#include <sys/socket.h>
#include <sys/un.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "l4s_wire.h"
#include "number.h"
#include "pass.h"

#define ENTRIES 64		/* read in one go */
#define SPINS 4096		/* looks at the other socket between them */

struct agent {
	const char *path;
	uint32_t interval;
	uint64_t seconds, lifetime_us, limit_us[2];	/* C, L */
	int direct, spin;
	int action;		/* instead of the thresholds; -1: none */
	int tightens;
	uint32_t shield[6];	/* as CONFIGURE's args */
};

struct stream {
	int fd;
	size_t received;
	uint8_t bytes[ENTRIES * L4S_ENTRY_SIZE];
};

static const char usage[] =
    "usage: l4s-agent --socket PATH [--decision-interval N] [--seconds N]\n"
    "           [--c-us N] [--l-us N] [--lifetime-us N] [--spin] [--daemon]\n"
    "           [--action N] [--shield N,N,N,N,N,N]\n"
    "\n"
    "Controls a live queue: marks a packet where the delay of its queue is\n"
    "above a threshold. Prints what it did as JSON at the end.\n"
    "\n"
    "  --socket PATH     of the daemon, or of the router\n"
    "  --decision-interval N\n"
    "                    be asked about each N-th packet (1)\n"
    "  --seconds N       how long; until SIGINT or SIGTERM by default\n"
    "  --c-us, --l-us    thresholds of C and L (15000, 1000)\n"
    "  --lifetime-us N   for how long after the ask an answer is good (100000)\n"
    "  --spin            burn a core to answer at once\n"
    "  --daemon          stay on that socket where the queue offers its own\n"
    "  --action N        for experiments: always enqueue (0), drop (1) or mark\n"
    "                    (2); 3: a quarter of a second each of 0 and 1\n"
    "  --shield LIST     ask for these bounds: c_us, l_us, drops (1/65536),\n"
    "                    window, hold_us, hits (1/256)\n";

static volatile sig_atomic_t stopped;

static void
stop(int number)
{
	(void)number;
	stopped = 1;
}

static uint8_t
choose(const struct agent *a, const struct l4s_record *ask)
{
	if (a->action >= 0)
		return ((uint8_t)(a->action < 3 ? a->action :
		    ask->time_us % 500000 > 250000));
	return (ask->current_queue_delay > a->limit_us[ask->queue_type == 1] ?
	    2 : 0);
}

static _Noreturn void
fail(const char *what)
{
	fprintf(stderr, "l4s-agent: %s\n", what);
	exit(1);
}

static uint64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return ((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

static struct l4s_command
command(uint8_t kind, uint64_t tag)
{
	return ((struct l4s_command){ .magic = L4S_WIRE_MAGIC,
	    .version = L4S_WIRE_VERSION, .kind = kind, .tag = tag });
}

/* At most so many more bytes of a stream; -1: it has ended. */
static int
receive(struct stream *from, size_t most, int *passed)
{
	ssize_t got = pass_read(from->fd, from->bytes + from->received, most,
	    passed);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return (0);
	if (got <= 0)
		return (-1);
	from->received += (size_t)got;
	return (0);
}

static void
check(const struct l4s_entry *entry)
{
	if (entry->magic != L4S_WIRE_MAGIC ||
	    entry->version != L4S_WIRE_VERSION)
		fail("the server speaks another version of the protocol");
	if (entry->kind == L4S_HELLO &&
	    (entry->u.hello.schema_version != L4S_SCHEMA_VERSION ||
	    entry->u.hello.entry_size != L4S_ENTRY_SIZE))
		fail("the server has other records: build both from the same "
		    "source");
	if (entry->kind == L4S_ERROR) {
		fprintf(stderr, "l4s-agent: %.160s\n", entry->u.error.text);
		exit(1);
	}
}

/* Answers what has come; the number of asks, or -1: nobody takes answers. */
static int
answer(const struct agent *a, struct stream *from)
{
	struct l4s_command out[ENTRIES];
	struct l4s_entry entry;
	size_t at = 0;
	int n = 0;

	for (; from->received - at >= sizeof(entry); at += sizeof(entry)) {
		const struct l4s_record *row = &entry.u.row.record;

		memcpy(&entry, from->bytes + at, sizeof(entry));
		check(&entry);
		if (entry.kind != L4S_ASK)
			continue;
		out[n] = command(L4S_DECIDE, now_ns());
		out[n].queue = row->queue_type;
		out[n].action = choose(a, row);
		out[n].sequence = row->sequence;
		out[n++].expires_us = row->time_us + a->lifetime_us;
	}
	from->received -= at;
	memmove(from->bytes, from->bytes + at, from->received);
	if (n > 0 && send(from->fd, out, (size_t)n * sizeof(out[0]),
	    MSG_NOSIGNAL) < 0 && errno != EAGAIN && errno != EINTR)
		return (-1);
	return (n);
}

/* Asks, and waits for the answer; what else comes meanwhile is passed over. */
static void
ask(struct stream *server, uint8_t kind, const uint32_t *arguments, size_t n,
    struct l4s_hello *hello, int *passed)
{
	struct l4s_command question = command(kind, kind);
	struct l4s_entry entry = { 0 };

	if (n > 0)
		memcpy(question.args, arguments, n * sizeof(*arguments));
	if (send(server->fd, &question, sizeof(question), MSG_NOSIGNAL) < 0)
		fail("the server takes no command");
	while (entry.kind != L4S_STATUS || entry.tag != question.tag) {
		server->received = 0;
		while (server->received < sizeof(entry))
			if (receive(server, sizeof(entry) - server->received,
			    passed) != 0)
				fail("the server has ended the connection");
		memcpy(&entry, server->bytes, sizeof(entry));
		check(&entry);
		if (entry.kind == L4S_HELLO)
			*hello = entry.u.hello;
	}
	server->received = 0;
}

static int
run(const struct agent *a, struct stream *server, struct stream *direct)
{
	struct pollfd ready[2] = { { .fd = direct->fd, .events = POLLIN },
	    { .fd = server->fd, .events = POLLIN } };
	uint64_t end_ns = a->seconds == 0 ? UINT64_MAX :
	    now_ns() + a->seconds * 1000000000u, asks = 0;
	int passed = -1, spins = 0, n;

	while (!stopped && now_ns() < end_ns) {
		if ((!a->spin || direct->fd < 0 || spins++ % SPINS == 0) &&
		    poll(ready, 2, a->spin && direct->fd >= 0 ? 0 : 200) < 0)
			continue;
		if (direct->fd >= 0) {
			if (receive(direct, sizeof(direct->bytes) -
			    direct->received, &passed) != 0 ||
			    (n = answer(a, direct)) < 0) {
				ready[0].fd = direct->fd = -1;
				continue;
			}
			asks += (uint64_t)n;
		}
		if (ready[1].revents == 0)
			continue;
		if (receive(server, sizeof(server->bytes) - server->received,
		    &passed) != 0 || (n = answer(a, server)) < 0)
			fail("the server has ended the connection");
		asks += (uint64_t)n;
		ready[1].revents = 0;
	}
	printf("{\"asks\": %llu, \"direct\": %s}\n", (unsigned long long)asks,
	    direct->fd >= 0 ? "true" : "false");
	return (0);
}

static uint64_t
number(const char *text, uint64_t most)
{
	uint64_t value;

	if (!parse_number(text, 10, 0, most, &value))
		fail("give a whole number that fits, see --help");
	return (value);
}

static void
parse_shield(struct agent *a, char *text)
{
	size_t n = 0;

	for (text = strtok(text, ","); text != NULL && n < 6;
	    text = strtok(NULL, ","))
		a->shield[n++] = (uint32_t)number(text, UINT32_MAX);
	if (n != 6 || text != NULL)
		fail("--shield: give six numbers");
	a->tightens = 1;
}

static void
parse(struct agent *a, int argc, char **argv)
{
	const struct option known[] = {
		{ "socket", required_argument, NULL, 's' },
		{ "decision-interval", required_argument, NULL, 'i' },
		{ "seconds", required_argument, NULL, 't' },
		{ "c-us", required_argument, NULL, 'c' },
		{ "l-us", required_argument, NULL, 'l' },
		{ "lifetime-us", required_argument, NULL, 'e' },
		{ "action", required_argument, NULL, 'a' },
		{ "shield", required_argument, NULL, 'b' },
		{ "spin", no_argument, &a->spin, 1 },
		{ "daemon", no_argument, &a->direct, 0 },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int found;

	while ((found = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (found) {
		case 0: break;
		case 's': a->path = optarg; break;
		case 'i': a->interval = (uint32_t)number(optarg, UINT32_MAX); break;
		case 't': a->seconds = number(optarg, UINT32_MAX); break;
		case 'c':
			a->limit_us[0] = number(optarg, UINT32_MAX);
			break;
		case 'l':
			a->limit_us[1] = number(optarg, UINT32_MAX);
			break;
		case 'e':
			a->lifetime_us = number(optarg, UINT32_MAX);
			break;
		case 'a': a->action = (int)number(optarg, 3); break;
		case 'b': parse_shield(a, optarg); break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			exit(2);
		}
	}
	if (optind != argc || a->path == NULL)
		fail("--socket is needed, see --help");
}

static int
open_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		fail("--socket: too long for a Unix socket");
	memcpy(address.sun_path, path, strlen(path));
	if (fd < 0 || connect(fd, (struct sockaddr *)&address,
	    sizeof(address)) != 0) {
		fprintf(stderr, "l4s-agent: %s: %s\n", path, strerror(errno));
		exit(1);
	}
	return (fd);
}

int
main(int argc, char **argv)
{
	static struct stream server, direct = { .fd = -1 };
	struct agent a = { .interval = 1, .lifetime_us = 100000,
	    .limit_us = { 15000, 1000 }, .direct = 1, .action = -1 };
	struct sigaction action = { .sa_handler = stop };
	struct l4s_hello hello = { 0 };

	parse(&a, argc, argv);
	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGTERM, &action, NULL);
	server.fd = open_socket(a.path);
	ask(&server, L4S_ATTACH, &a.interval, 1, &hello, &direct.fd);
	if (a.tightens)
		ask(&server, L4S_CONFIGURE, a.shield, 6, &hello, &direct.fd);
	if (a.direct && hello.direct)
		ask(&server, L4S_DIRECT, NULL, 0, &hello, &direct.fd);
	if (direct.fd >= 0)
		(void)fcntl(direct.fd, F_SETFL, O_NONBLOCK);
	(void)fcntl(server.fd, F_SETFL, O_NONBLOCK);
	return (run(&a, &server, &direct));
}
