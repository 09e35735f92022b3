/*
 * SPDX-License-Identifier: MIT
 *
 * Queue, link and delay lines.
 *
 * The link lives in virtual time: a packet occupies it for exactly length x 8
 * / rate, and the next one is taken at the moment when that is over, however
 * late the process wakes. So the core sees each event at its scheduled time,
 * in order, and a late wake costs a packet's delivery, not the link's rate.
 */
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "router.h"

uint64_t
clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return ((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

/* The line of an address: its place in the sorted table, or the last one. */
static uint32_t
line_of(const struct config *config, uint32_t address)
{
	uint32_t low = 0, high = config->delays, middle;

	while (low < high) {
		middle = (low + high) / 2;
		if (config->delay[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	return (low < config->delays && config->delay[low].address == address ?
	    low : ROUTER_DELAYS);
}

static uint64_t
delay_ns(const struct config *config, uint32_t index)
{
	return (index == ROUTER_DELAYS ? config->default_ns :
	    config->delay[index].ns);
}

/* Within a line the times never fall, so that a list is enough. */
static void
line_add(struct line *line, struct packet *packet, uint64_t release_ns)
{
	packet->release_ns = release_ns;
	packet->next = NULL;
	if (line->head == NULL)
		line->head = packet;
	else
		line->tail->next = packet;
	line->tail = packet;
}

static void
line_release(struct router *router, struct line *line, uint64_t now_ns,
    int forward)
{
	struct direction *stats = forward ? &router->stats.forward :
	    &router->stats.reverse;
	struct pool *pool = forward ? &router->forward : &router->reverse;
	int fd = forward ? router->receivers : router->senders;
	struct packet *packet;

	while ((packet = line->head) != NULL && packet->release_ns <= now_ns) {
		line->head = packet->next;
		hist_add(&router->stats.late_ns, now_ns - packet->release_ns);
		if (write(fd, packet->data, packet->length) ==
		    (ssize_t)packet->length) {
			stats->delivered++;
			stats->delivered_bytes += packet->length;
		} else {
			stats->write_failed++;
		}
		pool_put(pool, packet);
	}
}

void
pipe_release(struct router *router, uint64_t now_ns)
{
	struct pipe *pipe = &router->pipe;
	uint32_t i;

	for (i = 0; i < router->config.delays; i++) {
		line_release(router, &pipe->forward[i], now_ns, 1);
		line_release(router, &pipe->reverse[i], now_ns, 0);
	}
	line_release(router, &pipe->forward[ROUTER_DELAYS], now_ns, 1);
	line_release(router, &pipe->reverse[ROUTER_DELAYS], now_ns, 0);
}

/* A packet has left the core: count it, or set its mark and send it on. */
static void
leave(struct router *router, struct packet *packet, uint64_t now_ns, int action)
{
	struct class_stats *stats = &router->stats.class[packet->class];
	struct pipe *pipe = &router->pipe;
	uint64_t bits_ns, rate_bps = pipe->rate_bps;

	if (packet->core.row_ready)
		device_row(router, packet);
	if (action == L4S_DROP) {
		stats->drops++;
		pool_put(&router->forward, packet);
		return;
	}
	if (action == L4S_MARK && l4s_set_ce(packet->data, packet->length) == 0)
		stats->marks++;
	stats->served_packets++;
	stats->served_bytes += packet->length;
	hist_add(&stats->sojourn_ns, now_ns - packet->arrived_ns);
	pipe->free_ns = now_ns;
	if (rate_bps != 0) {
		bits_ns = packet->length * 8000000000u + pipe->remainder;
		pipe->free_ns += bits_ns / rate_bps;
		pipe->remainder = bits_ns % rate_bps;
	}
	line_add(&pipe->forward[packet->line], packet,
	    pipe->free_ns + delay_ns(&router->config, packet->line));
}

/* The link is free: the next packet. Drops take no time of it. */
static void
serve(struct router *router, uint64_t now_ns)
{
	struct l4s_packet *taken;
	int action;

	do {
		taken = l4s_take(&router->core, now_ns, &action);
		if (taken == NULL) {
			router->pipe.busy = 0;
			router->pipe.remainder = 0;
			return;
		}
		leave(router, (struct packet *)taken, now_ns, action);
	} while (action == L4S_DROP || router->pipe.rate_bps == 0);
	router->pipe.busy = 1;
}

static uint64_t
step_ns(const struct router *router)
{
	const struct pipe *pipe = &router->pipe;

	if (pipe->first_ns == 0 || pipe->step == router->config.steps)
		return (L4S_NEVER);
	return (pipe->first_ns + router->config.step[pipe->step].at_ns);
}

static void
step(struct router *router)
{
	struct pipe *pipe = &router->pipe;

	pipe->rate_bps = router->config.step[pipe->step++].rate_bps;
	pipe->remainder = 0;
}

void
pipe_advance(struct router *router, uint64_t now_ns)
{
	struct pipe *pipe = &router->pipe;
	uint64_t link, update, rate;

	for (;;) {
		rate = step_ns(router);
		link = pipe->busy ? pipe->free_ns : L4S_NEVER;
		update = l4s_next_update(&router->core);
		if (rate <= now_ns && rate <= link && rate <= update) {
			step(router);
		} else if (link <= now_ns && link <= update) {
			serve(router, link);
		} else if (update <= now_ns) {
			l4s_update(&router->core, update);
			device_events(router);
		} else {
			return;
		}
	}
}

uint64_t
pipe_next(const struct router *router)
{
	const struct pipe *pipe = &router->pipe;
	uint64_t next = l4s_next_update(&router->core), rate = step_ns(router);
	const struct line *line;
	uint32_t i, j;

	if (pipe->busy && pipe->free_ns < next)
		next = pipe->free_ns;
	if (rate < next)
		next = rate;
	for (i = 0; i <= router->config.delays; i++) {
		j = i == router->config.delays ? ROUTER_DELAYS : i;
		line = &pipe->forward[j];
		if (line->head != NULL && line->head->release_ns < next)
			next = line->head->release_ns;
		line = &pipe->reverse[j];
		if (line->head != NULL && line->head->release_ns < next)
			next = line->head->release_ns;
	}
	return (next);
}

static void
arrive(struct router *router, struct packet *packet,
    const struct header *header)
{
	struct class_stats *stats;
	struct l4s_packet *pushed;
	uint64_t now_ns = clock_ns();
	int action;

	pipe_advance(router, now_ns);
	if (router->pipe.first_ns == 0)
		router->pipe.first_ns = now_ns;
	packet->class = header->ecn & 1 ? L4S_L4S : L4S_CLASSIC;
	packet->arrived_ns = now_ns;
	packet->line = line_of(&router->config, header->source);
	packet->core.length = packet->length;
	packet->core.flow = flow_index(&router->flows, header->flow_key);
	packet->core.ecn = header->ecn;
	packet->reader = router->device.subscribed ?
	    router->device.connection : 0;
	direct_read(router, now_ns);
	if (router->device.peer >= 0)
		packet->totals = *l4s_measure(&router->core, now_ns);
	stats = &router->stats.class[packet->class];
	stats->packets++;
	stats->bytes += packet->length;
	action = l4s_offer(&router->core, &packet->core, now_ns);
	if (packet->core.asks)
		device_ask(router, packet);
	if (packet->core.row_ready)
		device_row(router, packet);
	if (action == L4S_DROP) {
		stats->drops++;
		pool_put(&router->forward, packet);
	} else if (action == L4S_MARK &&
	    l4s_set_ce(packet->data, packet->length) == 0) {
		stats->marks++;
	}
	while ((pushed = l4s_evict(&router->core, now_ns)) != NULL)
		leave(router, (struct packet *)pushed, now_ns, L4S_DROP);
	device_events(router);
	if (!router->pipe.busy)
		serve(router, now_ns);
}

/*
 * One packet into `packet`, or into nothing where that is NULL. 1: a packet to
 * go on with, 0: none, or not to go on with (*more says which), -1: gone.
 */
static int
read_one(int fd, struct packet *packet, struct direction *stats, uint64_t mtu,
    struct header *header, int *more)
{
	uint8_t scrap[1];
	ssize_t got;

	*more = 0;
	got = packet == NULL ? read(fd, scrap, sizeof(scrap)) :
	    read(fd, packet->data, (size_t)mtu + 1);
	if (got < 0)
		return (errno == EAGAIN || errno == EINTR || errno == EIO ? 0 :
		    -1);
	*more = 1;
	stats->packets++;
	if (packet == NULL) {
		stats->pool_missed++;
		return (0);
	}
	stats->bytes += (uint64_t)got;
	if ((uint64_t)got > mtu) {
		stats->oversized++;
		return (0);
	}
	if (header_parse(header, packet->data, (size_t)got) != 0) {
		stats->malformed++;
		return (0);
	}
	packet->length = (uint32_t)got;
	return (1);
}

static int
read_batch(struct router *router, int forward)
{
	struct direction *stats = forward ? &router->stats.forward :
	    &router->stats.reverse;
	struct pool *pool = forward ? &router->forward : &router->reverse;
	int fd = forward ? router->senders : router->receivers;
	struct packet *packet;
	struct header header;
	int n, got, more = 1;

	for (n = 0; n < ROUTER_BATCH && more; n++) {
		packet = pool_get(pool);
		got = read_one(fd, packet, stats, router->config.mtu, &header,
		    &more);
		if (got != 1) {
			if (packet != NULL)
				pool_put(pool, packet);
			if (got < 0)
				return (-1);
		} else if (forward) {
			arrive(router, packet, &header);
		} else {
			packet->line = line_of(&router->config,
			    header.destination);
			line_add(&router->pipe.reverse[packet->line], packet,
			    clock_ns() + delay_ns(&router->config,
			    packet->line));
		}
	}
	return (more ? n : n - 1);
}

int
pipe_read_forward(struct router *router)
{
	return (read_batch(router, 1));
}

int
pipe_read_reverse(struct router *router)
{
	return (read_batch(router, 0));
}
