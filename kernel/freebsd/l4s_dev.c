/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * /dev/l4s: open, read, write, poll, kqueue, ioctl. Copies to and from user
 * space are made with no lock held.
 */
#include "l4s_include.h"

#include <sys/event.h>
#include <sys/fcntl.h>
#include <sys/filio.h>
#include <sys/poll.h>
#include <sys/uio.h>

#include "l4s_ioctl.h"
#include "l4s_kern.h"

static struct l4s_softc *const sc = &l4s_softc;

static d_open_t dev_open;
static d_read_t dev_read;
static d_write_t dev_write;
static d_ioctl_t dev_ioctl;
static d_poll_t dev_poll;
static d_kqfilter_t dev_kqfilter;

static struct cdevsw l4s_cdevsw = {
	.d_version = D_VERSION,
	.d_name = "l4s",
	.d_open = dev_open,
	.d_read = dev_read,
	.d_write = dev_write,
	.d_ioctl = dev_ioctl,
	.d_poll = dev_poll,
	.d_kqfilter = dev_kqfilter,
};

/* -- descriptors */

static void
forget(void *arg)
{
	struct l4s_client *client = arg;

	seldrain(&client->select);
	knlist_clear(&client->select.si_note, 0);
	knlist_destroy(&client->select.si_note);
	free(client, M_L4S);
}

/* The last close of a descriptor. */
static void
closed(void *arg)
{
	mtx_lock(&l4s_mtx);
	l4s_leave(arg);
	mtx_unlock(&l4s_mtx);
	forget(arg);
}

static int
dev_open(struct cdev *dev __unused, int flags __unused, int type __unused,
    struct thread *td __unused)
{
	struct l4s_client *client;
	int error = 0;

	client = malloc(sizeof(*client), M_L4S, M_WAITOK | M_ZERO);
	knlist_init_mtx(&client->select.si_note, &l4s_mtx);
	mtx_lock(&l4s_mtx);
	if (sc->leaving)
		error = ENXIO;
	else if (sc->opens == L4S_OPENS)
		error = EMFILE;
	if (error == 0) {
		sc->opens++;
		LIST_INSERT_HEAD(&sc->clients, client, link);
		client->cursor = sc->head;
		l4s_hello(client);
	}
	mtx_unlock(&l4s_mtx);
	if (error != 0) {
		forget(client);
		return (error);
	}
	error = devfs_set_cdevpriv(client, closed);
	if (error != 0)
		closed(client);
	return (error);
}

/* -- read and write */

/* Wait until there is something to read; l4s_mtx is held. */
static int
await(struct l4s_client *client, int ioflag)
{
	int error;

	while (!l4s_readable(client)) {
		if ((ioflag & O_NONBLOCK) != 0)
			return (EWOULDBLOCK);
		client->sleeps = true;
		error = mtx_sleep(client, &l4s_mtx, PCATCH, "l4srd", 0);
		if (error != 0)
			return (error);
	}
	return (0);
}

/* Whole entries: as many as there are and fit, at most a batch. */
static int
dev_read(struct cdev *dev __unused, struct uio *uio, int ioflag)
{
	struct l4s_entry *entries;
	struct l4s_client *client;
	size_t room = (size_t)uio->uio_resid / sizeof(*entries);
	unsigned int n = 0;
	int error;

	error = devfs_get_cdevpriv((void **)&client);
	if (error != 0)
		return (error);
	if (room == 0)
		return (EINVAL);
	if (room > L4S_BATCH)
		room = L4S_BATCH;
	entries = malloc(room * sizeof(*entries), M_L4S, M_WAITOK);
	mtx_lock(&l4s_mtx);
	error = await(client, ioflag);
	if (error == 0)
		n = l4s_take_entries(client, entries, (unsigned int)room);
	mtx_unlock(&l4s_mtx);
	if (error == 0)
		error = uiomove(entries, (int)(n * sizeof(*entries)), uio);
	free(entries, M_L4S);
	return (error);
}

/* Whole commands. */
static int
dev_write(struct cdev *dev __unused, struct uio *uio, int ioflag __unused)
{
	struct l4s_command command;
	struct l4s_client *client;
	int error;

	error = devfs_get_cdevpriv((void **)&client);
	if (error != 0)
		return (error);
	if (uio->uio_resid == 0 ||
	    (size_t)uio->uio_resid % sizeof(command) != 0)
		return (EINVAL);
	while (error == 0 && uio->uio_resid > 0) {
		error = uiomove(&command, sizeof(command), uio);
		if (error != 0)
			break;
		mtx_lock(&l4s_mtx);
		error = l4s_command(client, &command);
		mtx_unlock(&l4s_mtx);
	}
	return (error);
}

/* -- poll and kqueue */

static int
dev_poll(struct cdev *dev __unused, int events, struct thread *td)
{
	struct l4s_client *client;
	int ready = events & (POLLOUT | POLLWRNORM);

	if (devfs_get_cdevpriv((void **)&client) != 0)
		return (events & (POLLHUP | POLLIN | POLLRDNORM));
	if ((events & (POLLIN | POLLRDNORM)) == 0)
		return (ready);
	mtx_lock(&l4s_mtx);
	if (l4s_readable(client)) {
		ready |= events & (POLLIN | POLLRDNORM);
	} else {
		client->selects = true;
		selrecord(td, &client->select);
	}
	mtx_unlock(&l4s_mtx);
	return (ready);
}

static void
filter_detach(struct knote *kn)
{
	struct l4s_client *client = kn->kn_hook;

	knlist_remove(&client->select.si_note, kn, 0);
}

/* l4s_mtx is held: it is the list's lock. */
static int
filter_read(struct knote *kn, long hint __unused)
{
	struct l4s_client *client = kn->kn_hook;
	bool ready = l4s_readable(client);

	kn->kn_data = (int64_t)((client->replies + sc->head - client->cursor) *
	    sizeof(struct l4s_entry));
	return (ready);
}

static int
filter_write(struct knote *kn, long hint __unused)
{
	kn->kn_data = sizeof(struct l4s_command);
	return (1);
}

static struct filterops read_ops = {
	.f_isfd = 1,
	.f_detach = filter_detach,
	.f_event = filter_read,
};

static struct filterops write_ops = {
	.f_isfd = 1,
	.f_detach = filter_detach,
	.f_event = filter_write,
};

static int
dev_kqfilter(struct cdev *dev __unused, struct knote *kn)
{
	struct l4s_client *client;
	int error;

	error = devfs_get_cdevpriv((void **)&client);
	if (error != 0)
		return (error);
	if (kn->kn_filter == EVFILT_READ)
		kn->kn_fop = &read_ops;
	else if (kn->kn_filter == EVFILT_WRITE)
		kn->kn_fop = &write_ops;
	else
		return (EINVAL);
	kn->kn_hook = client;
	knlist_add(&client->select.si_note, kn, 0);
	return (0);
}

/* -- ioctl */

/* The caller's model, checked, or NULL with an error; NULL and 0: none. */
static int
fetch_model(const struct l4s_model_request *request, struct l4s_model **model)
{
	static const int errors[] = {
		[L4S_FAULTLESS] = 0,
		[L4S_NO_MODEL] = EINVAL,
		[L4S_OTHER_VERSION] = EPROTONOSUPPORT,
		[L4S_WRONG_SIZE] = EINVAL,
		[L4S_OUT_OF_RANGE] = ERANGE,
	};
	/* An address of the caller's, in a field of fixed size. */
	/* NOLINTNEXTLINE(performance-no-int-to-ptr) */
	const void *data = (const void *)(uintptr_t)request->model;
	int error;

	*model = NULL;
	if (request->reserved != 0)
		return (EINVAL);
	if (request->size > L4S_MODEL_MOST)
		return (EFBIG);
	if (request->size == 0)
		return (0);
	*model = malloc(request->size, M_L4S, M_WAITOK);
	error = copyin(data, *model, request->size);
	if (error == 0)
		error = errors[l4s_model_check(*model, request->size)];
	if (error != 0) {
		free(*model, M_L4S);
		*model = NULL;
	}
	return (error);
}

/* The model decides where no controller does, and stays after the close. */
static int
load_model(struct l4s_client *client, const struct l4s_model_request *request)
{
	struct l4s_model *model, *old;
	int error;

	error = fetch_model(request, &model);
	if (error != 0)
		return (error);
	mtx_lock(&l4s_mtx);
	if (sc->controller != NULL && sc->controller != client) {
		old = model;
		error = EBUSY;
	} else {
		old = sc->model;
		sc->model = model;
		if (sc->current != NULL) {
			l4s_set_model(&sc->current->core, model, l4s_now());
			l4s_arm(&sc->current->core);
		}
	}
	mtx_unlock(&l4s_mtx);
	free(old, M_L4S);
	return (error);
}

static int
law(struct l4s_client *client, struct l4s_law_request *request, int flags)
{
	int error;

	if (request->command.kind != L4S_GET_LAW && (flags & FWRITE) == 0)
		return (EBADF);
	mtx_lock(&l4s_mtx);
	error = l4s_law_now(client, &request->command, &request->law);
	mtx_unlock(&l4s_mtx);
	return (error);
}

static int
dev_ioctl(struct cdev *dev __unused, u_long request, caddr_t data, int flags,
    struct thread *td __unused)
{
	struct l4s_client *client;
	int error;

	error = devfs_get_cdevpriv((void **)&client);
	if (error != 0)
		return (error);
	if ((request == L4SIOC_DECIDE || request == L4SIOC_MODEL) &&
	    (flags & FWRITE) == 0)
		return (EBADF);
	switch (request) {
	case FIONBIO:	/* devfs looks after both */
	case FIOASYNC:
		return (0);
	case L4SIOC_DECIDE:
		mtx_lock(&l4s_mtx);
		error = l4s_decide_now(client, (struct l4s_command *)data);
		mtx_unlock(&l4s_mtx);
		return (error);
	case L4SIOC_STATUS:
		mtx_lock(&l4s_mtx);
		l4s_status(client, (struct l4s_status *)data);
		mtx_unlock(&l4s_mtx);
		return (0);
	case L4SIOC_MODEL:
		return (load_model(client,
		    (const struct l4s_model_request *)data));
	case L4SIOC_LAW:
		return (law(client, (struct l4s_law_request *)data, flags));
	default:
		return (ENOTTY);
	}
}

/* -- the device */

int
l4s_dev_attach(void)
{
	struct make_dev_args args;

	make_dev_args_init(&args);
	args.mda_flags = MAKEDEV_CHECKNAME | MAKEDEV_WAITOK;
	args.mda_devsw = &l4s_cdevsw;
	args.mda_uid = UID_ROOT;
	args.mda_gid = GID_WHEEL;
	args.mda_mode = 0600;
	return (make_dev_s(&args, &sc->dev, "l4s"));
}

void
l4s_dev_detach(void)
{
	destroy_dev(sc->dev);
	sc->dev = NULL;
}
