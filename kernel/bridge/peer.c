/*
 * SPDX-License-Identifier: MIT
 *
 * Who is at the other end of a Unix socket, by the kernel's word.
 */
#include "listener.h"

#include <sys/socket.h>
#include <sys/un.h>

#ifndef __linux__
#include <sys/ucred.h>
#endif
#include <unistd.h>

#ifdef __linux__

#define MAX_GROUPS 1024

static bool
in_group(int fd, gid_t group)
{
	gid_t groups[MAX_GROUPS];
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
	    peer.gid == group)
		return true;
	size = sizeof(groups);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) != 0)
		return false;
	for (size_t i = 0; i < size / sizeof(groups[0]); i++)
		if (groups[i] == group)
			return true;
	return false;
}

static bool
user_of(int fd, uid_t *user)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
		return false;
	*user = peer.uid;
	return true;
}

#else

static bool
in_group(int fd, gid_t group)
{
	struct xucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERCRED, &peer, &size) != 0 ||
	    peer.cr_version != XUCRED_VERSION)
		return false;
	for (short i = 0; i < peer.cr_ngroups && i < XU_NGROUPS; i++)
		if (peer.cr_groups[i] == group)
			return true;
	return false;
}

static bool
user_of(int fd, uid_t *user)
{
	gid_t group;

	return getpeereid(fd, user, &group) == 0;
}

#endif

bool
peer_allowed(const struct options *o, int fd, uid_t *user)
{
	if (!user_of(fd, user))
		return false;
	if (*user == 0 || *user == geteuid())
		return true;
	for (unsigned i = 0; i < o->user_count; i++)
		if (*user == o->users[i])
			return true;
	return o->with_group && in_group(fd, o->group);
}
