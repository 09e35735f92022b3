/*
 * SPDX-License-Identifier: MIT
 */
#include "listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

#define BACKLOG 64

static void
set_address(struct sockaddr_un *address, const char *path)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, path, strlen(path));
}

/* 0 where nobody listens there, -1 where somebody does, else an errno. */
static int
try_connect(const struct sockaddr_un *address)
{
	int fd, error = -1;

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return errno;
	if (connect(fd, (const struct sockaddr *)address,
	    sizeof(*address)) != 0 && errno != EAGAIN)	/* EAGAIN: is busy */
		error = errno == ECONNREFUSED ? 0 : errno;
	close(fd);
	return error;
}

/* Whether the path is free, after the removal of a dead daemon's file. */
static bool
make_way(const struct sockaddr_un *address, char *why, size_t size)
{
	const char *path = address->sun_path;
	struct stat status;
	int error;

	if (lstat(path, &status) != 0) {
		if (errno == ENOENT)
			return true;
		(void)snprintf(why, size, "%s: %s: give another --socket",
		    path, strerror(errno));
		return false;
	}
	if (!S_ISSOCK(status.st_mode)) {
		(void)snprintf(why, size, "%s exists and is not a socket: "
		    "remove it, or give another --socket", path);
		return false;
	}
	error = try_connect(address);
	if (error == -1)
		(void)snprintf(why, size, "another daemon serves %s: stop it, "
		    "or give another --socket", path);
	else if (error != 0)
		(void)snprintf(why, size, "%s is a socket that is not ours "
		    "(%s): remove it, or give another --socket", path,
		    strerror(error));
	else if (unlink(path) != 0 && errno != ENOENT)
		(void)snprintf(why, size, "%s was left by a dead daemon and "
		    "cannot be removed (%s): remove it", path,
		    strerror(errno));
	else
		return true;
	return false;
}

/* The mode is right from the start: nobody listens before the group is. */
static bool
bind_and_listen(struct listener *l, const struct sockaddr_un *address)
{
	const struct options *o = l->options;
	const char *path = address->sun_path;
	struct stat status;
	mode_t mask = umask((mode_t)0777 & ~o->mode);
	int done = bind(l->fd, (const struct sockaddr *)address,
	    sizeof(*address));

	(void)umask(mask);
	if (done != 0)
		return false;
	if ((o->with_group && lchown(path, (uid_t)-1, o->group) != 0) ||
	    lstat(path, &status) != 0 || listen(l->fd, BACKLOG) != 0) {
		int error = errno;

		(void)unlink(path);
		errno = error;
		return false;
	}
	l->device = status.st_dev;
	l->inode = status.st_ino;
	return true;
}

bool
listener_open(struct listener *l, char *why, size_t size)
{
	struct sockaddr_un address;

	set_address(&address, l->options->socket);
	l->fd = -1;
	l->complained = false;
	if (!make_way(&address, why, size))
		return false;
	l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->fd >= 0 && bind_and_listen(l, &address))
		return true;
	(void)snprintf(why, size, "%s: %s: give a --socket (and a --group) "
	    "that this user may make", address.sun_path, strerror(errno));
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
	return false;
}

static bool
is_ours(const struct listener *l, const struct stat *status)
{
	return status->st_dev == l->device && status->st_ino == l->inode;
}

bool
listener_lost(struct listener *l)
{
	struct stat status;

	if (l->fd < 0)
		return true;
	if (lstat(l->options->socket, &status) != 0)
		return errno == ENOENT;
	if (is_ours(l, &status))
		l->complained = false;
	else if (!l->complained) {
		say("%s is somebody else's now: nobody new can connect until "
		    "it is removed", l->options->socket);
		l->complained = true;
	}
	return false;
}

void
listener_close(struct listener *l)
{
	struct stat status;

	if (l->fd < 0)
		return;
	if (lstat(l->options->socket, &status) == 0 && is_ours(l, &status))
		(void)unlink(l->options->socket);
	close(l->fd);
	l->fd = -1;
}
