/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Integer models: checked, and evaluated as l4s_gym/bridge/model.py does.
 */
#include "l4s_model.h"

#ifdef L4S_SIMD
#include <immintrin.h>
#endif

/* `>>` rounds negative numbers down, with all compilers that matter. */
_Static_assert((-1 >> 1) == -1, "shift of negative numbers");
_Static_assert(sizeof(struct l4s_model) == 120, "head");

#define STEPS 64	/* of the tables */
#define ONE (1U << 31)	/* probability 1 */
#define SAME 65536	/* factor 1, action 1 */
#define LARGEST ((1ULL << 40) - 1)	/* threshold of a node */
#define DECADE 217706	/* log2(10), 2^-16 */
#define SHARE_BITS 24
#define FINER 8		/* averages have so many bits more */
#define MOST_SHIFT 20
#define MOST_NUMBER (1 << 30)	/* of offsets and scales */
#define ZERO 32768	/* an input of 0 */
#define BLOCK 8		/* outputs whose weights stand together */
#define EVEN 0x000000ff000000ffULL
#define LEAST_US 1000	/* intervals and time constants */
#define MOST_INTERVAL_US 60000000
#define MOST_AVERAGE_US 4000000000U
#define MOST_SPAN (8 << 16)

/* -- logarithm and power, by tables that are interpolated */

static const uint32_t logs[STEPS + 1] = {
	0, 23454, 46551, 69300, 91711, 113796, 135563, 157021, 178179, 199045,
	219628, 239934, 259971, 279746, 299266, 318537, 337566, 356359, 374920,
	393257, 411375, 429278, 446971, 464460, 481749, 498843, 515745, 532461,
	548995, 565349, 581529, 597537, 613378, 629054, 644570, 659928, 675132,
	690185, 705089, 719848, 734464, 748941, 763280, 777484, 791557, 805500,
	819315, 833005, 846573, 860020, 873348, 886561, 899658, 912644, 925518,
	938284, 950944, 963498, 975949, 988298, 1000547, 1012698, 1024752,
	1036711, 1048576,
};

static const uint32_t powers[STEPS + 1] = {
	2147483648, 2124350982, 2101467502, 2078830522, 2056437387, 2034285470,
	2012372174, 1990694927, 1969251188, 1948038440, 1927054196, 1906295993,
	1885761398, 1865448001, 1845353420, 1825475297, 1805811301, 1786359126,
	1767116489, 1748081133, 1729250827, 1710623359, 1692196547, 1673968228,
	1655936265, 1638098541, 1620452965, 1602997467, 1585730000, 1568648537,
	1551751076, 1535035634, 1518500250, 1502142985, 1485961921, 1469955159,
	1454120821, 1438457051, 1422962010, 1407633882, 1392470869, 1377471191,
	1362633090, 1347954824, 1333434672, 1319070932, 1304861917, 1290805962,
	1276901417, 1263146652, 1249540052, 1236080024, 1222764986, 1209593378,
	1196563654, 1183674286, 1170923762, 1158310587, 1145833280, 1133490379,
	1121280436, 1109202018, 1097253708, 1085434106, 1073741824,
};

uint64_t
l4s_log2(uint64_t x)
{
	unsigned whole = 0;
	uint64_t part, rest;
	const uint32_t *low;

	while (x >> (whole + 1) != 0)
		whole++;
	part = (x << (40 - whole)) - (1ULL << 40);
	low = &logs[part >> 34];
	rest = part & ((1ULL << 34) - 1);
	return (((uint64_t)whole << L4S_SEEN_BITS) + low[0] +
	    (((low[1] - low[0]) * rest) >> 34));
}

uint64_t
l4s_power(int64_t e)
{
	int64_t whole = -(-e >> 16);	/* rounded up */
	uint64_t part = (uint64_t)(whole * 65536 - e);
	const uint32_t *high = &powers[part >> 10];
	uint64_t found = high[0] -
	    (((high[0] - high[1]) * (part & 1023)) >> 10);

	if (whole >= 0)
		return (found << whole);
	return ((found + ((1ULL << -whole) >> 1)) >> -whole);
}

/* -- bodies */

static int64_t
within(int64_t value, int64_t low, int64_t high)
{
	return (value < low ? low : value > high ? high : value);
}

static const uint64_t *
body_of(const struct l4s_model *model)
{
	return ((const uint64_t *)(model + 1));
}

static uint64_t
feature_of(uint64_t node)
{
	return (node >> 56);
}

static uint64_t
low_of(uint64_t node)
{
	return ((node >> 40) & 0xffff);
}

static void
add_trees(const struct l4s_model *model, const uint64_t *seen,
    int64_t values[L4S_OUTPUTS])
{
	const uint64_t *nodes = body_of(model);
	const int32_t *leaves = (const int32_t *)(nodes + model->nodes);
	unsigned outputs = model->outputs;

	for (unsigned root = 0; root < model->roots; root++) {
		uint64_t node = nodes[root];
		const int32_t *leaf;

		while (feature_of(node) != L4S_LEAF) {
			const uint64_t *next = nodes + low_of(node);
			uint64_t low = next[0], high = next[1];

			/* Both are loaded: no branch, nor a wait for one. */
			node = seen[feature_of(node)] > (node & LARGEST) ?
			    high : low;
		}
		leaf = leaves + low_of(node) * outputs;
		for (unsigned k = 0; k < outputs; k++)
			values[k] += leaf[k];
	}
}

/* How many of rising thresholds are not above a number. */
static unsigned
cell(const uint64_t *thresholds, unsigned count, uint64_t number)
{
	unsigned low = 0;

	while (count > 0) {
		unsigned half = (count + 1) / 2;

		/* Without a branch, which could not be foretold. */
		low += half & -(unsigned)(number >= thresholds[low + half - 1]);
		count -= half;
	}
	return (low);
}

/* Inputs of a layer that are not 0: half of them are after ReLU. */
struct inputs {
	unsigned count;
	int64_t sum;
	uint32_t value[L4S_WIDTH];
	uint16_t number[L4S_WIDTH];
};

/* Of so many values, leave those that are not 0. */
static void
gather(struct inputs *x, unsigned inputs)
{
	unsigned count = 0;
	int64_t sum = 0;

	for (unsigned i = 0; i < inputs; i++) {
		uint32_t value = x->value[i];

		x->number[count] = (uint16_t)i;
		x->value[count] = value;
		count += value != 0;
		sum += value;
	}
	x->count = count;
	x->sum = sum;
}

/* The inputs in the packet form; returns the first layer. */
static const uint8_t *
read_cells(const struct l4s_model *model, const uint64_t *seen,
    struct inputs *x)
{
	const uint64_t *thresholds = body_of(model);
	const uint16_t *values;
	unsigned total = 0;

	for (unsigned i = 0; i < L4S_FEATURES; i++)
		total += model->cells[i];
	values = (const uint16_t *)(thresholds + total);
	for (unsigned i = 0; i < L4S_FEATURES; i++) {
		unsigned count = model->cells[i];

		x->value[i] = values[cell(thresholds, count, seen[i])];
		thresholds += count;
		values += count + 1;
	}
	return ((const uint8_t *)(values + total % 2));
}

/* The inputs in the interval forms; returns the first layer. */
static const uint8_t *
read_lines(const struct l4s_model *model, const uint64_t *seen,
    struct inputs *x)
{
	const int32_t *line = (const int32_t *)(model + 1);
	unsigned inputs = model->features * (1U + model->averages);
	int64_t found, bound = model->bound;

	for (unsigned i = 0; i < inputs; i++, line += 2) {
		found = ((int64_t)seen[i] - line[0]) * line[1];
		found = (found + (1 << 23)) >> 24;
		x->value[i] = (uint32_t)(within(found, -bound, bound) + ZERO);
	}
	return ((const uint8_t *)line);
}

/* Outputs of a layer, with those that fill the last block. */
static uint32_t
filled(uint32_t outputs)
{
	return ((outputs + BLOCK - 1) / BLOCK * BLOCK);
}

/* Biases, shifts, weights. */
static uint32_t
layer_size(uint32_t inputs, uint32_t outputs)
{
	return (filled(outputs) * (5 + inputs));
}

/*
 * Sums of eight outputs' weights times inputs, at most 256 x 255 x 65535: two
 * of them side by side in a number, so that four multiplications are enough.
 */
static void
multiply(const uint8_t *weights, const struct inputs *x, uint32_t sums[BLOCK])
{
	uint64_t sum[4] = { 0 }, eight;

	for (unsigned k = 0; k < x->count; k++) {
		uint64_t value = x->value[k];

		__builtin_memcpy(&eight, weights + BLOCK * x->number[k],
		    sizeof(eight));
		sum[0] += (eight & EVEN) * value;
		sum[1] += ((eight >> 8) & EVEN) * value;
		sum[2] += ((eight >> 16) & EVEN) * value;
		sum[3] += ((eight >> 24) & EVEN) * value;
	}
	for (unsigned i = 0; i < 4; i++) {
		sums[i] = (uint32_t)sum[i];
		sums[i + 4] = (uint32_t)(sum[i] >> 32);
	}
}

#ifdef L4S_SIMD
/* The same by vector registers, which kernels do not use. */
__attribute__((target("avx2"))) static void
multiply_avx2(const uint8_t *weights, const struct inputs *x,
    uint32_t sums[BLOCK])
{
	__m256i sum = _mm256_setzero_si256(), eight;
	uint64_t word;

	for (unsigned k = 0; k < x->count; k++) {
		__builtin_memcpy(&word, weights + BLOCK * x->number[k],
		    sizeof(word));
		eight = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)word));
		sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(eight,
		    _mm256_set1_epi32((int32_t)x->value[k])));
	}
	__builtin_memcpy(sums, &sum, sizeof(sum));
}
#endif

/* Biases and weights times inputs. */
static void
sum_up(const int32_t *biases, const uint8_t *weights, unsigned inputs,
    unsigned outputs, const struct inputs *x, int64_t *sums)
{
	void (*sum_of)(const uint8_t *, const struct inputs *, uint32_t *) =
	    multiply;

#ifdef L4S_SIMD
	if (__builtin_cpu_supports("avx2"))
		sum_of = multiply_avx2;
#endif
	for (unsigned o = 0; o < outputs; o += BLOCK) {
		uint32_t eight[BLOCK];

		sum_of(weights + o * inputs, x, eight);
		for (unsigned i = 0; i < BLOCK; i++)
			sums[o + i] = biases[o + i] - 128 * x->sum + eight[i];
	}
}

static void
apply_layers(const struct l4s_model *model, const uint64_t *seen,
    int64_t values[L4S_OUTPUTS])
{
	struct inputs x;
	int64_t sums[L4S_WIDTH];
	unsigned m = model->features * (1U + model->averages), n = 0;
	const uint8_t *at = model->form == L4S_FORM_PACKET ?
	    read_cells(model, seen, &x) : read_lines(model, seen, &x);
	const uint8_t *shifts = at;

	for (unsigned k = 0; k < model->layers; k++, m = n) {
		n = model->width[k];
		gather(&x, m);
		shifts = at + 4 * filled(n);
		sum_up((const int32_t *)at, shifts + filled(n), m, n, &x, sums);
		at += layer_size(m, n);
		if (k + 1U == model->layers)
			break;
		for (unsigned i = 0; i < n; i++)
			x.value[i] = (uint32_t)within(sums[i] >> shifts[i], 0,
			    UINT16_MAX);
	}
	for (unsigned i = 0; i < n; i++)
		values[i] = (sums[i] * 64) >> shifts[i];
}

/* -- outputs */

/* Drop and mark by the softmax, base 2, of three scores. */
static void
softmax(const int64_t scores[3], uint32_t out[2])
{
	uint64_t part[3], sum = 0;
	int64_t most = scores[0];

	for (unsigned i = 1; i < 3; i++)
		most = scores[i] > most ? scores[i] : most;
	for (unsigned i = 0; i < 3; i++) {
		int64_t below = scores[i] - most;

		part[i] = below > -(31LL << 16) ? l4s_power(below) : 0;
		sum += part[i];
	}
	out[0] = (uint32_t)((part[1] << 31) / sum);
	out[1] = (uint32_t)((part[2] << 31) / sum);
}

/* What the values of the body mean in the form. */
static void
tell(const struct l4s_model *model, const int64_t *values,
    uint32_t out[L4S_OUTPUTS])
{
	if (model->form == L4S_FORM_PACKET && model->outputs == 3) {
		softmax(values, out);
		return;
	}
	if (model->form == L4S_FORM_PACKET) {
		out[0] = (uint32_t)within(2 * values[0], 0, ONE);
		out[1] = (uint32_t)within(2 * values[1], 0, ONE - out[0]);
		return;
	}
	for (unsigned i = 0; i < model->outputs; i++) {
		int64_t action = within(values[i], -SAME, SAME);

		if (model->form == L4S_FORM_PROBABILITY)
			out[i] = action == -SAME ? 0 : (uint32_t)l4s_power(
			    (2 * (action - SAME) * DECADE) >> 16);
		else
			out[i] = (uint32_t)((l4s_power((action > 0 ?
			    action * model->span[i][1] :
			    -action * model->span[i][0]) >> 16) +
			    (1 << 14)) >> 15);
	}
}

/* -- what is seen */

static void
average(const struct l4s_model *model, struct l4s_memory *memory,
    uint64_t *seen)
{
	unsigned features = model->features;
	int64_t share, first = (1 << SHARE_BITS) / (int64_t)++memory->seen;

	for (unsigned k = 0; k < model->averages; k++) {
		uint64_t *told = seen + features * (k + 1U);

		share = (int64_t)(((uint64_t)model->interval_us <<
		    SHARE_BITS) / model->average_us[k]);
		share = within(share, first, 1 << SHARE_BITS);
		for (unsigned i = 0; i < features; i++) {
			int64_t *held = &memory->average[k][i];

			*held += (((int64_t)(seen[i] << FINER) - *held) *
			    share) >> SHARE_BITS;
			told[i] = (uint64_t)*held >> FINER;
		}
	}
}

static void
see(const struct l4s_model *model, struct l4s_memory *memory,
    const uint64_t *raw, uint64_t seen[L4S_INPUTS])
{
	for (unsigned i = 0; i < model->features; i++)
		seen[i] = l4s_log2((1 << L4S_SEEN_BITS) + (raw[i] < 1 << 30 ?
		    raw[i] : 1 << 30)) - (L4S_SEEN_BITS << L4S_SEEN_BITS);
	average(model, memory, seen);
}

void
l4s_model_outputs(const struct l4s_model *model, struct l4s_memory *memory,
    const uint64_t *raw, uint32_t out[L4S_OUTPUTS])
{
	uint64_t logs_seen[L4S_INPUTS];
	const uint64_t *seen = raw;
	int64_t values[L4S_OUTPUTS] = { 0 };

	if (model->form != L4S_FORM_PACKET) {
		see(model, memory, raw, logs_seen);
		seen = logs_seen;
	}
	if (model->layers == 0)
		add_trees(model, seen, values);
	else
		apply_layers(model, seen, values);
	tell(model, values, out);
}

/* -- the check: after it nothing is read outside, and nothing overflows */

static bool
head_fits(const struct l4s_model *model)
{
	static const uint8_t features[] = { L4S_FEATURES, 12, L4S_SEEN_MOST };
	static const uint8_t outputs[] = { 3, 2, 5 };
	bool packet = model->form == L4S_FORM_PACKET;

	if (model->form > L4S_FORM_PARAMETERS || model->reserved != 0 ||
	    model->rest != 0 || model->features != features[model->form] ||
	    model->layers > L4S_LAYERS ||
	    model->averages > (packet ? 0 : L4S_AVERAGES))
		return (false);
	if (packet ? model->interval_us != 0 :
	    model->interval_us < LEAST_US ||
	    model->interval_us > MOST_INTERVAL_US)
		return (false);
	for (unsigned k = 0; k < model->averages; k++)
		if (model->average_us[k] < LEAST_US ||
		    model->average_us[k] > MOST_AVERAGE_US)
			return (false);
	for (unsigned i = 0; i < 5; i++)
		if (within(model->span[i][0], -MOST_SPAN, MOST_SPAN) !=
		    model->span[i][0] ||
		    within(model->span[i][1], -MOST_SPAN, MOST_SPAN) !=
		    model->span[i][1])
			return (false);
	return (model->outputs == outputs[model->form] ||
	    (packet && model->layers == 0 && model->outputs == 2));
}

static uint64_t
trees_size(const struct l4s_model *model)
{
	return (sizeof(*model) + 8ULL * model->nodes +
	    4ULL * model->leaves * model->outputs);
}

/*
 * The children of the nodes are, in their order, all nodes but the roots: so
 * each is reached in one way only, and no walk takes more steps than there are
 * nodes.
 */
static bool
trees_fit(const struct l4s_model *model)
{
	const uint64_t *nodes = body_of(model);
	unsigned inputs = model->features * (1U + model->averages);
	uint64_t next = model->roots;

	if (model->roots == 0 || model->roots > model->nodes)
		return (false);
	for (uint64_t i = 0; i < model->nodes; i++) {
		if (feature_of(nodes[i]) == L4S_LEAF) {
			if (low_of(nodes[i]) >= model->leaves)
				return (false);
			continue;
		}
		if (feature_of(nodes[i]) >= inputs || next <= i ||
		    low_of(nodes[i]) != next)
			return (false);
		next += 2;
	}
	return (next == model->nodes);
}

/* Bytes of what the inputs are made by. */
static uint64_t
inputs_size(const struct l4s_model *model)
{
	uint64_t total = 0;

	if (model->form != L4S_FORM_PACKET)
		return (8ULL * model->features * (1U + model->averages));
	for (unsigned i = 0; i < L4S_FEATURES; i++)
		total += model->cells[i];
	return ((8 * total + 2 * (total + L4S_FEATURES) + 3) & ~3ULL);
}

static uint64_t
layers_size(const struct l4s_model *model)
{
	uint64_t size = sizeof(*model) + inputs_size(model);
	uint32_t m = model->features * (1U + model->averages);

	for (unsigned k = 0; k < model->layers; k++) {
		size += layer_size(m, model->width[k]);
		m = model->width[k];
	}
	return (size);
}

static bool
inputs_fit(const struct l4s_model *model)
{
	const uint64_t *thresholds = body_of(model);
	const int32_t *line = (const int32_t *)(model + 1);

	if (model->form != L4S_FORM_PACKET) {
		for (uint64_t i = 0; i < inputs_size(model) / 4; i++)
			if (line[i] < -MOST_NUMBER || line[i] > MOST_NUMBER)
				return (false);
		return (model->bound >= 1 && model->bound <= INT16_MAX);
	}
	for (unsigned i = 0; i < L4S_FEATURES; i++) {
		if (model->cells[i] > L4S_CELLS)
			return (false);
		for (unsigned k = 1; k < model->cells[i]; k++)
			if (thresholds[k] <= thresholds[k - 1])
				return (false);
		thresholds += model->cells[i];
	}
	return (model->bound == 0);
}

static bool
layers_fit(const struct l4s_model *model)
{
	const uint8_t *at = (const uint8_t *)(model + 1) + inputs_size(model);
	uint32_t m = model->features * (1U + model->averages);

	for (unsigned k = 0; k < model->layers; k++) {
		uint32_t n = model->width[k];

		for (uint32_t i = 0; i < n; i++)
			if (at[4 * filled(n) + i] > MOST_SHIFT)
				return (false);
		at += layer_size(m, n);
		m = n;
	}
	return (inputs_fit(model));
}

static bool
widths_fit(const struct l4s_model *model)
{
	for (unsigned k = 0; k < model->layers; k++)
		if (model->width[k] == 0 || model->width[k] > L4S_WIDTH)
			return (false);
	return (model->width[model->layers - 1] == model->outputs);
}

enum l4s_fault
l4s_model_check(const void *data, uint64_t length)
{
	const struct l4s_model *model = data;
	bool trees;

	if (length < sizeof(*model) || model->magic != L4S_MODEL_MAGIC)
		return (L4S_NO_MODEL);
	if (model->version != L4S_MODEL_VERSION)
		return (L4S_OTHER_VERSION);
	if (length > L4S_MODEL_MOST || model->size != length)
		return (L4S_WRONG_SIZE);
	trees = model->layers == 0;
	if (!head_fits(model) || (!trees && !widths_fit(model)))
		return (L4S_OUT_OF_RANGE);
	if (length != (trees ? trees_size(model) : layers_size(model)))
		return (L4S_WRONG_SIZE);
	return ((trees ? trees_fit(model) : layers_fit(model)) ?
	    L4S_FAULTLESS : L4S_OUT_OF_RANGE);
}

const char *
l4s_fault_text(enum l4s_fault fault)
{
	switch (fault) {
	case L4S_FAULTLESS:
		return ("fine");
	case L4S_OTHER_VERSION:
		return ("a model of another version");
	case L4S_WRONG_SIZE:
		return ("a model of a wrong size");
	case L4S_OUT_OF_RANGE:
		return ("a model with a number out of range");
	default:
		return ("not a model");
	}
}
