/* A BERT model (all-MiniLM, bge, e5 and the like): hyperparameters and weights, checked, as views into a GGUF file.
 *
 * Ownership and threads as in model.h: the model owns the gguf mapping, matrices point into it, biases and norms are
 * widened to float32 in one allocation. Immutable after loading. */
#ifndef INFER_BERT_MODEL_H
#define INFER_BERT_MODEL_H

#include <stdbool.h>

#include "error.h"
#include "gguf.h"
#include "kernels.h"

enum { BERT_MAX_CONTEXT = 8192 };

enum pooling { POOLING_MEAN = 1, POOLING_CLS = 2 }; /* the numbers of the key pooling_type */

struct bert_hparams {
    char name[96]; /* general.name, or "" */
    int n_vocab, n_embd, n_layer, n_head, head_dim, n_ff, n_ctx;
    float norm_eps;
    enum pooling pooling;
};

struct bert_norm {
    const float *w, *b; /* [n_embd] */
};

struct bert_layer {
    struct weight wq, wk, wv, wo;      /* [n_embd, n_embd] */
    const float *bq, *bk, *bv, *bo;    /* [n_embd], or NULL */
    struct bert_norm attn_norm;        /* after attention and its residual */
    struct weight up, down;            /* [n_ff, n_embd] [n_embd, n_ff] */
    const float *b_up, *b_down;        /* [n_ff] [n_embd], or NULL */
    struct bert_norm out_norm;         /* after the feed-forward part and its residual */
};

struct bert_model {
    struct gguf *gguf;
    struct bert_hparams hp;
    struct weight embedding;           /* [n_vocab, n_embd] */
    struct weight positions;           /* [n_ctx, n_embd] */
    struct weight types;               /* [n_types, n_embd]: a text's tokens are of type 0; data NULL: none */
    struct bert_norm embedding_norm;
    struct bert_layer *layers;         /* [n_layer] */
    float *floats;                     /* owns every const float * above */
    size_t weight_bytes, n_parameters;
};

/* Takes g over on success; on failure the caller keeps it. NULL and *err then. */
struct bert_model *bert_model_load(struct gguf *g, struct infer_error *err);
void bert_model_free(struct bert_model *m);

#endif
