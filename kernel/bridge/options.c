/*
 * SPDX-License-Identifier: MIT
 */
#include "options.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "number.h"

#ifdef __linux__
#define DEFAULT_SOCKET "/run/l4s-gym/live.sock"
#else
#define DEFAULT_SOCKET "/var/run/l4s-gym/live.sock"
#endif

static const char usage[] =
"usage: l4s-bridged [--device PATH|unix:PATH] [--socket PATH] [options]\n"
"\n"
"Offers the rows and the control of one L4S queue to many readers and one\n"
"controller on a Unix socket.\n"
"\n"
"  --device PATH       character device of the FreeBSD module (/dev/l4s)\n"
"  --device unix:PATH  Unix socket of the Linux router\n"
"  --socket PATH       where clients connect (" DEFAULT_SOCKET ")\n"
"  --mode OCTAL        mode of that socket (0600; 0660 with --group)\n"
"  --group NAME        group of that socket, whose members may connect\n"
"  --allow-user NAME   another user who may connect; may be repeated.\n"
"                      Root and the daemon's own user always may.\n"
"  --ring ENTRIES      rows kept for each slow reader (16384), 192 bytes each\n"
"  --clients N         most connections at a time (16)\n"
"  --shield NAME=N     a bound on what agents may do, on top of the queue's\n"
"                      own; may be repeated: c_us, l_us (delays), drops\n"
"                      (1/65536), window (packets), hold_us, hits (1/256\n"
"                      of the native law's)\n"
"  --foreground        stay in the foreground, and log to stderr\n"
"  --pidfile PATH      write the number of the process there\n"
"  --verbose           log connections too\n"
"  --help              this text\n"
"\n"
"Exit codes: 0 ended by SIGTERM or SIGINT, 1 failed, 2 wrong usage.\n";

enum {
	O_DEVICE = 1000, O_SOCKET, O_MODE, O_GROUP, O_USER, O_RING, O_CLIENTS,
	O_SHIELD, O_FOREGROUND, O_PIDFILE, O_VERBOSE, O_HELP
};

static const struct option longs[] = {
	{ "device", required_argument, NULL, O_DEVICE },
	{ "socket", required_argument, NULL, O_SOCKET },
	{ "mode", required_argument, NULL, O_MODE },
	{ "group", required_argument, NULL, O_GROUP },
	{ "allow-user", required_argument, NULL, O_USER },
	{ "ring", required_argument, NULL, O_RING },
	{ "clients", required_argument, NULL, O_CLIENTS },
	{ "shield", required_argument, NULL, O_SHIELD },
	{ "foreground", no_argument, NULL, O_FOREGROUND },
	{ "pidfile", required_argument, NULL, O_PIDFILE },
	{ "verbose", no_argument, NULL, O_VERBOSE },
	{ "help", no_argument, NULL, O_HELP },
	{ NULL, 0, NULL, 0 }
};

/* Bounds that leave the queue's as they are. */
#define WIDEST { .drops = UINT64_MAX, .window = UINT64_MAX }

static uint32_t
number_between(const char *option, const char *text, uint32_t low,
    uint32_t high)
{
	uint64_t number;

	if (!parse_number(text, 10, low, high, &number))
		die(EXIT_USAGE, "%s %s: give a number from %u to %u", option,
		    text, low, high);
	return (uint32_t)number;
}

/* NAME=NUMBER, of the parameter shield_NAME. */
static void
set_bound(struct options *o, const char *text)
{
	static const struct { const char *name; uint64_t low, high; } all[] = {
#define ONE(name, normal, low, high, text) { #name, low, high },
		L4S_PARAMETERS(ONE)
#undef ONE
	};
	uint64_t *const bounds[] = {
#define ONE(name) &o->shield.name,
		L4S_SHIELD(ONE)
#undef ONE
	};
	const char *number = strchr(text, '=');
	size_t bound = 0;

	for (size_t i = 0; number != NULL &&
	    i < sizeof(all) / sizeof(all[0]); i++) {
		const char *name = all[i].name;

		if (strncmp(name, "shield_", 7) != 0)
			continue;
		if (strncmp(name + 7, text, (size_t)(number - text)) == 0 &&
		    name[7 + (number - text)] == '\0') {
			*bounds[bound] = number_between("--shield", number + 1,
			    (uint32_t)all[i].low, (uint32_t)all[i].high);
			o->shielded = true;
			return;
		}
		bound++;
	}
	die(EXIT_USAGE, "--shield %s: give NAME=NUMBER, with a name of --help",
	    text);
}

static mode_t
mode_of(const char *text)
{
	uint64_t mode;

	if (!parse_number(text, 8, 0, 0777, &mode))
		die(EXIT_USAGE, "--mode %s: give an octal number up to 0777",
		    text);
	return (mode_t)mode;
}

static uid_t
user_of(const char *text)
{
	const struct passwd *entry = getpwnam(text);
	uint64_t number;

	if (entry != NULL)
		return entry->pw_uid;
	if (!parse_number(text, 10, 0, UINT32_MAX - 1, &number))
		die(EXIT_USAGE, "--allow-user %s: there is no such user: give "
		    "a name or a number", text);
	return (uid_t)number;
}

static gid_t
group_of(const char *text)
{
	const struct group *entry = getgrnam(text);
	uint64_t number;

	if (entry != NULL)
		return entry->gr_gid;
	if (!parse_number(text, 10, 0, UINT32_MAX - 1, &number))
		die(EXIT_USAGE, "--group %s: there is no such group: give a "
		    "name or a number", text);
	return (gid_t)number;
}

/* A path that fits in the address of a Unix socket. */
static const char *
socket_path(const char *option, const char *path)
{
	const size_t most = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;

	if (path[0] == '\0' || strlen(path) > most)
		die(EXIT_USAGE, "%s %s: give a path of 1 to %zu characters",
		    option, path, most);
	return path;
}

static void
set_device(struct options *o, const char *text)
{
	o->device_is_socket = strncmp(text, "unix:", 5) == 0;
	o->device = o->device_is_socket ? socket_path("--device", text + 5) :
	    text;
	if (!o->device_is_socket && text[0] != '/')
		die(EXIT_USAGE, "--device %s: give a path that begins with /, "
		    "or unix: and the path of a socket", text);
}

static void
set_option(struct options *o, int option, const char *text)
{
	switch (option) {
	case O_DEVICE:
		set_device(o, text);
		break;
	case O_SOCKET:
		o->socket = socket_path("--socket", text);
		break;
	case O_MODE:
		o->mode = mode_of(text);
		break;
	case O_GROUP:
		o->group = group_of(text);
		o->with_group = true;
		break;
	case O_USER:
		if (o->user_count == MAX_USERS)
			die(EXIT_USAGE, "--allow-user: %d users are the most: "
			    "use --group", MAX_USERS);
		o->users[o->user_count++] = user_of(text);
		break;
	case O_RING:
		o->ring = number_between("--ring", text, 16, 1048576);
		break;
	case O_CLIENTS:
		o->clients = number_between("--clients", text, 1, MAX_CLIENTS);
		break;
	case O_SHIELD:
		set_bound(o, text);
		break;
	case O_FOREGROUND:
		o->foreground = true;
		break;
	case O_PIDFILE:
		o->pidfile = text;
		break;
	case O_VERBOSE:
		o->verbose = true;
		break;
	default:
		(void)fputs(usage, stdout);
		exit(fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILED);
	}
}

void
options_parse(struct options *o, int argc, char **argv)
{
	const mode_t unset = 07777;
	int option;

	*o = (struct options){ .device = "/dev/l4s",
	    .socket = DEFAULT_SOCKET, .mode = unset, .ring = 16384,
	    .clients = 16, .shield = WIDEST };
	opterr = 0;
	while ((option = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
		if (option == ':')
			die(EXIT_USAGE, "%s needs a value: see --help",
			    argv[optind - 1]);
		if (option == '?' && optopt > 0 && optopt < O_DEVICE)
			die(EXIT_USAGE, "-%c is not an option: see --help",
			    optopt);
		if (option == '?')
			die(EXIT_USAGE, "%s is not an option: see --help",
			    argv[optind - 1]);
		set_option(o, option, optarg);
	}
	if (optind < argc)
		die(EXIT_USAGE, "%s is not an option: see --help",
		    argv[optind]);
	if (o->mode == unset)
		o->mode = o->with_group ? 0660 : 0600;
	if (o->device_is_socket && strcmp(o->device, o->socket) == 0)
		die(EXIT_USAGE, "--device and --socket are both %s: give the "
		    "daemon a socket of its own", o->socket);
}
