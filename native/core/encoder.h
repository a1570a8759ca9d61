/* The forward pass of BERT models: whole texts in, one vector each out.
 *
 * An encoder owns the activations of one model for batches of up to max_tokens tokens in up to ENCODER_TEXTS
 * texts. Called by the conductor; the work is shared over the pool. */
#ifndef INFER_ENCODER_H
#define INFER_ENCODER_H

#include "bert_model.h"
#include "error.h"
#include "pool.h"

struct encoder;

enum { ENCODER_TEXTS = 64 }; /* of one batch at the most */

struct encoder_text {
    const uint32_t *tokens; /* [n_tokens], special tokens included; ids below n_vocab */
    int n_tokens;           /* 1 to n_ctx */
    float *vector;          /* [n_embd] out, of length 1 */
};

/* m and k outlive the encoder. max_tokens: at least one text of the model's context. NULL and *err when there is no memory. */
struct encoder *encoder_create(const struct bert_model *m, const struct kernels *k, int max_tokens, struct infer_error *err);
void encoder_free(struct encoder *e);

/* Fills the texts' vectors, each with the same bits whatever else is in the batch and with any number of
 * threads. Each thread of p needs the kernel table's scratch_bytes. Allocates nothing. */
void encoder_forward(struct encoder *e, struct pool *p, const struct encoder_text *texts, int n_texts);

/* Bytes of activations that the encoder holds. */
size_t encoder_bytes(const struct encoder *e);

#endif
