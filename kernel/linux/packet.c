/*
 * SPDX-License-Identifier: MIT
 *
 * Packets: a pool made once, and the IP header's few fields that count here.
 */
#include <sys/mman.h>

#include <stdio.h>
#include <string.h>

#include "router.h"

/* Pages are touched when a packet is first used, so a large pool is cheap. */
int
pool_make(struct pool *pool, uint64_t count, uint64_t mtu)
{
	void *packets, *data;

	pool->count = (size_t)count;
	pool->used = 0;
	pool->free = NULL;
	pool->stride = ((size_t)mtu + 1 + 63) / 64 * 64;
	packets = mmap(NULL, pool->count * sizeof(*pool->packets),
	    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	data = mmap(NULL, pool->count * pool->stride, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (packets == MAP_FAILED || data == MAP_FAILED) {
		fprintf(stderr, "l4s-router: no memory for %zu packets: lower "
		    "`packets`\n", pool->count);
		return (-1);
	}
	pool->packets = packets;
	pool->data = data;
	return (0);
}

struct packet *
pool_get(struct pool *pool)
{
	struct packet *packet = pool->free;

	if (packet != NULL) {
		pool->free = packet->next;
	} else if (pool->used < pool->count) {
		packet = &pool->packets[pool->used];
		packet->data = pool->data + pool->used * pool->stride;
		pool->used++;
	}
	return (packet);
}

void
pool_put(struct pool *pool, struct packet *packet)
{
	packet->next = pool->free;
	pool->free = packet;
}

static uint64_t
mix(uint64_t key, const uint8_t *data, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++)
		key = (key ^ data[i]) * 0x100000001b3u;
	return (key);
}

static uint64_t
flow_key(const uint8_t *addresses, size_t length, uint8_t protocol,
    const uint8_t *ports)
{
	uint64_t key = 0xcbf29ce484222325u;

	key = mix(key, addresses, length);
	key = mix(key, &protocol, 1);
	if (ports != NULL)
		key = mix(key, ports, 4);
	return (key == 0 ? 1 : key);
}

static int
has_ports(uint8_t protocol)
{
	return (protocol == 6 || protocol == 17);
}

int
header_parse(struct header *header, const uint8_t *data, size_t length)
{
	const uint8_t *ports = NULL;
	size_t own;

	if (length < 20)
		return (-1);
	header->version = data[0] >> 4;
	if (header->version == 4) {
		own = (size_t)(data[0] & 15) * 4;
		if (own < 20 || own > length ||
		    (size_t)(data[2] << 8 | data[3]) != length)
			return (-1);
		header->ecn = data[1] & 3;
		memcpy(&header->source, data + 12, 4);
		memcpy(&header->destination, data + 16, 4);
		/* a fragment has no ports, and all of its packet are a flow */
		if (has_ports(data[9]) && length >= own + 4 &&
		    ((data[6] & 0x3f) | data[7]) == 0)
			ports = data + own;
		header->flow_key = flow_key(data + 12, 8, data[9], ports);
		return (0);
	}
	if (header->version != 6 || length < 40 ||
	    (size_t)(data[4] << 8 | data[5]) + 40 != length)
		return (-1);
	header->ecn = (data[1] >> 4) & 3;
	header->source = header->destination = 0;
	if (has_ports(data[6]) && length >= 44)
		ports = data + 40;
	header->flow_key = flow_key(data + 8, 32, data[6], ports);
	return (0);
}

/* Once the table is full, new flows share the number that follows the last. */
uint32_t
flow_index(struct flows *flows, uint64_t key)
{
	size_t slot = (size_t)(key ^ key >> 32) & (FLOWS - 1);

	while (flows->key[slot] != 0) {
		if (flows->key[slot] == key)
			return (flows->index[slot]);
		slot = (slot + 1) & (FLOWS - 1);
	}
	if (flows->count >= FLOWS / 4 * 3)
		return (flows->count);
	flows->key[slot] = key;
	flows->index[slot] = flows->count;
	return (flows->count++);
}

int
l4s_set_ce(uint8_t *data, size_t length)
{
	uint32_t sum;
	unsigned before, after;

	if (length >= 40 && data[0] >> 4 == 6) {
		if ((data[1] & 0x30) == 0)
			return (-1);
		data[1] |= 0x30;
		return (0);
	}
	if (length < 20 || data[0] >> 4 != 4 || (data[1] & 3) == 0)
		return (-1);
	before = (unsigned)(data[0] << 8 | data[1]);
	data[1] |= 3;
	after = (unsigned)(data[0] << 8 | data[1]);
	/* RFC 1624: HC' = ~(~HC + ~m + m') */
	sum = (~(unsigned)(data[10] << 8 | data[11]) & 0xffff) +
	    (~before & 0xffff) + after;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	data[10] = (uint8_t)(sum >> 8);
	data[11] = (uint8_t)(sum & 0xff);
	return (0);
}
