/* Choosing the next token from logits.
 *
 * The chain, in llama.cpp's order: repetition penalty over the last
 * SAMPLER_REPEAT_WINDOW tokens of prompt and output; then greedy if temperature is 0; else
 * top-k, top-p, min-p, temperature, and a draw. top-p and min-p look at the
 * probabilities before the temperature. Ties break to the lower id, so
 * that the result is a function of (logits, history, seed, number of draws) alone: neither
 * libm nor the instruction set has a part in it. NaN is never chosen.
 *
 * A sampler belongs to one request and is used by one thread at a time. */
#ifndef INFER_SAMPLER_H
#define INFER_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum { SAMPLER_REPEAT_WINDOW = 64 };

struct sampler_params {
    float temperature;    /* 0: greedy */
    int top_k;            /* 0: off */
    float top_p, min_p;   /* 1 and 0: off */
    float repeat_penalty; /* 1: off */
    uint64_t seed;
};

typedef int argmax_fn(const float *x, int n);

struct sampler {
    struct sampler_params params;
    argmax_fn *argmax;
    uint64_t state[2]; /* of the generator (xoroshiro128++) */
    void *scratch;     /* grown on demand */
    size_t scratch_bytes;
};

/* The first value that is out of range, by its name and value; 0 if none is. */
int sampler_check(const struct sampler_params *params, struct infer_error *err);

/* params have been checked. argmax: a kernel table's. */
void sampler_init(struct sampler *s, const struct sampler_params *params, argmax_fn *argmax);
void sampler_free(struct sampler *s);

/* Picks from logits [n_vocab] (not changed), given the n_history tokens so far (prompt and
 * output, newest last). Returns the id, or -1 when out of memory. */
int32_t sampler_pick(struct sampler *s, const float *logits, int n_vocab, const uint32_t *history,
                     int n_history);

/* log p of `id`, and the n largest (id, log p) in falling order, of softmax(logits):
 * before any penalty or temperature. Sums in double. top_* may be NULL if n is 0; fewer
 * than n logits that are numbers leave ids of 0 with -INFINITY at the end. */
float logprobs(const float *logits, int n_vocab, uint32_t id, int n, uint32_t *top_ids, float *top_logprobs);

#endif
