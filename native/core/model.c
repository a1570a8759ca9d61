/* Loading of decoder models: hyperparameters, weights and their checks.
 *
 * The rule: what the forward pass does not compute exactly is refused here by name and value.
 * So this file works by lists of what is known. Every tensor of the file must be one
 * that a layer takes, in the shape that the hyperparameters say; every metadata
 * key of the architecture must be one whose meaning is implemented, is for
 * people only, or has the value that changes nothing. A file that is merely unusual is refused
 * with the key's or the tensor's name rather than computed wrongly.
 *
 * Memory: struct model, the layers and one array of floats (norms and biases, widened) are allocated
 * here and freed by model_free, with the gguf handle; matrices stay in the mapping.
 * model_load on any thread; immutable afterwards. */
#include "model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_DIM = 1 << 24,      /* of any hyperparameter: products of two fit in 64 bits, sums in an int */
    MAX_HEAD_DIM = 1024,
    MAX_CONTEXT = 1 << 28,
    KEY_LEN = 128,
};

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

/* What is being loaded, for the functions below. */
struct loader {
    struct gguf *g;
    struct model *m;
    const struct architecture *arch;
    bool *used;      /* [gguf_n_tensors]: the model has a place for it */
    size_t n_floats; /* of norms and biases so far */
    struct infer_error *err;
};

static int key_is(const struct loader *l, const char *key, const char *rule)
{
    char value[KEY_LEN];
    gguf_describe(l->g, key, value, sizeof value);
    if (!*value) return infer_fail(l->err, INFER_ERR, "the file has no key '%s', which %s needs", key, l->arch->name);
    return infer_fail(l->err, INFER_ERR, "%s is %s; %s", key, value, rule);
}

/* "<architecture>.<suffix>" */
static void full_key(const struct loader *l, const char *suffix, char key[KEY_LEN])
{
    snprintf(key, KEY_LEN, "%s.%s", l->arch->name, suffix);
}

/* An integer in 1..max. A missing key gives `otherwise`, or is an error if that is 0. */
static int read_dim(const struct loader *l, const char *suffix, int otherwise, int max, int *v)
{
    char key[KEY_LEN], rule[64];
    uint32_t u;
    full_key(l, suffix, key);
    if (!gguf_has(l->g, key) && otherwise) {
        *v = otherwise;
        return 0;
    }
    if (!gguf_u32(l->g, key, &u) || u < 1 || u > (uint32_t)max) {
        snprintf(rule, sizeof rule, "an integer from 1 to %d is needed", max);
        return key_is(l, key, rule);
    }
    *v = (int)u;
    return 0;
}

/* A positive finite number. A missing key gives `otherwise`, or is an error if that is 0. */
static int read_positive(const struct loader *l, const char *suffix, float otherwise, float *v)
{
    char key[KEY_LEN];
    full_key(l, suffix, key);
    if (!gguf_has(l->g, key) && otherwise > 0) {
        *v = otherwise;
        return 0;
    }
    if (!gguf_f32(l->g, key, v) || !isfinite(*v) || !(*v > 0)) return key_is(l, key, "a positive number is needed");
    return 0;
}

/* The architecture's keys: the suffix after "<architecture>.", and when it may be there. */
enum key_rule {
    KEY_READ,        /* taken by read_hparams, or for people and tools only */
    KEY_ZERO,        /* only as 0 (or false): then it means "off" */
    KEY_ZERO_OR_ONE, /* a factor: 0 is "not set", 1 changes nothing */
    KEY_TRUE,
    KEY_ROPE_FACTOR, /* the same, where the reason is RoPE scaling */
    KEY_ROPE_TYPE,   /* "none"; "linear" with a factor of 1 is the same */
};

static const struct {
    const char *suffix;
    enum key_rule rule;
} known_keys[] = {
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
    /* for people and converters: they do not enter the forward pass */
    {"pooling_type", KEY_READ},
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

/* A number or truth value as a number. */
static bool number(const struct gguf *g, const char *key, double *v)
{
    uint32_t u;
    float f;
    bool b;
    if (gguf_u32(g, key, &u)) *v = u;
    else if (gguf_f32(g, key, &f)) *v = (double)f;
    else if (gguf_bool(g, key, &b)) *v = b;
    else return false;
    return true;
}

static int check_key(const struct loader *l, const char *key, const char *suffix)
{
    static const char rope_rule[] = "RoPE scaling is not implemented";
    double v = NAN;
    struct gguf_string s;
    size_t i = 0, n = sizeof known_keys / sizeof *known_keys;
    while (i < n && strcmp(known_keys[i].suffix, suffix) != 0) i++;
    if (i == n) return key_is(l, key, "this key is unknown here and may change the model's results");
    number(l->g, key, &v);
    switch (known_keys[i].rule) {
    case KEY_READ: return 0;
    case KEY_ZERO: return v == 0 ? 0 : key_is(l, key, "only 0 is implemented");
    case KEY_ZERO_OR_ONE: return v == 0 || v == 1 ? 0 : key_is(l, key, "only 1 is implemented");
    case KEY_TRUE: return v == 1 ? 0 : key_is(l, key, "only true is implemented");
    case KEY_ROPE_FACTOR: return v == 0 || v == 1 ? 0 : key_is(l, key, rope_rule);
    case KEY_ROPE_TYPE:
        if (gguf_str(l->g, key, &s) && (gguf_string_is(s, "none") || gguf_string_is(s, "linear"))) return 0;
        return key_is(l, key, rope_rule);
    }
    return 0;
}

static int check_keys(const struct loader *l)
{
    size_t prefix = strlen(l->arch->name);
    char key[KEY_LEN];
    full_key(l, "rope.scaling.type", key); /* first: it says more than the factors that come with it */
    if (gguf_has(l->g, key) && check_key(l, key, key + prefix + 1)) return -1;
    for (size_t i = 0; i < gguf_n_keys(l->g); i++) {
        struct gguf_string k = gguf_key_at(l->g, i);
        if (k.len <= prefix || memcmp(k.data, l->arch->name, prefix) != 0 || k.data[prefix] != '.') continue;
        if (k.len >= sizeof key || memchr(k.data, '\0', k.len))
            return infer_fail(l->err, INFER_ERR, "the file has an unknown key '%.*s...'", KEY_LEN - 1, k.data);
        memcpy(key, k.data, k.len);
        key[k.len] = '\0';
        if (check_key(l, key, key + prefix + 1)) return -1;
    }
    return 0;
}

static int find_architecture(struct loader *l)
{
    struct gguf_string type, arch;
    char value[KEY_LEN];
    uint32_t parts;
    if (gguf_str(l->g, "general.type", &type) && !gguf_string_is(type, "model")) {
        gguf_describe(l->g, "general.type", value, sizeof value);
        return infer_fail(l->err, INFER_ERR, "general.type is %s; only a 'model' can be loaded", value);
    }
    if (gguf_has(l->g, "split.count") && (!gguf_u32(l->g, "split.count", &parts) || parts > 1)) {
        gguf_describe(l->g, "split.count", value, sizeof value);
        return infer_fail(l->err, INFER_ERR,
                          "the file is one part of %s (split.count); join them with llama-gguf-split --merge", value);
    }
    if (!gguf_str(l->g, "general.architecture", &arch))
        return infer_fail(l->err, INFER_ERR, "the file names no architecture (no text in key 'general.architecture')");
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (!gguf_string_is(arch, architectures[i].name)) continue;
        l->arch = &architectures[i];
        return 0;
    }
    return infer_fail(l->err, INFER_ERR, "architecture '%.*s' is not supported; llama, qwen2 and qwen3 are",
                      (int)(arch.len < 64 ? arch.len : 64), arch.data);
}

static int read_hparams(struct loader *l)
{
    struct hparams *hp = &l->m->hp;
    struct gguf_string name;
    snprintf(hp->architecture, sizeof hp->architecture, "%s", l->arch->name);
    if (gguf_str(l->g, "general.name", &name)) {
        int len = (int)(name.len < sizeof hp->name ? name.len : sizeof hp->name - 1);
        snprintf(hp->name, sizeof hp->name, "%.*s", len, name.data);
        /* shown to people, in lines: and never half a character */
        for (char *c = hp->name; *c; c++)
            if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
        if ((size_t)len < name.len)
            while (len > 0 && (name.data[len] & 0xc0) == 0x80) hp->name[--len] = '\0';
    }

    if (check_keys(l) || read_dim(l, "block_count", 0, MAX_DIM, &hp->n_layer) ||
        read_dim(l, "context_length", 0, MAX_CONTEXT, &hp->n_ctx_train) ||
        read_dim(l, "embedding_length", 0, MAX_DIM, &hp->n_embd) ||
        read_dim(l, "feed_forward_length", 0, MAX_DIM, &hp->n_ff) ||
        read_dim(l, "attention.head_count", 0, MAX_DIM, &hp->n_head) ||
        read_dim(l, "attention.head_count_kv", hp->n_head, MAX_DIM, &hp->n_head_kv) ||
        read_positive(l, "attention.layer_norm_rms_epsilon", 0, &hp->norm_eps) ||
        read_positive(l, "rope.freq_base", 10000.0f, &hp->rope_base))
        return -1;

    char key[KEY_LEN];
    full_key(l, "attention.key_length", key);
    if (!gguf_has(l->g, key) && hp->n_embd % hp->n_head != 0)
        return infer_fail(l->err, INFER_ERR, "%s.attention.head_count %d does not divide embedding_length %d",
                          l->arch->name, hp->n_head, hp->n_embd);
    if (hp->n_head % hp->n_head_kv != 0)
        return infer_fail(l->err, INFER_ERR,
                          "%s.attention.head_count %d is no multiple of attention.head_count_kv %d", l->arch->name,
                          hp->n_head, hp->n_head_kv);
    int head_dim = hp->n_embd / hp->n_head;
    if (read_dim(l, "attention.key_length", head_dim, MAX_HEAD_DIM, &hp->k_dim) ||
        read_dim(l, "attention.value_length", head_dim, MAX_HEAD_DIM, &hp->v_dim) ||
        read_dim(l, "rope.dimension_count", hp->k_dim, MAX_HEAD_DIM, &hp->n_rot))
        return -1;
    if (hp->k_dim > MAX_HEAD_DIM || hp->v_dim > MAX_HEAD_DIM) /* where derived */
        return infer_fail(l->err, INFER_ERR, "heads of %d and %d elements are too large; %d is the most", hp->k_dim,
                          hp->v_dim, MAX_HEAD_DIM);
    if (hp->n_rot > hp->k_dim || hp->n_rot % 2 != 0)
        return infer_fail(l->err, INFER_ERR, "%s.rope.dimension_count is %d; an even number up to the head's %d is needed",
                          l->arch->name, hp->n_rot, hp->k_dim);
    int64_t n_q = (int64_t)hp->n_head * (hp->k_dim > hp->v_dim ? hp->k_dim : hp->v_dim);
    if (n_q > MAX_DIM)
        return infer_fail(l->err, INFER_ERR, "%d heads of %d elements are too large", hp->n_head, hp->k_dim);
    hp->n_q = hp->n_head * hp->k_dim;
    hp->n_k = hp->n_head_kv * hp->k_dim;
    hp->n_v = hp->n_head_kv * hp->v_dim;
    hp->rope_order = l->arch->rope_order;
    return 0;
}

/* ---- tensors ---- */

enum need { REQUIRED, OPTIONAL };

/* Finds a tensor of shape [n_out, n_in] (n_out 1 for vectors). *t is NULL if it is optional and missing. */
static int take(struct loader *l, const char *name, enum need need, int n_out, int n_in, const struct gguf_tensor **t)
{
    *t = gguf_tensor(l->g, name);
    if (!*t) {
        if (need == OPTIONAL) return 0;
        return infer_fail(l->err, INFER_ERR, "tensor '%s' is missing, which %s needs", name, l->arch->name);
    }
    const uint64_t *d = (*t)->dim;
    if (d[0] != (uint64_t)n_in || d[1] != (uint64_t)n_out || d[2] != 1 || d[3] != 1)
        return infer_fail(l->err, INFER_ERR,
                          "tensor '%s' has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                          "]; the metadata ask for [%d, %d]",
                          name, d[0], d[1], d[2], d[3], n_in, n_out);
    l->used[*t - gguf_tensor_at(l->g, 0)] = true;
    l->m->weight_bytes += (*t)->bytes;
    l->m->n_parameters += (size_t)n_in * (size_t)n_out;
    return 0;
}

/* A matrix, used in place. w->data is NULL if it is optional and missing. */
static int take_matrix(struct loader *l, const char *name, enum need need, int n_out, int n_in, struct weight *w)
{
    const struct gguf_tensor *t;
    if (take(l, name, need, n_out, n_in, &t)) return -1;
    if (t)
        *w = (struct weight){.type = t->type, .n_out = n_out, .n_in = n_in,
                             .row_bytes = tensor_row_bytes(t->type, n_in), .data = t->data};
    return 0;
}

static bool is_float(enum tensor_type t)
{
    return t == TYPE_F32 || t == TYPE_F16 || t == TYPE_BF16;
}

/* A norm or a bias, widened into the model's floats. *v stays NULL if it is optional and missing. */
static int take_vector(struct loader *l, const char *name, enum need need, int n, const float **v)
{
    const struct gguf_tensor *t;
    if (take(l, name, need, 1, n, &t)) return -1;
    if (!t) return 0;
    if (!is_float(t->type))
        return infer_fail(l->err, INFER_ERR, "tensor '%s' has type %s; norms, biases and RoPE factors must be F32, F16 "
                          "or BF16", name, tensor_type_name(t->type));
    float *y = l->m->floats + l->n_floats;
    dequantize_row(t->type, t->data, y, n);
    l->n_floats += (size_t)n;
    *v = y;
    return 0;
}

/* Room for every vector of the file: those that are taken are among them. */
static int allocate_floats(struct loader *l)
{
    size_t n = 0;
    for (size_t i = 0; i < gguf_n_tensors(l->g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(l->g, i);
        /* no overflow: each element has at least two bytes of the file */
        if (is_float(t->type) && t->dim[1] == 1 && t->dim[2] == 1 && t->dim[3] == 1) n += (size_t)t->dim[0];
    }
    l->m->floats = malloc((n ? n : 1) * sizeof(float));
    return l->m->floats ? 0 : infer_fail(l->err, INFER_ERR, "out of memory for %zu norm weights", n);
}

static int take_layer(struct loader *l, int i)
{
    const struct hparams *hp = &l->m->hp;
    struct layer *y = &l->m->layers[i];
    char name[64];
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d.%s", i, suffix), name)
    if (take_vector(l, NAME("attn_norm.weight"), REQUIRED, hp->n_embd, &y->attn_norm) ||
        take_matrix(l, NAME("attn_q.weight"), REQUIRED, hp->n_q, hp->n_embd, &y->wq) ||
        take_matrix(l, NAME("attn_k.weight"), REQUIRED, hp->n_k, hp->n_embd, &y->wk) ||
        take_matrix(l, NAME("attn_v.weight"), REQUIRED, hp->n_v, hp->n_embd, &y->wv) ||
        take_vector(l, NAME("attn_q.bias"), OPTIONAL, hp->n_q, &y->bq) ||
        take_vector(l, NAME("attn_k.bias"), OPTIONAL, hp->n_k, &y->bk) ||
        take_vector(l, NAME("attn_v.bias"), OPTIONAL, hp->n_v, &y->bv) ||
        take_matrix(l, NAME("attn_output.weight"), REQUIRED, hp->n_embd, hp->n_head * hp->v_dim, &y->wo) ||
        take_vector(l, NAME("attn_output.bias"), OPTIONAL, hp->n_embd, &y->bo) ||
        take_vector(l, NAME("ffn_norm.weight"), REQUIRED, hp->n_embd, &y->ffn_norm) ||
        take_matrix(l, NAME("ffn_gate.weight"), REQUIRED, hp->n_ff, hp->n_embd, &y->gate) ||
        take_matrix(l, NAME("ffn_up.weight"), REQUIRED, hp->n_ff, hp->n_embd, &y->up) ||
        take_matrix(l, NAME("ffn_down.weight"), REQUIRED, hp->n_embd, hp->n_ff, &y->down))
        return -1;
    if (l->arch->qk_norm &&
        (take_vector(l, NAME("attn_q_norm.weight"), REQUIRED, hp->k_dim, &y->q_norm) ||
         take_vector(l, NAME("attn_k_norm.weight"), REQUIRED, hp->k_dim, &y->k_norm)))
        return -1;
#undef NAME
    return 0;
}

static int take_tensors(struct loader *l)
{
    struct model *m = l->m;
    struct hparams *hp = &m->hp;
    const struct gguf_tensor *embedding = gguf_tensor(l->g, "token_embd.weight");
    if (!embedding)
        return infer_fail(l->err, INFER_ERR, "tensor 'token_embd.weight' is missing, which %s needs", l->arch->name);
    if (embedding->dim[1] > MAX_DIM)
        return infer_fail(l->err, INFER_ERR, "tensor 'token_embd.weight' has %" PRIu64 " rows; %d is the most",
                          embedding->dim[1], MAX_DIM);
    hp->n_vocab = (int)embedding->dim[1];
    if ((size_t)hp->n_layer > gguf_n_tensors(l->g)) /* before anything is allocated for so many */
        return infer_fail(l->err, INFER_ERR, "%s.block_count is %d, but the file has only %zu tensors", l->arch->name,
                          hp->n_layer, gguf_n_tensors(l->g));
    l->used = calloc(gguf_n_tensors(l->g), sizeof *l->used);
    m->layers = calloc((size_t)hp->n_layer, sizeof *m->layers);
    if (!l->used || !m->layers) return infer_fail(l->err, INFER_ERR, "out of memory for %d layers", hp->n_layer);

    if (allocate_floats(l) ||
        take_matrix(l, "token_embd.weight", REQUIRED, hp->n_vocab, hp->n_embd, &m->embedding) ||
        take_matrix(l, "output.weight", OPTIONAL, hp->n_vocab, hp->n_embd, &m->output) ||
        take_vector(l, "output_norm.weight", REQUIRED, hp->n_embd, &m->output_norm) ||
        take_vector(l, "rope_freqs.weight", OPTIONAL, hp->n_rot / 2, &m->rope_freqs))
        return -1;
    m->tied = m->output.data == NULL;
    if (m->tied) m->output = m->embedding;
    for (int i = 0; m->rope_freqs && i < hp->n_rot / 2; i++)
        if (!isfinite(m->rope_freqs[i]) || !(m->rope_freqs[i] > 0))
            return infer_fail(l->err, INFER_ERR, "tensor 'rope_freqs.weight' holds %g at %d; positive numbers are needed",
                              (double)m->rope_freqs[i], i);
    for (int i = 0; i < hp->n_layer; i++)
        if (take_layer(l, i)) return -1;

    for (size_t i = 0; i < gguf_n_tensors(l->g); i++) {
        struct gguf_string name = gguf_tensor_at(l->g, i)->name;
        if (!l->used[i])
            return infer_fail(l->err, INFER_ERR,
                              "tensor '%.*s' is not one of a %s model of %d layers and may change its results",
                              (int)name.len, name.data, l->arch->name, hp->n_layer);
    }
    return 0;
}

/* ---- the model ---- */

struct model *model_load(struct gguf *g, struct infer_error *err)
{
    struct loader l = {.g = g, .err = err, .m = calloc(1, sizeof(struct model))};
    if (!l.m) {
        infer_fail(err, INFER_ERR, "out of memory");
        return NULL;
    }
    int rc = find_architecture(&l) || read_hparams(&l) || take_tensors(&l) ? -1 : 0;
    free(l.used);
    if (rc) {
        model_free(l.m); /* without the file, which stays the caller's */
        return NULL;
    }
    l.m->gguf = g;
    return l.m;
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
    size_t bytes[TYPE_COUNT] = {0};
    uint32_t best = TYPE_F32;
    for (size_t i = 0; i < gguf_n_tensors(m->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->gguf, i);
        bytes[t->type] += t->bytes;
    }
    for (uint32_t t = 0; t < TYPE_COUNT; t++)
        if (bytes[t] > bytes[best]) best = t;
    return tensor_type_name(best);
}
