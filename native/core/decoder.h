/* The forward pass of the decoder models (llama, qwen2, qwen3).
 *
 * A decoder owns the activations of one model for batches of up to max_tokens
 * tokens and max_logits rows of logits. Called by the conductor; the work is shared over the pool. */
#ifndef INFER_DECODER_H
#define INFER_DECODER_H

#include "error.h"
#include "kv.h"
#include "model.h"
#include "pool.h"

struct decoder;

/* What one step computes: n tokens of any sequences. Tokens of one sequence are consecutive and
 * their positions ascend from seq->n_tokens; the caller has reserved the pages. */
struct batch_token {
    uint32_t id;
    int pos;
    struct kv_seq *seq;
    int logits_row; /* row of the logits to fill, or -1; a step's rows are 0 .. n_rows-1, each used once */
    float *hidden;  /* where to put the final normalized hidden state [n_embd], or NULL */
};

/* m and k outlive the decoder. NULL and *err when there is no memory. */
struct decoder *decoder_create(const struct model *m, const struct kernels *k, int max_tokens, int max_logits,
                               struct infer_error *err);
void decoder_free(struct decoder *d);

/* Computes the batch, stores K and V (the caller then advances seq->n_tokens), and
 * fills logits rows: [n_rows, n_vocab], the decoder's own memory, valid until the next call.
 * Each token's K, V and logits are the same bits whatever else is in the batch, however its prompt was sliced, and
 * with any number of threads. Each thread of p needs the kernel table's scratch_bytes. Allocates nothing. */
const float *decoder_forward(struct decoder *d, struct pool *p, const struct batch_token *batch, int n_tokens);

/* Bytes of activations and logits that the decoder holds. */
size_t decoder_bytes(const struct decoder *d);

#endif
