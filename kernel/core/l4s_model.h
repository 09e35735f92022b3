/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Integer models: the file's format, and what they compute.
 * l4s_gym/bridge/model.py makes them and says what the numbers mean; it
 * computes the same ones. A model is a block of bytes at an address divisible
 * by 8: this head, and then
 *   trees:  nodes of 8 bytes, values of the leaves (int32);
 *   layers: how their inputs are made, with zeros up to 4 bytes, and then for
 *           each layer biases (int32), shifts (uint8) and weights (uint8, with
 *           128 added: for each 8 outputs those of each input); outputs are
 *           filled up to a multiple of 8.
 */
#ifndef L4S_MODEL_H
#define L4S_MODEL_H

#include "l4s_types.h"

#define L4S_MODEL_MAGIC 0x4d53344c	/* "L4SM" */
#define L4S_MODEL_VERSION 1
#define L4S_MODEL_MOST 100000	/* bytes */

#define L4S_FORM_PACKET 0
#define L4S_FORM_PROBABILITY 1
#define L4S_FORM_PARAMETERS 2

#define L4S_FEATURES 8	/* of a packet */
#define L4S_SEEN_MOST 29	/* features of an interval, at most */
#define L4S_AVERAGES 4
#define L4S_INPUTS (L4S_SEEN_MOST * (1 + L4S_AVERAGES))
#define L4S_LAYERS 8
#define L4S_WIDTH 256
#define L4S_OUTPUTS 5
#define L4S_LEAF 255
#define L4S_CELLS 255
#define L4S_SEEN_BITS 20	/* features of an interval are in 2^-20 */

struct l4s_model {
	uint32_t magic;
	uint16_t version;
	uint8_t form;
	uint8_t layers;		/* 0: trees */
	uint32_t size;		/* bytes, with this head */
	uint32_t interval_us;	/* 0 in the packet form */
	uint8_t features;
	uint8_t averages;
	uint8_t outputs;	/* numbers that the body gives */
	uint8_t reserved;
	uint16_t roots;		/* trees: the first nodes are their roots */
	uint16_t nodes;
	uint16_t leaves;
	uint16_t bound;		/* of inputs, interval forms */
	uint32_t average_us[L4S_AVERAGES];	/* time constants */
	int32_t span[5][2];	/* log2 of the factors at -1 and 1, 2^-16 */
	uint16_t width[L4S_LAYERS];	/* outputs of each layer */
	uint16_t cells[L4S_FEATURES];	/* packet form: thresholds of inputs */
	uint32_t rest;
};

/* Averages of what was seen, of one queue; start with zeros. */
struct l4s_memory {
	uint64_t seen;		/* how often */
	int64_t average[L4S_AVERAGES][L4S_SEEN_MOST];	/* 2^-28 */
};

enum l4s_fault {
	L4S_FAULTLESS,
	L4S_NO_MODEL,		/* the first bytes are others */
	L4S_OTHER_VERSION,
	L4S_WRONG_SIZE,		/* too large, or not what the head says */
	L4S_OUT_OF_RANGE,	/* a number is */
};

/* Whether `length` bytes are a model that may be evaluated. */
enum l4s_fault l4s_model_check(const void *data, uint64_t length);

/* What is wrong, in words. */
const char *l4s_fault_text(enum l4s_fault fault);

/*
 * The outputs of a checked model for raw features: in the packet form the
 * probabilities of drop and mark (2^-31), memory is not used; of the interval
 * forms those of C and L (2^-31), or the five factors (1/65536).
 */
void l4s_model_outputs(const struct l4s_model *model,
    struct l4s_memory *memory, const uint64_t *raw,
    uint32_t out[L4S_OUTPUTS]);

/* log2 of 1 to 2^40, in 2^-20; 2^e of -31 to 8 in 2^-16, in 2^-31. */
uint64_t l4s_log2(uint64_t x);
uint64_t l4s_power(int64_t e);

#endif
