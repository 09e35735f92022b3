/*
 * SPDX-License-Identifier: MIT
 *
 * What the router has counted, as JSON.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "router.h"

/* Eight bins an octave: a quantile is right to within an eighth. */
static unsigned
bin_of(uint64_t value)
{
	unsigned shift = 0;

	while ((value >> shift) >= 16)
		shift++;
	return (shift * 8 + (unsigned)(value >> shift));
}

void
hist_add(struct hist *hist, uint64_t value)
{
	hist->bin[bin_of(value)]++;
	hist->count++;
	hist->sum += value;
	if (value > hist->max)
		hist->max = value;
}

/* The upper end of the bin in which the quantile lies. */
uint64_t
hist_quantile(const struct hist *hist, unsigned per_mille)
{
	uint64_t seen = 0, upper;
	unsigned i, shift;

	for (i = 0; i < HIST_BINS; i++) {
		seen += hist->bin[i];
		if (seen == 0 || seen * 1000 < hist->count * per_mille)
			continue;
		shift = i < 16 ? 0 : i / 8 - 1;
		upper = ((uint64_t)(i - shift * 8) << shift) +
		    (((uint64_t)1 << shift) - 1);
		return (upper < hist->max ? upper : hist->max);
	}
	return (0);
}

static void
number(FILE *file, const char *name, uint64_t value, const char *end)
{
	fprintf(file, "\"%s\": %llu%s", name, (unsigned long long)value, end);
}

static void
write_hist(FILE *file, const char *name, const struct hist *hist,
    const char *end)
{
	fprintf(file, "\"%s\": {", name);
	number(file, "count", hist->count, ", ");
	number(file, "mean", hist->count == 0 ? 0 : hist->sum / hist->count,
	    ", ");
	number(file, "p50", hist_quantile(hist, 500), ", ");
	number(file, "p95", hist_quantile(hist, 950), ", ");
	number(file, "p99", hist_quantile(hist, 990), ", ");
	number(file, "max", hist->max, "}");
	fprintf(file, "%s", end);
}

static void
write_direction(FILE *file, const char *name, const struct direction *d)
{
	fprintf(file, "  \"%s\": {", name);
	number(file, "packets", d->packets, ", ");
	number(file, "bytes", d->bytes, ", ");
	number(file, "delivered", d->delivered, ", ");
	number(file, "delivered_bytes", d->delivered_bytes, ", ");
	number(file, "malformed", d->malformed, ", ");
	number(file, "oversized", d->oversized, ", ");
	number(file, "pool_missed", d->pool_missed, ", ");
	number(file, "write_failed", d->write_failed, "},\n");
}

static void
write_class(FILE *file, const char *name, const struct class_stats *c)
{
	fprintf(file, "  \"%s\": {", name);
	number(file, "packets", c->packets, ", ");
	number(file, "bytes", c->bytes, ", ");
	number(file, "marks", c->marks, ", ");
	number(file, "drops", c->drops, ", ");
	number(file, "served_packets", c->served_packets, ", ");
	number(file, "served_bytes", c->served_bytes, ", ");
	write_hist(file, "sojourn_ns", &c->sojourn_ns, "},\n");
}

static void
write_decisions(FILE *file, const struct l4s_core *core)
{
	static const char *const names[L4S_REFUSALS] = { "accepted",
	    "detached", "malformed", "expired", "out_of_order", "unasked",
	    "shielded" };
	const struct l4s_queue *q = core->q;
	uint64_t by[3], all;
	unsigned i;

	for (i = 0; i < 3; i++)
		by[i] = q[0].decided[i] + q[1].decided[i];
	all = by[0] + by[1] + by[2];
	fprintf(file, "  \"decisions\": {");
	number(file, "native", by[L4S_BY_KERNEL], ", ");
	number(file, "agent", by[L4S_BY_AGENT], ", ");
	number(file, "fallback", by[L4S_BY_FALLBACK], ", ");
	fprintf(file, "\"native_share\": %.6f, ", all == 0 ? 1.0 :
	    (double)(all - by[L4S_BY_AGENT]) / (double)all);
	fprintf(file, "\"refused\": {");
	for (i = 1; i < L4S_REFUSALS; i++)
		number(file, names[i], core->refused[i],
		    i + 1 < L4S_REFUSALS ? ", " : "}, ");
	number(file, "shield_trips", q[0].trips + q[1].trips, ", ");
	number(file, "latency_p50_us", l4s_latency_us(core, 500), ", ");
	number(file, "latency_p99_us", l4s_latency_us(core, 990), "},\n");
}

static void
write_law(FILE *file, const struct l4s_core *core)
{
	fprintf(file, "  \"law\": {");
	number(file, "sets", core->law_sets, ", ");
	number(file, "expired", core->law_expired, ", ");
	number(file, "refused", core->law_refused, "},\n");
}

static void
write_device(FILE *file, const struct device *device)
{
	fprintf(file, "  \"device\": {");
	number(file, "connections", device->connections, ", ");
	number(file, "refused", device->refused, ", ");
	number(file, "rows_sent", device->rows_sent, ", ");
	number(file, "asks_sent", device->asks_sent, ", ");
	number(file, "rows_lost", device->rows_lost, "}\n");
}

/* Written beside and renamed: a reader never sees half of it. */
int
stats_write(const struct router *router, const char *path)
{
	const struct stats *stats = &router->stats;
	char beside[4096];
	FILE *file;
	int broken;

	if (snprintf(beside, sizeof(beside), "%s.part", path) >=
	    (int)sizeof(beside) || (file = fopen(beside, "we")) == NULL) {
		fprintf(stderr, "l4s-router: %s: cannot write the statistics: "
		    "%s\n", path, strerror(errno));
		return (-1);
	}
	fprintf(file, "{\n  \"seconds\": %.6f,\n",
	    (double)(clock_ns() - stats->started_ns) / 1e9);
	fprintf(file, "  ");
	number(file, "variant", router->core.p.variant, ", ");
	number(file, "rate_bps", router->pipe.rate_bps, ",\n");
	write_direction(file, "forward", &stats->forward);
	write_direction(file, "reverse", &stats->reverse);
	write_class(file, "classic", &stats->class[L4S_CLASSIC]);
	write_class(file, "l4s", &stats->class[L4S_L4S]);
	fprintf(file, "  ");
	write_hist(file, "late_ns", &stats->late_ns, ",\n");
	write_decisions(file, &router->core);
	write_law(file, &router->core);
	write_device(file, &router->device);
	fprintf(file, "}\n");
	broken = ferror(file);
	if (fclose(file) != 0 || broken || rename(beside, path) != 0) {
		fprintf(stderr, "l4s-router: %s: cannot write the statistics: "
		    "%s\n", path, strerror(errno));
		return (-1);
	}
	return (0);
}
