/*
 * SPDX-License-Identifier: MIT
 *
 * l4s-bridged: one queue, many readers, one controller. See l4s-bridged.8.
 */
#include <sys/file.h>
#include <sys/stat.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bridge.h"
#include "events.h"
#include "log.h"

#define TICK_MS 1000u
#define HAPPENINGS 64

static volatile sig_atomic_t stopped;
static int signal_pipe[2] = { -1, -1 };

static void
on_signal(int number)
{
	int error = errno;
	ssize_t sent;

	(void)number;
	stopped = 1;
	sent = write(signal_pipe[1], "", 1);	/* full: it wakes up anyway */
	(void)sent;
	errno = error;
}

static void
catch_signals(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	(void)sigemptyset(&action.sa_mask);
	action.sa_handler = SIG_IGN;
	(void)sigaction(SIGPIPE, &action, NULL);
	if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
		die(EXIT_FAILED, "pipe: %s: raise the limit of open files",
		    strerror(errno));
	action.sa_handler = on_signal;
	(void)sigaction(SIGTERM, &action, NULL);
	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGHUP, &action, NULL);
}

/* The lock lasts as long as the daemon, the file may outlast it. */
static int
open_pidfile(const char *path)
{
	struct stat status;
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW |
	    O_NONBLOCK, 0644);

	if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
		die(EXIT_FAILED, "%s: %s: give another --pidfile", path,
		    fd < 0 ? strerror(errno) : "not a plain file");
	if (flock(fd, LOCK_EX | LOCK_NB) != 0)
		die(EXIT_FAILED, "%s belongs to a running daemon: stop it, or "
		    "give another --pidfile", path);
	return fd;
}

static void
write_pidfile(const char *path, int fd)
{
	char text[32];
	int length = snprintf(text, sizeof(text), "%ld\n", (long)getpid());

	if (ftruncate(fd, 0) != 0 || write(fd, text, (size_t)length) != length)
		say("%s: %s: the number of the process is %ld", path,
		    strerror(errno), (long)getpid());
}

/* Paths must not depend on where it was started. */
static void
check_paths(const struct options *o)
{
	const char *const paths[] = { o->device, o->socket, o->pidfile };

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		if (paths[i] != NULL && paths[i][0] != '/')
			die(EXIT_USAGE, "%s: give a path that begins with /, "
			    "or --foreground", paths[i]);
}

/*
 * On to the background. The parent leaves when the child has written its
 * number: whoever started it finds socket and pidfile in place.
 */
static void
detach(const struct options *o, int pidfile)
{
	int ready[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
	char byte = 0;
	pid_t child;

	if (null < 0 || pipe2(ready, O_CLOEXEC) != 0 || (child = fork()) < 0)
		die(EXIT_FAILED, "cannot go to the background (%s): use "
		    "--foreground", strerror(errno));
	if (child > 0) {
		close(ready[1]);
		_exit(read(ready[0], &byte, 1) == 1 ? EXIT_SUCCESS :
		    EXIT_FAILED);
	}
	(void)setsid();
	if (pidfile >= 0)
		write_pidfile(o->pidfile, pidfile);
	log_to_syslog();
	if (chdir("/") != 0 || dup2(null, STDIN_FILENO) < 0 ||
	    dup2(null, STDOUT_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0 ||
	    write(ready[1], &byte, 1) != 1)
		die(EXIT_FAILED, "cannot go to the background (%s): use "
		    "--foreground", strerror(errno));
	close(null);
	close(ready[0]);
	close(ready[1]);
}

/* The socket's file is there, and those who wait there are heard. */
static void
keep_listening(struct bridge *b)
{
	char why[256];

	if (listener_lost(&b->listener)) {
		listener_close(&b->listener);
		b->listening = false;
		if (!listener_open(&b->listener, why, sizeof(why))) {
			say("%s", why);
			return;
		}
		say("%s was removed and is there again", b->options->socket);
	}
	if (!b->listening)
		b->listening = events_watch(b->events, b->listener.fd,
		    TAG_LISTENER, WATCH_NONE, WATCH_IN);
}

static void
happened(struct bridge *b, const struct happening *h)
{
	switch (h->tag) {
	case TAG_SIGNAL:
		break;
	case TAG_LISTENER:
		clients_accept(b);
		break;
	case TAG_DEVICE:
		device_happened(b, h->what);
		break;
	default:
		client_happened(b, h->tag - TAG_CLIENT, h->what);
		break;
	}
}

/* Milliseconds until something is to be done without being told. */
static int
idle_ms(const struct bridge *b, uint64_t tick_at)
{
	uint64_t now = now_ms(), then = tick_at;

	if (!b->device.there && b->device.act_at_ms < then)
		then = b->device.act_at_ms;
	return then <= now ? 0 : (int)(then - now);
}

static void
serve(struct bridge *b)
{
	struct happening list[HAPPENINGS];
	uint64_t tick_at = 0;

	while (!stopped) {
		int count;

		if (now_ms() >= tick_at) {
			tick_at = now_ms() + TICK_MS;
			keep_listening(b);
			clients_tick(b);
		}
		device_tick(b);
		do {
			b->again = false;
			device_flush(b);
			clients_settle(b);
		} while (b->again);
		count = events_wait(b->events, list, HAPPENINGS,
		    idle_ms(b, tick_at));
		if (count < 0 && errno != EINTR)
			die(EXIT_FAILED, "waiting: %s: start it again",
			    strerror(errno));
		for (int i = 0; i < count; i++)
			happened(b, &list[i]);
	}
}

static void
start(struct bridge *b, int pidfile)
{
	const struct options *o = b->options;

	if (!o->foreground)
		detach(o, pidfile);
	else if (pidfile >= 0)
		write_pidfile(o->pidfile, pidfile);
	b->events = events_open();	/* not inherited by fork: now */
	if (b->events < 0 || !events_watch(b->events, signal_pipe[0],
	    TAG_SIGNAL, WATCH_NONE, WATCH_IN))
		die(EXIT_FAILED, "events: %s: raise the limit of open files",
		    strerror(errno));
	say("serving %s on %s", o->device, o->socket);
}

int
main(int argc, char **argv)
{
	static struct options options;
	static struct bridge bridge;
	struct bridge *b = &bridge;
	int pidfile = -1;
	char why[256];

	options_parse(&options, argc, argv);
	log_verbose(options.verbose);
	b->options = &options;
	b->listener.options = &options;
	if (!options.foreground)
		check_paths(&options);
	if (!clients_init(b) || !device_init(b))
		die(EXIT_FAILED, "no memory: give fewer --clients");
	catch_signals();
	if (options.pidfile != NULL)
		pidfile = open_pidfile(options.pidfile);
	if (!listener_open(&b->listener, why, sizeof(why)))
		die(EXIT_FAILED, "%s", why);
	start(b, pidfile);
	serve(b);
	listener_close(&b->listener);
	device_end(b);
	clients_end(b);
	close(b->events);
	if (options.pidfile != NULL)
		(void)unlink(options.pidfile);
	say("ended");
	return EXIT_SUCCESS;
}
