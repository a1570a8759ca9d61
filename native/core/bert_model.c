/* Loading of BERT models, by the rule of loader.h: refused is what encoder.c does not compute exactly.
 *
 * Names and keys are those of llama.cpp's conversion. bert_model_load on any thread; memory as in bert_model.h. */
#include "bert_model.h"

#include <stdio.h>
#include <stdlib.h>

#include "loader.h"

static const struct known_key known_keys[] = {
    {"attention.causal", KEY_ZERO},
    {"attention.head_count", KEY_READ},
    {"attention.layer_norm_epsilon", KEY_READ},
    {"block_count", KEY_READ},
    {"context_length", KEY_READ},
    {"embedding_length", KEY_READ},
    {"feed_forward_length", KEY_READ},
    {"pooling_type", KEY_READ},
    /* for people and converters */
    {"vocab_size", KEY_READ},
    /* variants that are not implemented, in the values that switch them off */
    {"attention.clamp_kqv", KEY_ZERO},
    {"attention.max_alibi_bias", KEY_ZERO},
    {"attention.scale", KEY_ZERO},
    {"expert_count", KEY_ZERO},
    {"use_parallel_residual", KEY_ZERO},
};

static int read_pooling(const struct loader *l, enum pooling *pooling)
{
    uint32_t type;
    if (!gguf_u32(l->g, "bert.pooling_type", &type) || (type != POOLING_MEAN && type != POOLING_CLS))
        return loader_refuse(l, "pooling_type", "1 (mean) and 2 (CLS) are implemented");
    *pooling = (enum pooling)type;
    return 0;
}

static int read_hparams(const struct loader *l, struct bert_hparams *hp)
{
    loader_title(l, hp->name, sizeof hp->name);
    if (loader_check_keys(l, known_keys, sizeof known_keys / sizeof *known_keys) ||
        loader_dim(l, "block_count", 0, LOADER_MAX_DIM, &hp->n_layer) ||
        loader_dim(l, "context_length", 0, BERT_MAX_CONTEXT, &hp->n_ctx) ||
        loader_dim(l, "embedding_length", 0, LOADER_MAX_DIM, &hp->n_embd) ||
        loader_dim(l, "feed_forward_length", 0, LOADER_MAX_DIM, &hp->n_ff) ||
        loader_dim(l, "attention.head_count", 0, LOADER_MAX_DIM, &hp->n_head) ||
        loader_positive(l, "attention.layer_norm_epsilon", 0, &hp->norm_eps) || read_pooling(l, &hp->pooling))
        return -1;
    if (!loader_has(l, "attention.causal")) /* readers take a missing one for true */
        return loader_refuse(l, "attention.causal", "false is needed");
    if (hp->n_embd % hp->n_head != 0)
        return infer_fail(l->err, INFER_ERR, "bert.attention.head_count %d does not divide embedding_length %d",
                          hp->n_head, hp->n_embd);
    hp->head_dim = hp->n_embd / hp->n_head;
    if (hp->head_dim > LOADER_MAX_HEAD_DIM)
        return infer_fail(l->err, INFER_ERR, "heads of %d elements are too large; %d is the most", hp->head_dim,
                          LOADER_MAX_HEAD_DIM);
    return 0;
}

static int take_layer(struct loader *l, const struct bert_hparams *hp, int i, struct bert_layer *y)
{
    char name[64];
    int n = hp->n_embd;
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d.%s", i, suffix), name)
    if (loader_matrix(l, NAME("attn_q.weight"), REQUIRED, n, n, &y->wq) ||
        loader_vector(l, NAME("attn_q.bias"), OPTIONAL, n, &y->bq) ||
        loader_matrix(l, NAME("attn_k.weight"), REQUIRED, n, n, &y->wk) ||
        loader_vector(l, NAME("attn_k.bias"), OPTIONAL, n, &y->bk) ||
        loader_matrix(l, NAME("attn_v.weight"), REQUIRED, n, n, &y->wv) ||
        loader_vector(l, NAME("attn_v.bias"), OPTIONAL, n, &y->bv) ||
        loader_matrix(l, NAME("attn_output.weight"), REQUIRED, n, n, &y->wo) ||
        loader_vector(l, NAME("attn_output.bias"), OPTIONAL, n, &y->bo) ||
        loader_vector(l, NAME("attn_output_norm.weight"), REQUIRED, n, &y->attn_norm.w) ||
        loader_vector(l, NAME("attn_output_norm.bias"), REQUIRED, n, &y->attn_norm.b) ||
        loader_matrix(l, NAME("ffn_up.weight"), REQUIRED, hp->n_ff, n, &y->up) ||
        loader_vector(l, NAME("ffn_up.bias"), OPTIONAL, hp->n_ff, &y->b_up) ||
        loader_matrix(l, NAME("ffn_down.weight"), REQUIRED, n, hp->n_ff, &y->down) ||
        loader_vector(l, NAME("ffn_down.bias"), OPTIONAL, n, &y->b_down) ||
        loader_vector(l, NAME("layer_output_norm.weight"), REQUIRED, n, &y->out_norm.w) ||
        loader_vector(l, NAME("layer_output_norm.bias"), REQUIRED, n, &y->out_norm.b))
        return -1;
#undef NAME
    return 0;
}

static int take_tensors(struct loader *l, struct bert_model *m)
{
    struct bert_hparams *hp = &m->hp;
    int n_types = 0;
    if (loader_rows(l, "token_embd.weight", &hp->n_vocab) || loader_begin_tensors(l, hp->n_layer)) return -1;
    if (gguf_tensor(l->g, "token_types.weight") && loader_rows(l, "token_types.weight", &n_types)) return -1;
    m->layers = calloc((size_t)hp->n_layer, sizeof *m->layers);
    if (!m->layers) return infer_fail(l->err, INFER_ERR, "out of memory for %d layers", hp->n_layer);

    if (loader_matrix(l, "token_embd.weight", REQUIRED, hp->n_vocab, hp->n_embd, &m->embedding) ||
        loader_matrix(l, "position_embd.weight", REQUIRED, hp->n_ctx, hp->n_embd, &m->positions) ||
        loader_matrix(l, "token_types.weight", OPTIONAL, n_types, hp->n_embd, &m->types) ||
        loader_vector(l, "token_embd_norm.weight", REQUIRED, hp->n_embd, &m->embedding_norm.w) ||
        loader_vector(l, "token_embd_norm.bias", REQUIRED, hp->n_embd, &m->embedding_norm.b))
        return -1;
    for (int i = 0; i < hp->n_layer; i++)
        if (take_layer(l, hp, i, &m->layers[i])) return -1;
    return loader_end_tensors(l, hp->n_layer);
}

struct bert_model *bert_model_load(struct gguf *g, struct infer_error *err)
{
    struct loader l = {.g = g, .arch = "bert", .err = err};
    struct bert_model *m = calloc(1, sizeof *m);
    if (!m) {
        infer_fail(err, INFER_ERR, "out of memory");
        return NULL;
    }
    int rc = loader_check_file(&l) || read_hparams(&l, &m->hp) || take_tensors(&l, m) ? -1 : 0;
    loader_free(&l);
    m->floats = l.floats;
    m->weight_bytes = l.weight_bytes;
    m->n_parameters = l.n_parameters;
    if (rc) {
        bert_model_free(m); /* without the file, which stays the caller's */
        return NULL;
    }
    m->gguf = g;
    return m;
}

void bert_model_free(struct bert_model *m)
{
    if (!m) return;
    gguf_close(m->gguf);
    free(m->layers);
    free(m->floats);
    free(m);
}
