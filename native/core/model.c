/* Loading of decoder models: hyperparameters, weights and their checks, by the rule of loader.h.
 *
 * Memory: struct model, the layers and one array of floats (norms and biases, widened) are allocated
 * here and freed by model_free, with the gguf handle; matrices stay in the mapping.
 * model_load on any thread; immutable afterwards. */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loader.h"

/* ---- architectures ---- */

struct architecture {
    const char *name;
    enum rope_order rope_order;
    bool qk_norm; /* each head of Q and K is normalized before RoPE */
};

static const struct architecture architectures[] = {
    {"llama", ROPE_INTERLEAVED, false},
    {"qwen2", ROPE_NEOX, false},
    {"qwen3", ROPE_NEOX, true},
};

/* ---- metadata ---- */

static const struct known_key known_keys[] = {
    {"attention.head_count", KEY_READ},
    {"attention.head_count_kv", KEY_READ},
    {"attention.key_length", KEY_READ},
    {"attention.layer_norm_rms_epsilon", KEY_READ},
    {"attention.value_length", KEY_READ},
    {"block_count", KEY_READ},
    {"context_length", KEY_READ},
    {"embedding_length", KEY_READ},
    {"feed_forward_length", KEY_READ},
    {"rope.dimension_count", KEY_READ},
    {"rope.freq_base", KEY_READ},
    {"pooling_type", KEY_READ},
    /* for people and converters: they do not enter the forward pass */
    {"rope.scaling.finetuned", KEY_READ},
    {"rope.scaling.original_context_length", KEY_READ},
    {"source_layout", KEY_READ},
    {"tensor_data_layout", KEY_READ},
    {"vocab_size", KEY_READ},
    /* variants that are not implemented, in the values that switch them off */
    {"attention.causal", KEY_TRUE},
    {"attention.clamp_kqv", KEY_ZERO},
    {"attention.max_alibi_bias", KEY_ZERO},
    {"attention.scale", KEY_ZERO},
    {"attention.sliding_window", KEY_ZERO},
    {"attn_logit_softcapping", KEY_ZERO},
    {"final_logit_softcapping", KEY_ZERO},
    {"expert_count", KEY_ZERO},
    {"expert_used_count", KEY_ZERO},
    {"expert_shared_count", KEY_ZERO},
    {"leading_dense_block_count", KEY_ZERO},
    {"use_parallel_residual", KEY_ZERO},
    {"embedding_scale", KEY_ZERO_OR_ONE},
    {"residual_scale", KEY_ZERO_OR_ONE},
    {"logit_scale", KEY_ZERO_OR_ONE},
    {"rope.scale_linear", KEY_ROPE_FACTOR},
    {"rope.scaling.attn_factor", KEY_ROPE_FACTOR},
    {"rope.scaling.factor", KEY_ROPE_FACTOR},
    {"rope.scaling.type", KEY_ROPE_TYPE},
};

static const struct architecture *find_architecture(struct loader *l)
{
    struct gguf_string arch;
    if (loader_check_file(l)) return NULL;
    if (!gguf_str(l->g, "general.architecture", &arch)) {
        infer_fail(l->err, INFER_ERR, "the file names no architecture (no text in key 'general.architecture')");
        return NULL;
    }
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (gguf_string_is(arch, architectures[i].name)) return &architectures[i];
    infer_fail(l->err, INFER_ERR, "architecture '%.*s' is not supported; llama, qwen2, qwen3 and bert are",
               (int)(arch.len < 64 ? arch.len : 64), arch.data);
    return NULL;
}

static int read_hparams(struct loader *l, const struct architecture *arch, struct hparams *hp)
{
    snprintf(hp->architecture, sizeof hp->architecture, "%s", arch->name);
    loader_title(l, hp->name, sizeof hp->name);

    if (loader_check_keys(l, known_keys, sizeof known_keys / sizeof *known_keys) || loader_dim(l, "block_count", 0, LOADER_MAX_DIM, &hp->n_layer) ||
        loader_dim(l, "context_length", 0, LOADER_MAX_CONTEXT, &hp->n_ctx_train) ||
        loader_dim(l, "embedding_length", 0, LOADER_MAX_DIM, &hp->n_embd) ||
        loader_dim(l, "feed_forward_length", 0, LOADER_MAX_DIM, &hp->n_ff) ||
        loader_dim(l, "attention.head_count", 0, LOADER_MAX_DIM, &hp->n_head) ||
        loader_dim(l, "attention.head_count_kv", hp->n_head, LOADER_MAX_DIM, &hp->n_head_kv) ||
        loader_positive(l, "attention.layer_norm_rms_epsilon", 0, &hp->norm_eps) ||
        loader_positive(l, "rope.freq_base", 10000.0f, &hp->rope_base))
        return -1;

    if (!loader_has(l, "attention.key_length") && hp->n_embd % hp->n_head != 0)
        return infer_fail(l->err, INFER_ERR, "%s.attention.head_count %d does not divide embedding_length %d",
                          l->arch, hp->n_head, hp->n_embd);
    if (hp->n_head % hp->n_head_kv != 0)
        return infer_fail(l->err, INFER_ERR,
                          "%s.attention.head_count %d is no multiple of attention.head_count_kv %d", l->arch,
                          hp->n_head, hp->n_head_kv);
    char pooling[64];
    uint32_t type;
    snprintf(pooling, sizeof pooling, "%s.pooling_type", arch->name);
    hp->pooling = gguf_u32(l->g, pooling, &type) && type < 256 ? (int)type : -1;
    int head_dim = hp->n_embd / hp->n_head;
    if (loader_dim(l, "attention.key_length", head_dim, LOADER_MAX_HEAD_DIM, &hp->k_dim) ||
        loader_dim(l, "attention.value_length", head_dim, LOADER_MAX_HEAD_DIM, &hp->v_dim) ||
        loader_dim(l, "rope.dimension_count", hp->k_dim, LOADER_MAX_HEAD_DIM, &hp->n_rot))
        return -1;
    if (hp->k_dim > LOADER_MAX_HEAD_DIM || hp->v_dim > LOADER_MAX_HEAD_DIM) /* where derived */
        return infer_fail(l->err, INFER_ERR, "heads of %d and %d elements are too large; %d is the most", hp->k_dim,
                          hp->v_dim, LOADER_MAX_HEAD_DIM);
    if (hp->n_rot > hp->k_dim || hp->n_rot % 2 != 0)
        return infer_fail(l->err, INFER_ERR, "%s.rope.dimension_count is %d; an even number up to the head's %d is needed",
                          l->arch, hp->n_rot, hp->k_dim);
    int64_t n_q = (int64_t)hp->n_head * (hp->k_dim > hp->v_dim ? hp->k_dim : hp->v_dim);
    if (n_q > LOADER_MAX_DIM)
        return infer_fail(l->err, INFER_ERR, "%d heads of %d elements are too large", hp->n_head, hp->k_dim);
    hp->n_q = hp->n_head * hp->k_dim;
    hp->n_k = hp->n_head_kv * hp->k_dim;
    hp->n_v = hp->n_head_kv * hp->v_dim;
    hp->rope_order = arch->rope_order;
    return 0;
}

/* ---- tensors ---- */

static int take_layer(struct loader *l, const struct hparams *hp, bool qk_norm, int i, struct layer *y)
{
    char name[64];
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d.%s", i, suffix), name)
    if (loader_vector(l, NAME("attn_norm.weight"), REQUIRED, hp->n_embd, &y->attn_norm) ||
        loader_matrix(l, NAME("attn_q.weight"), REQUIRED, hp->n_q, hp->n_embd, &y->wq) ||
        loader_matrix(l, NAME("attn_k.weight"), REQUIRED, hp->n_k, hp->n_embd, &y->wk) ||
        loader_matrix(l, NAME("attn_v.weight"), REQUIRED, hp->n_v, hp->n_embd, &y->wv) ||
        loader_vector(l, NAME("attn_q.bias"), OPTIONAL, hp->n_q, &y->bq) ||
        loader_vector(l, NAME("attn_k.bias"), OPTIONAL, hp->n_k, &y->bk) ||
        loader_vector(l, NAME("attn_v.bias"), OPTIONAL, hp->n_v, &y->bv) ||
        loader_matrix(l, NAME("attn_output.weight"), REQUIRED, hp->n_embd, hp->n_head * hp->v_dim, &y->wo) ||
        loader_vector(l, NAME("attn_output.bias"), OPTIONAL, hp->n_embd, &y->bo) ||
        loader_vector(l, NAME("ffn_norm.weight"), REQUIRED, hp->n_embd, &y->ffn_norm) ||
        loader_matrix(l, NAME("ffn_gate.weight"), REQUIRED, hp->n_ff, hp->n_embd, &y->gate) ||
        loader_matrix(l, NAME("ffn_up.weight"), REQUIRED, hp->n_ff, hp->n_embd, &y->up) ||
        loader_matrix(l, NAME("ffn_down.weight"), REQUIRED, hp->n_embd, hp->n_ff, &y->down))
        return -1;
    if (qk_norm &&
        (loader_vector(l, NAME("attn_q_norm.weight"), REQUIRED, hp->k_dim, &y->q_norm) ||
         loader_vector(l, NAME("attn_k_norm.weight"), REQUIRED, hp->k_dim, &y->k_norm)))
        return -1;
#undef NAME
    return 0;
}

static int take_tensors(struct loader *l, const struct architecture *arch, struct model *m)
{
    struct hparams *hp = &m->hp;
    if (loader_rows(l, "token_embd.weight", &hp->n_vocab) || loader_begin_tensors(l, hp->n_layer)) return -1;
    m->layers = calloc((size_t)hp->n_layer, sizeof *m->layers);
    if (!m->layers) return infer_fail(l->err, INFER_ERR, "out of memory for %d layers", hp->n_layer);

    if (loader_matrix(l, "token_embd.weight", REQUIRED, hp->n_vocab, hp->n_embd, &m->embedding) ||
        loader_matrix(l, "output.weight", OPTIONAL, hp->n_vocab, hp->n_embd, &m->output) ||
        loader_vector(l, "output_norm.weight", REQUIRED, hp->n_embd, &m->output_norm) ||
        loader_vector(l, "rope_freqs.weight", OPTIONAL, hp->n_rot / 2, &m->rope_freqs))
        return -1;
    m->tied = m->output.data == NULL;
    if (m->tied) m->output = m->embedding;
    for (int i = 0; m->rope_freqs && i < hp->n_rot / 2; i++)
        if (!isfinite(m->rope_freqs[i]) || !(m->rope_freqs[i] > 0))
            return infer_fail(l->err, INFER_ERR, "tensor 'rope_freqs.weight' holds %g at %d; positive numbers are needed",
                              (double)m->rope_freqs[i], i);
    for (int i = 0; i < hp->n_layer; i++)
        if (take_layer(l, hp, arch->qk_norm, i, &m->layers[i])) return -1;
    return loader_end_tensors(l, hp->n_layer);
}

/* ---- the model ---- */

struct model *model_load(struct gguf *g, struct infer_error *err)
{
    struct loader l = {.g = g, .err = err};
    struct model *m = calloc(1, sizeof *m);
    if (!m) {
        infer_fail(err, INFER_ERR, "out of memory");
        return NULL;
    }
    const struct architecture *arch = find_architecture(&l);
    if (arch) l.arch = arch->name;
    int rc = !arch || read_hparams(&l, arch, &m->hp) || take_tensors(&l, arch, m) ? -1 : 0;
    loader_free(&l);
    m->floats = l.floats;
    m->weight_bytes = l.weight_bytes;
    m->n_parameters = l.n_parameters;
    if (rc) {
        model_free(m); /* without the file, which stays the caller's */
        return NULL;
    }
    m->gguf = g;
    return m;
}

void model_free(struct model *m)
{
    if (!m) return;
    gguf_close(m->gguf);
    free(m->layers);
    free(m->floats);
    free(m);
}

const char *model_quantization(const struct model *m)
{
    return loader_quantization(m->gguf);
}
