/*
 * SPDX-License-Identifier: MIT
 *
 * Damaged model files: the check refuses them, or they are evaluated. Built
 * with sanitizers (make -C kernel SAN=1), which end the program where something
 * is read outside the file or overflows.
 *
 *   fuzz_model SECONDS FILE...
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "l4s_model.h"

#define ROWS 4
#define TRIES 256	/* between looks at the clock */

static uint64_t state = 88172645463325252;

static uint64_t
draw(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state % below);
}

/* A number at which something might overflow, in two or four bytes. */
static void
put_edge(uint8_t *data, size_t length)
{
	static const uint32_t edges[] = { 0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff,
	    0x8000, 0xffff, 0x10000, 0x3fffffff, 0x40000000, 0x7fffffff,
	    0x80000000, 0xc0000000, 0xffffffff };
	size_t width = draw(2) ? 2 : 4;
	uint32_t edge = edges[draw(sizeof(edges) / sizeof(edges[0]))];

	if (length >= width)
		memcpy(data + draw((length - width) / width + 1) * width,
		    &edge, width);
}

/* A file with some damage, in memory of just its size, to be freed. */
static uint8_t *
damaged(const uint8_t *file, size_t *length)
{
	size_t head = sizeof(struct l4s_model), within;
	uint64_t changes = 1 + draw(8);
	uint8_t *data;
	uint32_t told;

	if (draw(8) == 0)
		*length = draw(*length + 1);
	data = malloc(*length > 0 ? *length : 1);
	if (data == NULL)
		abort();
	memcpy(data, file, *length);
	while (changes-- > 0 && *length > 0) {
		within = draw(2) && *length > head ? head : *length;
		if (draw(2))
			data[draw(within)] ^= (uint8_t)(1U << draw(8));
		else
			put_edge(data, within);
	}
	/* Mostly as large as it says, so that more is looked at. */
	if (*length >= head && draw(4) > 0) {
		told = (uint32_t)*length;
		memcpy(data + offsetof(struct l4s_model, size), &told,
		    sizeof(told));
	}
	return (data);
}

static void
evaluate(const struct l4s_model *model)
{
	struct l4s_memory memory = { 0 };
	uint64_t raw[L4S_SEEN_MOST];
	uint32_t out[L4S_OUTPUTS];

	for (int row = 0; row < ROWS; row++) {
		for (int i = 0; i < L4S_SEEN_MOST; i++)
			raw[i] = draw(16) == 0 ? UINT64_MAX :
			    draw(UINT64_MAX) >> draw(64);
		l4s_model_outputs(model, &memory, raw, out);
		if (model->form == L4S_FORM_PACKET &&
		    (uint64_t)out[0] + out[1] > 1U << 31)
			abort();
	}
}

int
main(int argc, char **argv)
{
	static uint8_t file[L4S_MODEL_MOST + 8];
	uint64_t tried = 0, taken = 0;
	size_t length, size;
	uint8_t *data;
	time_t until;
	FILE *from;

	if (argc < 3)
		return (2);
	until = time(NULL) + strtol(argv[1], NULL, 10);
	do {
		from = fopen(argv[2 + draw((uint64_t)argc - 2)], "rb");
		if (from == NULL)
			return (1);
		length = fread(file, 1, sizeof(file), from);
		fclose(from);
		for (int i = 0; i < TRIES; i++, tried++) {
			size = length;
			data = damaged(file, &size);
			if (l4s_model_check(data, size) == L4S_FAULTLESS) {
				evaluate((const void *)data);
				taken++;
			}
			free(data);
		}
	} while (time(NULL) < until);
	printf("%llu files, %llu of them evaluated\n",
	    (unsigned long long)tried, (unsigned long long)taken);
	return (0);
}
