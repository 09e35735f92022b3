/*
 * SPDX-License-Identifier: MIT
 *
 * l4s-traffic: test traffic for the Linux router, and nothing more. Its
 * arguments; sockets and clock are in traffic_net.c, what each kind of traffic
 * does in the other traffic_*.c.
 */
#include <sys/prctl.h>
#include <sys/socket.h>

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "number.h"
#include "traffic.h"

static const char usage[] =
    "usage: l4s-traffic sink --bind ADDR:PORT [--seconds S] [--every 1|2]\n"
    "       l4s-traffic tcp --to ADDR:PORT --seconds S [--cc NAME] "
    "[--flows N]\n"
    "       l4s-traffic prague-like --to ADDR:PORT --seconds S [--flows N]\n"
    "           [--size BYTES] [--rate-max BIT/S]\n"
    "       l4s-traffic blast --to ADDR:PORT --seconds S --pps N\n"
    "           [--size BYTES] [--ecn ect1|ect0|none]\n"
    "       l4s-traffic ping --to ADDR:PORT --seconds S [--interval-us N]\n"
    "           [--size BYTES] [--ecn ect1|ect0|none]\n"
    "\n"
    "Test traffic for l4s-router, over IPv4. Senders take --bind ADDR, end\n"
    "after --seconds (or on SIGINT) and print a JSON line a flow. --size is\n"
    "that of the IP packet. prague-like is a paced UDP source with Prague's\n"
    "law, for tests: it is not TCP Prague. blast responds to nothing.\n";

static void
note_stop(int number)
{
	(void)number;
	stopped = 1;
}

static uint64_t
number(const char *name, const char *text, uint64_t low, uint64_t high)
{
	uint64_t value;

	if (!parse_number(text, 10, low, high, &value))
		die("--%s %s: must be a whole number from %llu to %llu", name,
		    text, (unsigned long long)low, (unsigned long long)high);
	return (value);
}

static struct sockaddr_in
address(const char *text)
{
	struct sockaddr_in parsed = { .sin_family = AF_INET };
	const char *colon = strrchr(text, ':');
	char host[64];

	snprintf(host, sizeof(host), "%s", text);
	host[strcspn(host, ":")] = '\0';
	if (inet_pton(AF_INET, host, &parsed.sin_addr) != 1)
		die("%s: not an IPv4 ADDRESS:PORT", text);
	if (colon != NULL)
		parsed.sin_port = htons((uint16_t)number("port", colon + 1, 0,
		    65535));
	return (parsed);
}

static int
tos(const char *name)
{
	if (strcmp(name, "none") == 0)
		return (0);
	if (strcmp(name, "ect1") == 0)
		return (1);
	if (strcmp(name, "ect0") == 0)
		return (2);
	die("--ecn %s: ect1, ect0 or none", name);
}

static double
seconds(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end != '\0' || !(value > 0 && value <= 86400))
		die("--seconds %s: must be above 0, and at most a day", text);
	return (value);
}

static void
parse(struct options *o, int argc, char **argv)
{
	static const struct option known[] = {
		{ "to", 1, NULL, 't' }, { "bind", 1, NULL, 'b' },
		{ "seconds", 1, NULL, 's' }, { "cc", 1, NULL, 'c' },
		{ "flows", 1, NULL, 'f' }, { "pps", 1, NULL, 'p' },
		{ "size", 1, NULL, 'z' }, { "ecn", 1, NULL, 'e' },
		{ "rate-max", 1, NULL, 'r' }, { "interval-us", 1, NULL, 'i' },
		{ "every", 1, NULL, 'v' }, { "help", 0, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int found;

	while ((found = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (found) {
		case 't': o->to = address(optarg); break;
		case 'b': o->bind = address(optarg); o->bound = 1; break;
		case 's': o->seconds = seconds(optarg); break;
		case 'c': o->cc = optarg; break;
		case 'f': o->flows = number("flows", optarg, 1, MOST_FLOWS);
			break;
		case 'p': o->pps = number("pps", optarg, 1, 5000000); break;
		case 'z': o->size = number("size", optarg, HEADERS +
			sizeof(struct message), LARGEST);
			break;
		case 'e': o->tos = tos(optarg); break;
		case 'r': o->rate_max = number("rate-max", optarg, 10000,
			1000000000000u);
			break;
		case 'i': o->interval_us = number("interval-us", optarg, 50,
			10000000);
			break;
		case 'v': o->every = number("every", optarg, 1, 2); break;
		case 'h': fputs(usage, stdout); exit(0);
		default: exit(2);
		}
	}
	if (optind != argc)
		die("%s: too many arguments, see --help", argv[optind]);
}

int
main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(const struct options *);
	} kinds[] = { { "sink", run_sink }, { "tcp", run_tcp },
	    { "prague-like", run_prague }, { "blast", run_blast },
	    { "ping", run_ping } };
	struct options o = { .cc = "cubic", .flows = 1, .size = 1500,
	    .interval_us = 1000, .every = 1 };
	struct sigaction action = { .sa_handler = note_stop };
	size_t i, count = sizeof(kinds) / sizeof(kinds[0]);

	for (i = 0; argc > 1 && i < count; i++)
		if (strcmp(argv[1], kinds[i].name) == 0)
			break;
	if (argc < 2 || i == count) {
		fputs(usage, argc > 1 && strcmp(argv[1], "--help") == 0 ?
		    stdout : stderr);
		return (argc > 1 && strcmp(argv[1], "--help") == 0 ? 0 : 2);
	}
	if (i == 4)
		o.size = HEADERS + sizeof(struct message);
	parse(&o, argc - 1, argv + 1);
	if (i > 0 && (o.to.sin_port == 0 || o.seconds == 0))
		die("%s: --to ADDR:PORT and --seconds are needed", argv[1]);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	(void)prctl(PR_SET_TIMERSLACK, 1);
	kinds[i].run(&o);
	return (0);
}
