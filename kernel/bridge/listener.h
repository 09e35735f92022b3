/*
 * SPDX-License-Identifier: MIT
 *
 * The socket that clients connect to: its file, and who may.
 */
#ifndef L4S_LISTENER_H
#define L4S_LISTENER_H

#include <sys/types.h>

#include <stdbool.h>
#include <stddef.h>

#include "options.h"

struct listener {
	const struct options *options;
	int fd;			/* -1: none */
	dev_t device;		/* of the file, to know it again */
	ino_t inode;
	bool complained;	/* that somebody else has the path */
};

/*
 * Listen; false: `why` says why not, and what to do. Replaces the file that
 * a dead daemon left, and nothing else.
 */
bool listener_open(struct listener *l, char *why, size_t size);

/* Whether the file is gone, and the listener should be opened anew. */
bool listener_lost(struct listener *l);

/* Stop listening and remove the file, if it is ours. */
void listener_close(struct listener *l);

/* Whether the other end of a connection may use the daemon. */
bool peer_allowed(const struct options *o, int fd, uid_t *user);

#endif
