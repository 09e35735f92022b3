/*
 * SPDX-License-Identifier: MIT
 *
 * The simulated kernel: the character device with its descriptors, select and
 * kqueue, copies from and to user space, sysctls.
 */
#include "kernel.h"

#define DESCRIPTORS 64
#define KNOTES 64

/* What happens when a read(2) sleeps: harness_sleeper(). */
enum {
	SLEEP_SIGNAL,	/* a signal comes */
	SLEEP_PACKET,	/* a packet arrives at scheduler 1 */
	SLEEP_OTHER	/* a packet that the reader did not ask for */
};

struct cdev {
	const struct cdevsw *sw;
	bool exists;
};

struct descriptor {
	bool open;
	int flags;
	void *priv;
	void (*destructor)(void *data);
	unsigned int woken;
};

struct thread {
	int fd;
};

static struct cdev device;
static struct descriptor descriptor[DESCRIPTORS];
static struct descriptor *current;
static struct thread threads[DESCRIPTORS];
static struct knote knote[KNOTES];
static int knote_owner[KNOTES];	/* descriptor + 1; 0: free */
static int sleeper;
static void *sleeps_on;
static struct sysctl_oid *oids;

/* -- copies */

int
sim_uiomove(void *memory, int length, struct uio *uio)
{
	sim_may_sleep("uiomove");
	if (length < 0 || length > uio->uio_resid)
		sim_panic("uiomove of %d bytes, of %ld", length,
		    uio->uio_resid);
	if (sim_fails(FAIL_COPY))
		return (EFAULT);
	if (uio->reads)
		memcpy(uio->memory, memory, (size_t)length);
	else
		memcpy(memory, uio->memory, (size_t)length);
	uio->memory += length;
	uio->uio_resid -= length;
	return (0);
}

int
sim_copyin(const void *from, void *to, size_t length)
{
	sim_may_sleep("copyin");
	if (sim_fails(FAIL_COPY))
		return (EFAULT);
	memcpy(to, from, length);
	return (0);
}

/* -- the device */

int
sim_make_dev(struct make_dev_args *args, struct cdev **dev, const char *name)
{
	sim_may_sleep("make_dev_s");
	if (sim_fails(FAIL_MAKE_DEV))
		return (ENOMEM);
	if (strcmp(name, "l4s") != 0 || args->mda_mode != 0600 ||
	    args->mda_uid != UID_ROOT || args->mda_gid != GID_WHEEL)
		sim_panic("device %s, mode %o", name, (u_int)args->mda_mode);
	device = (struct cdev){ .sw = args->mda_devsw, .exists = true };
	*dev = &device;
	sim_live(1, "device");
	return (0);
}

static void
end_priv(struct descriptor *d)
{
	void (*destructor)(void *data) = d->destructor;

	d->destructor = NULL;
	if (destructor != NULL)
		destructor(d->priv);
	d->priv = NULL;
}

void
sim_destroy_dev(struct cdev *dev)
{
	sim_may_sleep("destroy_dev");
	if (!dev->exists)
		sim_panic("destroy_dev twice");
	for (int i = 0; i < DESCRIPTORS; i++)
		end_priv(&descriptor[i]);
	dev->exists = false;
	sim_live(-1, "");
}

int
sim_set_cdevpriv(void *data, void (*destructor)(void *data))
{
	sim_may_sleep("devfs_set_cdevpriv");
	if (sim_fails(FAIL_CDEVPRIV))
		return (ENOENT);
	current->priv = data;
	current->destructor = destructor;
	return (0);
}

int
sim_get_cdevpriv(void **data)
{
	if (current == NULL || current->destructor == NULL)
		return (EBADF);
	*data = current->priv;
	return (0);
}

/* The descriptor, if it can be used; what is called next is called for it. */
static struct descriptor *
use(int fd)
{
	struct descriptor *d;

	if (fd < 0 || fd >= DESCRIPTORS || !descriptor[fd].open ||
	    !device.exists)
		return (NULL);
	d = &descriptor[fd];
	current = d;
	return (d);
}

static int64_t
done(int64_t result)
{
	sim_may_sleep("the return to user space");
	current = NULL;
	return (result);
}

int
harness_open(int flags)
{
	int fd = 0, error;

	if (!device.exists)
		return (-ENOENT);
	while (fd < DESCRIPTORS && descriptor[fd].open)
		fd++;
	if (fd == DESCRIPTORS)
		return (-ENFILE);
	threads[fd].fd = fd;
	descriptor[fd] = (struct descriptor){ .open = true, .flags = flags };
	current = &descriptor[fd];
	error = device.sw->d_open(&device, flags, 0, &threads[fd]);
	if (error != 0) {
		end_priv(&descriptor[fd]);
		descriptor[fd].open = false;
	}
	return ((int)done(error != 0 ? -error : fd));
}

int64_t
harness_read(int fd, void *memory, int64_t size, int nonblocking)
{
	struct uio uio = { .uio_resid = size, .memory = memory, .reads = true };
	int error;

	if (use(fd) == NULL)
		return (-ENXIO);
	error = device.sw->d_read(&device, &uio,
	    nonblocking != 0 ? O_NONBLOCK : 0);
	return (done(error != 0 ? -error : size - uio.uio_resid));
}

int64_t
harness_write(int fd, const void *memory, int64_t size)
{
	struct uio uio = { .uio_resid = size };
	int error;

	if (use(fd) == NULL)
		return (-ENXIO);
	memcpy(&uio.memory, &memory, sizeof(memory));
	error = device.sw->d_write(&device, &uio, 0);
	return (done(error != 0 ? -error : size - uio.uio_resid));
}

int harness_poll(int fd, int events);
int
harness_poll(int fd, int events)
{
	if (use(fd) == NULL)
		return (-ENXIO);
	return ((int)done(device.sw->d_poll(&device, events, &threads[fd])));
}

int harness_ioctl(int fd, unsigned long request, void *data);
int
harness_ioctl(int fd, unsigned long request, void *data)
{
	struct descriptor *d = use(fd);

	if (d == NULL)
		return (-ENXIO);
	return ((int)done(-device.sw->d_ioctl(&device, request, data, d->flags,
	    &threads[fd])));
}

int
harness_close(int fd)
{
	struct descriptor *d = use(fd);

	if (d == NULL)
		return (-EBADF);
	for (int i = 0; i < KNOTES; i++) {
		if (knote_owner[i] == fd + 1) {
			knote[i].kn_fop->f_detach(&knote[i]);
			knote_owner[i] = 0;
		}
	}
	end_priv(d);
	d->open = false;
	return ((int)done(0));
}

/* -- sleeping */

void harness_sleeper(int kind);
void
harness_sleeper(int kind)
{
	sleeper = kind;
}

int
sim_mtx_sleep(void *channel, struct mtx *m, int priority,
    const char *message __unused, int timeout)
{
	struct descriptor *who = current;
	bool woken;

	if (priority != PCATCH || timeout != 0)
		sim_panic("a sleep that no signal ends");
	sim_mtx_unlock(m);
	sim_may_sleep("mtx_sleep with another lock");
	sleeps_on = channel;
	if (sleeper != SLEEP_SIGNAL)
		(void)harness_arrive(1, 0, 1500, 7, 1, 0);
	woken = sleeps_on == NULL;
	sleeps_on = NULL;
	current = who;
	sim_mtx_lock(m);
	if (sleeper == SLEEP_PACKET && !woken)
		sim_panic("the reader was not woken");
	return (woken ? 0 : EINTR);
}

void
sim_wakeup(void *channel)
{
	if (channel == sleeps_on)
		sleeps_on = NULL;
}

/* -- select */

void
sim_selrecord(struct thread *td, struct selinfo *si)
{
	si->who = td;
}

void
sim_selwakeup(struct selinfo *si)
{
	if (si->who != NULL)
		descriptor[si->who->fd].woken++;
	si->who = NULL;
}

void
sim_seldrain(struct selinfo *si)
{
	sim_may_sleep("seldrain");
	sim_selwakeup(si);
}

int harness_woken(int fd);
int
harness_woken(int fd)
{
	return ((int)descriptor[fd].woken);
}

/* -- kqueue */

void
sim_knlist_init(struct knlist *list, struct mtx *lock)
{
	*list = (struct knlist){ .lock = lock };
	sim_live(1, "knlist");
}

static void
lock_list(const struct knlist *list, int locked)
{
	if (locked != 0)
		sim_mtx_assert(list->lock);
	else
		sim_mtx_lock(list->lock);
}

static void
unlock_list(const struct knlist *list, int locked)
{
	if (locked == 0)
		sim_mtx_unlock(list->lock);
}

void
sim_knlist_add(struct knlist *list, struct knote *kn, int locked)
{
	lock_list(list, locked);
	kn->next = list->first;
	kn->list = list;
	list->first = kn;
	unlock_list(list, locked);
}

void
sim_knlist_remove(struct knlist *list, struct knote *kn, int locked)
{
	struct knote **at;

	lock_list(list, locked);
	at = &list->first;
	while (*at != NULL && *at != kn)
		at = &(*at)->next;
	if (*at == NULL)
		sim_panic("knlist_remove of a stranger");
	*at = kn->next;
	unlock_list(list, locked);
}

void
sim_knlist_clear(struct knlist *list, int locked)
{
	sim_may_sleep("knlist_clear");
	lock_list(list, locked);
	list->first = NULL;
	unlock_list(list, locked);
}

void
sim_knlist_destroy(struct knlist *list)
{
	if (list->first != NULL)
		sim_panic("knlist destroyed with knotes");
	sim_live(-1, "");
}

void
sim_knote(struct knlist *list, long hint)
{
	sim_mtx_assert(list->lock);
	for (struct knote *kn = list->first; kn != NULL; kn = kn->next)
		if (kn->kn_fop->f_event(kn, hint) != 0)
			kn->fired++;
}

/* Register a filter: its number, or an errno. */
int harness_kevent(int fd, int filter);
int
harness_kevent(int fd, int filter)
{
	int i = 0, error;

	if (use(fd) == NULL)
		return (-ENXIO);
	while (i < KNOTES && knote_owner[i] != 0)
		i++;
	if (i == KNOTES)
		return ((int)done(-ENFILE));
	knote[i] = (struct knote){ .kn_filter = (short)filter };
	error = device.sw->d_kqfilter(&device, &knote[i]);
	if (error == 0)
		knote_owner[i] = fd + 1;
	return ((int)done(error != 0 ? -error : i));
}

/* Ask a filter: bytes that it promises, or -1 where it is not ready. */
int64_t harness_kevent_data(int number, unsigned int *fired);
int64_t
harness_kevent_data(int number, unsigned int *fired)
{
	struct knote *kn = &knote[number];
	int ready;

	sim_mtx_lock(kn->list->lock);
	ready = kn->kn_fop->f_event(kn, 0);
	sim_mtx_unlock(kn->list->lock);
	*fired = kn->fired;
	return (ready != 0 ? kn->kn_data : -1);
}

/* -- sysctls */

void
sim_add_sysctl(struct sysctl_oid *oid)
{
	oid->next = oids;
	oids = oid;
}

int
sim_sysctl_handle(uint64_t *value, struct sysctl_req *req)
{
	sim_may_sleep("a sysctl's copy");
	req->old = *value;
	if (req->newptr != NULL)
		*value = req->fresh;
	return (0);
}

int
sim_sysctl_handle_32(uint32_t *value, struct sysctl_req *req)
{
	uint64_t wide = *value;

	(void)sim_sysctl_handle(&wide, req);
	*value = (uint32_t)wide;
	return (0);
}

/* A sysctl of the module, by its last name; `fresh` NULL: only read. */
int harness_sysctl(const char *name, const uint64_t *fresh, uint64_t *old);
int
harness_sysctl(const char *name, const uint64_t *fresh, uint64_t *old)
{
	struct sysctl_req req = { .newptr = fresh,
	    .fresh = fresh != NULL ? *fresh : 0 };
	struct sysctl_oid *oid = oids;
	int error;

	while (oid != NULL && strcmp(oid->name, name) != 0)
		oid = oid->next;
	if (oid == NULL)
		return (-ENOENT);
	if (fresh != NULL && (oid->kind & CTLFLAG_WR) == 0)
		return (-EPERM);
	error = oid->handler(oid, oid->arg1, oid->arg2, &req);
	*old = req.old;
	return ((int)done(-error));
}

/* The n-th sysctl's name, or NULL. */
const char *harness_sysctl_name(int n);
const char *
harness_sysctl_name(int n)
{
	struct sysctl_oid *oid = oids;

	while (oid != NULL && n-- > 0)
		oid = oid->next;
	return (oid != NULL ? oid->name : NULL);
}
