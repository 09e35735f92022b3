/*
 * SPDX-License-Identifier: MIT
 *
 * The simulated kernel: memory, locks, the clock and its callouts, the message
 * buffer, loading and unloading.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel.h"

#define LOG_SIZE (8 << 20)
#define RANK_DUMMYNET 1
#define RANK_OTHER 2

/* -- failures */

static int64_t fail_at[FAIL_KINDS];	/* so many calls from now; 0: none */
static int64_t calls[FAIL_KINDS];

_Noreturn void
sim_panic(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("panic: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	abort();
}

bool
sim_fails(int kind)
{
	calls[kind]++;
	return (fail_at[kind] > 0 && --fail_at[kind] == 0);
}

void harness_fail(int kind, int64_t nth);
void
harness_fail(int kind, int64_t nth)
{
	fail_at[kind] = nth;
}

int64_t harness_calls(int kind);
int64_t
harness_calls(int kind)
{
	return (calls[kind]);
}

/* -- locks */

static struct mtx *held[4];
static int held_count;
static struct sim_mutex *mutexes;

void
sim_mtx_init(struct mtx *m, const char *name)
{
	if (m->exists)
		sim_panic("mutex %s made twice", name);
	*m = (struct mtx){ .name = name, .exists = true, .rank =
	    strcmp(name, "dn_uh") == 0 ? RANK_DUMMYNET : RANK_OTHER };
}

void
sim_mtx_destroy(struct mtx *m)
{
	if (!m->exists || m->owned)
		sim_panic("mutex destroyed while held or twice");
	m->exists = false;
}

void
sim_mtx_lock(struct mtx *m)
{
	if (!m->exists)
		sim_panic("locking a mutex that is not there");
	for (int i = 0; i < held_count; i++)
		if (held[i]->rank >= m->rank)
			sim_panic("%s locked while %s is held", m->name,
			    held[i]->name);
	m->owned = true;
	held[held_count++] = m;
}

void
sim_mtx_unlock(struct mtx *m)
{
	if (!m->owned || held[held_count - 1] != m)
		sim_panic("unlocking a mutex that is not held");
	m->owned = false;
	held_count--;
}

void
sim_mtx_assert(const struct mtx *m)
{
	if (!m->owned)
		sim_panic("mutex %s not owned", m->name);
}

void
sim_may_sleep(const char *what)
{
	if (held_count > 0)
		sim_panic("%s sleeps while %s is held", what,
		    held[held_count - 1]->name);
}

void
sim_add_mutex(struct sim_mutex *m)
{
	m->next = mutexes;
	mutexes = m;
}

/* -- memory */

struct block {
	struct malloc_type *type;
	size_t size;
	max_align_t memory[];
};

struct uma_zone {
	const char *name;
	size_t size;
	uint64_t live;
};

static int64_t live, blocks;
static char last_live[64];

void
sim_live(int64_t change, const char *what)
{
	live += change;
	if (change > 0)
		snprintf(last_live, sizeof(last_live), "%s", what);
}

static void *
allocate(size_t size, int flags)
{
	bool waits = (flags & M_WAITOK) != 0;
	void *memory;

	if (waits == ((flags & M_NOWAIT) != 0))
		sim_panic("allocation with neither or both of NOWAIT, WAITOK");
	if (waits)
		sim_may_sleep("an allocation with M_WAITOK");
	else if (sim_fails(FAIL_ALLOCATION))
		return (NULL);
	memory = (malloc)(size);
	if (memory == NULL)
		sim_panic("out of memory");
	memset(memory, (flags & M_ZERO) != 0 ? 0 : 0xa5, size);
	return (memory);
}

void *
sim_malloc(size_t size, struct malloc_type *type, int flags)
{
	struct block *block = allocate(sizeof(*block) + size, flags);

	if (block == NULL)
		return (NULL);
	block->type = type;
	block->size = size;
	type->live++;
	blocks++;
	sim_live(1, type->name);
	return (block->memory);
}

void
sim_free(void *memory, struct malloc_type *type)
{
	struct block *block;

	if (memory == NULL)
		return;
	block = (struct block *)(void *)((char *)memory -
	    offsetof(struct block, memory));
	if (block->type != type)
		sim_panic("freed as %s", type->name);
	type->live--;
	blocks--;
	sim_live(-1, "");
	memset(memory, 0xde, block->size);
	(free)(block);
}

uma_zone_t
sim_uma_zcreate(const char *name, size_t size)
{
	uma_zone_t zone;

	sim_may_sleep("uma_zcreate");
	zone = (malloc)(sizeof(*zone));
	if (zone == NULL)
		sim_panic("out of memory");
	*zone = (struct uma_zone){ .name = name, .size = size };
	sim_live(1, name);
	return (zone);
}

void
sim_uma_zdestroy(uma_zone_t zone)
{
	sim_may_sleep("uma_zdestroy");
	if (zone->live > 0)
		sim_panic("%s: zone destroyed with %ju items in use",
		    zone->name, (uintmax_t)zone->live);
	sim_live(-1, "");
	(free)(zone);
}

void *
sim_uma_zalloc(uma_zone_t zone, int flags)
{
	void *item = allocate(zone->size, flags);

	if (item == NULL)
		return (NULL);
	zone->live++;
	sim_live(1, zone->name);
	return (item);
}

void
sim_uma_zfree(uma_zone_t zone, void *item)
{
	if (zone->live == 0)
		sim_panic("%s: freed more than allocated", zone->name);
	zone->live--;
	sim_live(-1, "");
	memset(item, 0xde, zone->size);
	(free)(item);
}

/* Live objects of every kind; the kind that was made last. */
int64_t harness_live(char *text, size_t size);
int64_t
harness_live(char *text, size_t size)
{
	snprintf(text, size, "%s", live > 0 ? last_live : "");
	return (live);
}

/* -- the clock: ns since the start */

static int64_t now_ns, jitter_ns;
static uint64_t random_next;

static sbintime_t
to_sbt(int64_t ns)
{
	int64_t s = ns / 1000000000, rest = ns % 1000000000;

	/* Up, so that sbttons() gives the same number back. */
	return ((s << 32) + ((rest << 32) + 999999999) / 1000000000);
}

sbintime_t
sim_sbinuptime(void)
{
	sbintime_t t = to_sbt(now_ns - jitter_ns);

	jitter_ns = 0;
	return (t);
}

int64_t
harness_now(void)
{
	return (now_ns);
}

/* The clock goes back for one look at it. */
void harness_jitter(int64_t ns);
void
harness_jitter(int64_t ns)
{
	jitter_ns = ns;
}

void harness_random(uint64_t next);
void
harness_random(uint64_t next)
{
	random_next = next;
}

void
sim_arc4rand(void *memory, u_int length, int reseed __unused)
{
	if (length != sizeof(random_next))
		sim_panic("arc4rand of %u bytes", length);
	memcpy(memory, &random_next, sizeof(random_next));
}

/* -- callouts */

static struct callout *callouts;

void
sim_callout_init(struct callout *c, struct mtx *m)
{
	*c = (struct callout){ .mutex = m, .made = true };
}

static void
unlink_callout(struct callout *c)
{
	struct callout **at = &callouts;

	while (*at != NULL && *at != c)
		at = &(*at)->next;
	if (*at != NULL)
		*at = c->next;
	c->pending = false;
}

void
sim_callout_reset(struct callout *c, sbintime_t at,
    void (*function)(void *argument), void *argument, int flags)
{
	if (!c->made || flags != C_ABSOLUTE)
		sim_panic("callout not made, or of another kind");
	sim_mtx_assert(c->mutex);
	unlink_callout(c);
	c->at = at;
	c->function = function;
	c->argument = argument;
	c->pending = true;
	c->next = callouts;
	callouts = c;
}

void
sim_callout_drain(struct callout *c)
{
	if (!c->made)
		sim_panic("callout not made");
	sim_may_sleep("callout_drain");
	unlink_callout(c);
}

static struct callout *
first_callout(void)
{
	struct callout *first = callouts;

	for (struct callout *c = callouts; c != NULL; c = c->next)
		if (c->at < first->at)
			first = c;
	return (first);
}

/* The first whole ns at which the next callout is due. */
int64_t
sim_callout_ns(void)
{
	const struct callout *c = first_callout();
	int64_t ns;

	if (c == NULL)
		return (INT64_MAX);
	ns = sbttons(c->at);
	return (to_sbt(ns) < c->at ? ns + 1 : ns);
}

static void
run_callout(void)
{
	struct callout *c = first_callout();
	struct mtx *m = c->mutex;

	if (sim_curvnet != NULL)
		sim_panic("callout with a vnet: the simulation is wrong");
	unlink_callout(c);
	sim_mtx_lock(m);
	c->function(c->argument);
	sim_mtx_unlock(m);
	if (sim_curvnet != NULL)
		sim_panic("callout leaves a vnet set");
}

/* Let time pass up to a moment before what is due at it. */
void
sim_pass(int64_t to_ns)
{
	int64_t at;

	while ((at = sim_callout_ns()) < to_ns) {
		if (at > now_ns)
			now_ns = at;
		run_callout();
	}
	if (to_ns > now_ns)
		now_ns = to_ns;
}

/* Let time pass; callouts run at their times. */
void
harness_advance(int64_t to_ns)
{
	sim_pass(to_ns);
	while (sim_callout_ns() <= to_ns)
		run_callout();
}

/* -- the message buffer */

static char log_text[LOG_SIZE];
static size_t log_length;

int
sim_printf(const char *format, ...)
{
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vsnprintf(log_text + log_length, LOG_SIZE - log_length, format,
	    arguments);
	va_end(arguments);
	if (n < 0 || (size_t)n >= LOG_SIZE - log_length)
		sim_panic("the message buffer is full");
	log_length += (size_t)n;
	return (n);
}

const char *harness_log(void);
const char *
harness_log(void)
{
	log_text[log_length] = '\0';
	log_length = 0;
	return (log_text);
}

size_t
sim_strlcpy(char *to, const char *from, size_t size)
{
	return ((size_t)snprintf(to, size, "%s", from));
}

/* -- the module */

static const moduledata_t *module;
static bool loaded;

void
sim_add_module(const moduledata_t *data)
{
	if (module != NULL)
		sim_panic("two modules");
	module = data;
}

static void
destroy_mutexes(void)
{
	for (struct sim_mutex *m = mutexes; m != NULL; m = m->next)
		sim_mtx_destroy(m->mutex);
}

int harness_load(void);
int
harness_load(void)
{
	int error;

	if (loaded)
		return (-EEXIST);
	now_ns = 0;
	for (int i = 0; i < VNETS; i++)
		if (!sim_vnet[i].dn.uh_mtx.exists)
			sim_mtx_init(&sim_vnet[i].dn.uh_mtx, "dn_uh");
	for (struct sim_mutex *m = mutexes; m != NULL; m = m->next)
		sim_mtx_init(m->mutex, m->name);
	error = module->evhand(NULL, MOD_LOAD, module->priv);
	if (error != 0)
		destroy_mutexes();
	loaded = error == 0;
	return (-error);
}

int harness_unload(void);
int
harness_unload(void)
{
	int error;

	if (!loaded)
		return (-ENOENT);
	error = module->evhand(NULL, MOD_QUIESCE, module->priv);
	if (error == EOPNOTSUPP || error == EINVAL)
		error = 0;
	if (error == 0)
		error = module->evhand(NULL, MOD_UNLOAD, module->priv);
	if (error != 0)
		return (-error);
	if (callouts != NULL)
		sim_panic("unloaded with a callout pending");
	destroy_mutexes();
	loaded = false;
	return (0);
}
