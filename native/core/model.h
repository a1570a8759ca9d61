/* A decoder model: hyperparameters and weights, checked, as views into a GGUF file.
 *
 * model_load refuses whatever the forward pass does not implement exactly
 * (architecture, RoPE scaling, tensor type, shapes), by its name and value.
 *
 * Ownership: the model owns the gguf mapping; weights point into it; norm
 * weights and biases are widened to float32 in one allocation of the model's
 * own. Immutable after loading: any thread may read. */
#ifndef INFER_MODEL_H
#define INFER_MODEL_H

#include <stdbool.h>

#include "error.h"
#include "gguf.h"
#include "kernels.h"

enum rope_order { ROPE_INTERLEAVED, ROPE_NEOX };

struct hparams {
    char architecture[16]; /* "llama", "qwen2", "qwen3" */
    char name[96];         /* general.name, or "" */
    int n_vocab, n_embd, n_layer, n_head, n_head_kv;
    int k_dim, v_dim;   /* head sizes; not always n_embd / n_head */
    int n_ff, n_ctx_train;
    int pooling;        /* pooling_type of the file: how it wants embeddings; -1: not told */
    float norm_eps;
    enum rope_order rope_order;
    int n_rot;          /* rotated elements of a head */
    float rope_base;
    int n_q, n_k, n_v;  /* n_head*k_dim, n_head_kv*k_dim, n_head_kv*v_dim */
};

struct layer {
    const float *attn_norm;                 /* [n_embd] */
    struct weight wq, wk, wv;               /* [n_q, n_embd] [n_k, n_embd] [n_v, n_embd] */
    const float *bq, *bk, *bv;              /* [n_q] [n_k] [n_v], or NULL */
    const float *q_norm, *k_norm;           /* [k_dim], or NULL */
    struct weight wo;                       /* [n_embd, n_head*v_dim] */
    const float *bo;                        /* [n_embd], or NULL */
    const float *ffn_norm;                  /* [n_embd] */
    struct weight gate, up, down;           /* [n_ff, n_embd] [n_ff, n_embd] [n_embd, n_ff] */
};

struct model {
    struct gguf *gguf;
    struct hparams hp;
    struct weight embedding;   /* [n_vocab, n_embd] */
    struct weight output;      /* [n_vocab, n_embd]; the embedding where tied */
    bool tied;
    const float *output_norm;  /* [n_embd] */
    const float *rope_freqs;   /* [n_rot/2] divisors of the frequencies, or NULL */
    struct layer *layers;      /* [n_layer] */
    float *floats;             /* owns every const float * above */
    size_t weight_bytes;       /* sum over tensors */
    size_t n_parameters;
};

/* Takes g over on success; on failure the caller keeps it. NULL and *err then. */
struct model *model_load(struct gguf *g, struct infer_error *err);
void model_free(struct model *m);

/* "Q4_1", or the type that holds most of the weight bytes: for people. */
const char *model_quantization(const struct model *m);

#endif
