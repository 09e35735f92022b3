/*
 * SPDX-License-Identifier: MIT
 *
 * l4s-router: real packets between two network namespaces through the core.
 */
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "router.h"

#define BOUNDS 32		/* --shield: at most so many */
#define SPIN_NS 500000	/* --spin: from so long before a deadline */

struct options {
	const char *config, *senders, *receivers, *device, *stats, *model;
	char *shield[BOUNDS];
	int bounds, spin;
};

static const char usage[] =
    "usage: l4s-router --config FILE --senders NETNS:IFNAME\n"
    "           --receivers NETNS:IFNAME --device PATH [--spin]\n"
    "           [--stats FILE] [--model FILE] [--shield NAME=NUMBER ...]\n"
    "\n"
    "Makes a TUN device in each of two network namespaces and carries packets\n"
    "between them: from senders to receivers through DualPI2 and a link of a\n"
    "set rate, and after a delay; back after the delay alone. Prints `ready`\n"
    "when both devices exist; addresses and routes are the caller's to set.\n"
    "\n"
    "  --config FILE      lines of `key value`: the parameters of DualPI2,\n"
    "                     rate_bps RATE (0: unshaped), rate_at NS RATE,\n"
    "                     delay ADDRESS|default NS, packets N, ring N, mtu N,\n"
    "                     seed N\n"
    "  --senders, --receivers  namespace (name or path) and device to make\n"
    "  --device PATH      socket for records and decisions\n"
    "  --spin             burn a core to be on time\n"
    "  --stats FILE       write statistics (JSON) at the end and on SIGUSR1\n"
    "  --model FILE       let an integer model decide, or set the law's\n"
    "                     parameters or probabilities; read again on SIGHUP\n"
    "  --shield NAME=NUMBER  a bound on what agents may do, instead of the\n"
    "                     configuration's shield_NAME; may be repeated: c_us,\n"
    "                     l_us (delays), drops (1/65536), window (packets),\n"
    "                     hold_us, hits (1/256 of the native law's). An agent\n"
    "                     can make them tighter for itself, never wider.\n";

/* A descriptor among the others: signals are never lost in a busy loop. */
static int
catch_signals(void)
{
	sigset_t ours;

	sigemptyset(&ours);
	sigaddset(&ours, SIGTERM);
	sigaddset(&ours, SIGINT);
	sigaddset(&ours, SIGUSR1);
	sigaddset(&ours, SIGHUP);
	sigprocmask(SIG_BLOCK, &ours, NULL);
	return (signalfd(-1, &ours, SFD_NONBLOCK | SFD_CLOEXEC));
}

/* The model of a file instead of the one before; a wrong file changes nothing. */
static void
load_model(struct router *router, const char *path)
{
	struct l4s_model *model = config_model(path);

	if (model == NULL)
		return;
	l4s_set_model(&router->core, model, clock_ns());
	free(router->model);
	router->model = model;
}

/* Does what signals ask for; 1: the end was asked for. */
static int
read_signals(struct router *router, int fd, const struct options *options)
{
	struct signalfd_siginfo what;
	int end = 0;

	while (read(fd, &what, sizeof(what)) == (ssize_t)sizeof(what)) {
		if (what.ssi_signo == SIGHUP && options->model != NULL)
			load_model(router, options->model);
		else if (what.ssi_signo != SIGUSR1)
			end = 1;
		else if (options->stats != NULL)
			(void)stats_write(router, options->stats);
	}
	return (end);
}

static int
parse_options(struct options *options, int argc, char **argv)
{
	static const struct option known[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "senders", required_argument, NULL, 's' },
		{ "receivers", required_argument, NULL, 'r' },
		{ "device", required_argument, NULL, 'd' },
		{ "stats", required_argument, NULL, 'o' },
		{ "model", required_argument, NULL, 'm' },
		{ "shield", required_argument, NULL, 'b' },
		{ "spin", no_argument, NULL, 'x' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int found;

	while ((found = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (found) {
		case 'c': options->config = optarg; break;
		case 's': options->senders = optarg; break;
		case 'r': options->receivers = optarg; break;
		case 'd': options->device = optarg; break;
		case 'o': options->stats = optarg; break;
		case 'm': options->model = optarg; break;
		case 'b':
			if (options->bounds == BOUNDS) {
				fprintf(stderr, "l4s-router: --shield: too "
				    "many\n");
				return (-1);
			}
			options->shield[options->bounds++] = optarg;
			break;
		case 'x': options->spin = 1; break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			return (-1);
		}
	}
	if (optind == argc && options->config != NULL &&
	    options->senders != NULL && options->receivers != NULL &&
	    options->device != NULL)
		return (0);
	fprintf(stderr, "l4s-router: --config, --senders, --receivers and "
	    "--device are needed, see --help\n");
	return (-1);
}

static int
prepare(struct router *router, const struct options *options)
{
	int i;

	if (config_read(&router->config, options->config) != 0)
		return (-1);
	for (i = 0; i < options->bounds; i++)
		if (config_shield(&router->config, options->shield[i]) != 0)
			return (-1);
	if (options->model != NULL &&
	    (router->model = config_model(options->model)) == NULL)
		return (-1);
	if (pool_make(&router->forward, router->config.packets,
	    router->config.mtu) != 0 ||
	    pool_make(&router->reverse, router->config.packets,
	    router->config.mtu) != 0)
		return (-1);
	router->senders = tun_open(options->senders);
	if (router->senders < 0)
		return (-1);
	router->receivers = tun_open(options->receivers);
	if (router->receivers < 0)
		return (-1);
	router->stats.started_ns = clock_ns();
	l4s_init(&router->core, &router->config.params, router->config.seed,
	    router->stats.started_ns);
	router->core.rate_bps = router->config.rate_bps;
	router->pipe.rate_bps = router->config.rate_bps;
	l4s_set_model(&router->core, router->model, router->stats.started_ns);
	return (device_listen(&router->device, options->device,
	    router->config.ring));
}

/* How long to wait: until the next deadline, or not at all when spinning. */
static struct timespec
patience(const struct router *router, int spin)
{
	uint64_t now_ns = clock_ns(), next = pipe_next(router), ns;

	if (next == L4S_NEVER)
		next = now_ns + 3600000000000u;
	ns = next > now_ns ? next - now_ns : 0;
	if (spin)
		ns = ns > SPIN_NS ? ns - SPIN_NS : 0;
	return ((struct timespec){ .tv_sec = (time_t)(ns / 1000000000u),
	    .tv_nsec = (long)(ns % 1000000000u) });
}

enum { SENDERS, RECEIVERS, LISTENER, SIGNALS, PEER, SOURCES };

static int
turn(struct router *router, const struct pollfd *ready)
{
	uint64_t now_ns = clock_ns();

	pipe_advance(router, now_ns);
	pipe_release(router, now_ns);
	if ((ready[SENDERS].revents != 0 && pipe_read_forward(router) < 0) ||
	    (ready[RECEIVERS].revents != 0 && pipe_read_reverse(router) < 0)) {
		fprintf(stderr, "l4s-router: a TUN device has gone: %s\n",
		    strerror(errno));
		return (-1);
	}
	now_ns = clock_ns();
	pipe_advance(router, now_ns);
	pipe_release(router, now_ns);
	if (ready[PEER].revents & (POLLIN | POLLHUP | POLLERR))
		device_read(router);
	if (ready[LISTENER].revents != 0)
		device_accept(router);
	if (router->device.peer >= 0 &&
	    (!router->device.blocked || ready[PEER].revents & POLLOUT))
		device_flush(router);
	return (0);
}

static int
run(struct router *router, const struct options *options, int signals)
{
	struct pollfd source[SOURCES] = {
		[SENDERS] = { .fd = router->senders, .events = POLLIN },
		[RECEIVERS] = { .fd = router->receivers, .events = POLLIN },
		[LISTENER] = { .fd = router->device.listener,
		    .events = POLLIN },
		[SIGNALS] = { .fd = signals, .events = POLLIN },
	};
	struct timespec wait;

	for (;;) {
		source[PEER].fd = router->device.peer;
		source[PEER].events = device_wants(&router->device);
		wait = patience(router, options->spin);
		if (ppoll(source, SOURCES, &wait, NULL) < 0) {
			perror("l4s-router: ppoll");
			return (1);
		}
		if (source[SIGNALS].revents != 0 &&
		    read_signals(router, signals, options))
			return (0);
		if (turn(router, source) != 0)
			return (1);
	}
}

int
main(int argc, char **argv)
{
	static struct router router;
	struct options options = { 0 };
	int signals, status = 1;

	router.senders = router.receivers = -1;
	router.device.listener = router.device.peer = -1;
	router.device.direct.fd = router.device.direct.passing = -1;
	if (parse_options(&options, argc, argv) != 0)
		return (2);
	signals = catch_signals();
	/* On time, as far as it goes: a late packet is an error of the path. */
	(void)prctl(PR_SET_TIMERSLACK, 1);
	if (!options.spin)	/* who never sleeps must not starve others */
		(void)setpriority(PRIO_PROCESS, 0, -20);
	if (signals >= 0 && prepare(&router, &options) == 0) {
		puts("ready");
		fflush(stdout);
		status = run(&router, &options, signals);
		if (options.stats != NULL &&
		    stats_write(&router, options.stats) != 0)
			status = 1;
	}
	device_close(&router.device);
	if (signals >= 0)
		close(signals);
	if (router.senders >= 0)
		close(router.senders);
	if (router.receivers >= 0)
		close(router.receivers);
	free(router.model);
	free(router.config.step);
	free(router.device.rows.entry);
	free(router.device.answers.entry);
	return (status);
}
