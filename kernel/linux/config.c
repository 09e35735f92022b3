/*
 * SPDX-License-Identifier: MIT
 *
 * The configuration: lines of a key and its values, `#` before a remark.
 */
#include <arpa/inet.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "number.h"
#include "router.h"

#define LONGEST_NS 10000000000u	/* a delay of 10 s */
#define FASTEST_BPS 1000000000000u
#define MOST_STEPS 1048576

struct place {
	const char *path;
	unsigned line;
};

struct key {
	const char *name;
	uint64_t *value;
	uint64_t low, high;
};

static int
wrong(const struct place *place, const char *key, const char *what)
{
	fprintf(stderr, "l4s-router: %s:%u: %s: %s\n", place->path, place->line,
	    key, what);
	return (-1);
}

static int
parse(const struct place *place, const char *key, const char *text,
    uint64_t low, uint64_t high, uint64_t *value)
{
	char what[96];

	if (text == NULL || !parse_number(text, 10, low, high, value)) {
		snprintf(what, sizeof(what), "must be a whole number from %llu "
		    "to %llu", (unsigned long long)low,
		    (unsigned long long)high);
		return (wrong(place, key, what));
	}
	return (0);
}

/* Keys with one number; 1 where the key is none of them. */
static int
read_number(struct config *config, const struct place *place, const char *key,
    const char *text)
{
#define PARAMETER(name, normal, low, high, text)                               \
	{ #name, &config->params.name, low, high },
	const struct key keys[] = {
		L4S_PARAMETERS(PARAMETER)
		{ "packets", &config->packets, 64, 4194304 },
		{ "ring", &config->ring, 16, 1048576 },
		{ "seed", &config->seed, 0, UINT64_MAX },
		{ "mtu", &config->mtu, 576, 65535 },
	};
#undef PARAMETER
	size_t i;

	for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (strcmp(key, keys[i].name) == 0)
			return (parse(place, key, text, keys[i].low,
			    keys[i].high, keys[i].value));
	return (1);
}

static int
read_rate(struct config *config, const struct place *place, const char *text)
{
	if (text != NULL && strcmp(text, "0") == 0) {
		config->rate_bps = 0;
		return (0);
	}
	return (parse(place, "rate_bps (0: unshaped)", text, 1000, FASTEST_BPS,
	    &config->rate_bps));
}

static int
read_delay(struct config *config, const struct place *place,
    const char *address, const char *text)
{
	struct delay *delay = config->delay;
	struct in_addr parsed;
	uint64_t ns;
	uint32_t i;

	if (address == NULL || text == NULL)
		return (wrong(place, "delay", "needs an IPv4 address or "
		    "`default`, and nanoseconds"));
	if (parse(place, "delay", text, 0, LONGEST_NS, &ns) != 0)
		return (-1);
	if (strcmp(address, "default") == 0) {
		config->default_ns = ns;
		return (0);
	}
	if (inet_pton(AF_INET, address, &parsed) != 1)
		return (wrong(place, address, "neither an IPv4 address nor "
		    "`default`"));
	for (i = config->delays; i > 0 &&
	    delay[i - 1].address >= parsed.s_addr; i--)
		if (delay[i - 1].address == parsed.s_addr)
			return (wrong(place, address, "has a delay already"));
	if (config->delays == ROUTER_DELAYS)
		return (wrong(place, "delay", "too many addresses"));
	memmove(&delay[i + 1], &delay[i],
	    (config->delays - i) * sizeof(*delay));
	delay[i] = (struct delay){ .address = parsed.s_addr, .ns = ns };
	config->delays++;
	return (0);
}

static int
read_step(struct config *config, const struct place *place, const char *at,
    const char *rate)
{
	struct rate_step step, *more;

	if (parse(place, "rate_at, ns", at, 0, UINT64_MAX / 4, &step.at_ns) ||
	    parse(place, "rate_at, bit/s", rate, 1000, FASTEST_BPS,
	    &step.rate_bps))
		return (-1);
	if (config->steps > 0 &&
	    step.at_ns <= config->step[config->steps - 1].at_ns)
		return (wrong(place, "rate_at", "times must rise"));
	if (config->steps == MOST_STEPS)
		return (wrong(place, "rate_at", "too many steps"));
	if ((config->steps & (config->steps - 1)) == 0) {	/* full */
		more = realloc(config->step, (config->steps == 0 ? 1 :
		    2 * config->steps) * sizeof(*more));
		if (more == NULL)
			return (wrong(place, "rate_at", "no memory"));
		config->step = more;
	}
	config->step[config->steps++] = step;
	return (0);
}

static int
read_line(struct config *config, const struct place *place, char *line)
{
	char *rest, *word[4] = { NULL, NULL, NULL, NULL };
	size_t i, wanted = 2;
	int got;

	line[strcspn(line, "#")] = '\0';
	word[0] = strtok_r(line, " \t\r\n", &rest);
	for (i = 1; i < 4 && word[i - 1] != NULL; i++)
		word[i] = strtok_r(NULL, " \t\r\n", &rest);
	if (word[0] == NULL)
		return (0);
	if (strcmp(word[0], "delay") == 0 || strcmp(word[0], "rate_at") == 0)
		wanted = 3;
	if (word[wanted] != NULL)
		return (wrong(place, word[0], "too many values"));
	if (strcmp(word[0], "delay") == 0)
		return (read_delay(config, place, word[1], word[2]));
	if (strcmp(word[0], "rate_at") == 0)
		return (read_step(config, place, word[1], word[2]));
	if (strcmp(word[0], "rate_bps") == 0)
		return (read_rate(config, place, word[1]));
	if (strcmp(word[0], "acks_in_queue") == 0) {
		if (word[1] == NULL || strcmp(word[1], "0") != 0)
			return (wrong(place, word[0], "only 0: the way back "
			    "does not cross the queue"));
		return (0);
	}
	got = read_number(config, place, word[0], word[1]);
	return (got == 1 ? wrong(place, word[0], "no such key") : got);
}

static int
read_lines(struct config *config, const char *path, FILE *file)
{
	struct place place = { .path = path, .line = 0 };
	char line[512];

	while (fgets(line, sizeof(line), file) != NULL) {
		place.line++;
		if (strlen(line) == sizeof(line) - 1)
			return (wrong(&place, "line", "too long"));
		if (read_line(config, &place, line) != 0)
			return (-1);
	}
	if (ferror(file)) {
		fprintf(stderr, "l4s-router: %s: %s\n", path, strerror(errno));
		return (-1);
	}
	return (0);
}

static void
set_defaults(struct config *config, uint64_t variant)
{
	free(config->step);
	memset(config, 0, sizeof(*config));
	l4s_params_default(&config->params, variant);
	config->packets = 16384;
	config->ring = 8192;
	config->mtu = 9216;
	config->seed = 1;
}

int
config_read(struct config *config, const char *path)
{
	uint64_t variant;
	FILE *file;
	int got;

	file = fopen(path, "re");
	if (file == NULL) {
		fprintf(stderr, "l4s-router: %s: %s\n", path, strerror(errno));
		return (-1);
	}
	memset(config, 0, sizeof(*config));
	set_defaults(config, L4S_TESTBED);
	got = read_lines(config, path, file);
	variant = config->params.variant;
	if (got == 0 && variant != L4S_TESTBED) {
		/* The variant chooses the defaults of the other keys. */
		set_defaults(config, variant);
		rewind(file);
		got = read_lines(config, path, file);
	}
	fclose(file);
	if (got == 0 && l4s_params_check(&config->params) >= 0) {
		fprintf(stderr, "l4s-router: %s: the parameters do not fit "
		    "together\n", path);
		got = -1;
	}
	return (got);
}

int
config_shield(struct config *config, char *text)
{
	struct place place = { .path = "--shield", .line = 1 };
	char key[32];
	char *number = strchr(text, '=');

	if (number != NULL)
		*number++ = '\0';
	snprintf(key, sizeof(key), "shield_%s", text);
	return (read_number(config, &place, key, number) == 0 ? 0 :
	    wrong(&place, text, "give NAME=NUMBER, with the name of a "
	    "parameter shield_NAME"));
}

struct l4s_model *
config_model(const char *path)
{
	FILE *file = fopen(path, "re");
	struct l4s_model *model = malloc(L4S_MODEL_MOST + 1);
	enum l4s_fault fault;

	if (file == NULL || model == NULL) {
		fprintf(stderr, "l4s-router: %s: %s\n", path, strerror(errno));
		if (file != NULL)
			fclose(file);
		free(model);
		return (NULL);
	}
	fault = l4s_model_check(model, fread(model, 1, L4S_MODEL_MOST + 1,
	    file));
	fclose(file);
	if (fault == L4S_FAULTLESS)
		return (model);
	fprintf(stderr, "l4s-router: %s: %s: make it by `l4s-gym live model` "
	    "or `l4s-gym distil`\n", path, l4s_fault_text(fault));
	free(model);
	return (NULL);
}
