/*
 * SPDX-License-Identifier: MIT
 *
 * What the daemon was told on its command line.
 */
#ifndef L4S_OPTIONS_H
#define L4S_OPTIONS_H

#include <sys/types.h>

#include <stdbool.h>
#include <stdint.h>

#include "l4s_core.h"

#define MAX_USERS 32
#define MAX_CLIENTS 250		/* an index fits in a byte */

struct options {
	const char *device;		/* path */
	bool device_is_socket;
	const char *socket;
	mode_t mode;
	bool with_group;
	gid_t group;
	uid_t users[MAX_USERS];
	unsigned user_count;
	uint32_t ring;			/* entries of each client */
	uint32_t clients;
	bool shielded;			/* a bound was given */
	struct l4s_bounds shield;
	bool foreground;
	const char *pidfile;
	bool verbose;
};

/* Reads the command line; on --help or an error, the end of the program. */
void options_parse(struct options *o, int argc, char **argv);

#endif
