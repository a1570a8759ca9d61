/* Writing of GGUF v3 files in tests, and small random models of every architecture and type.
 *
 *     struct gguf_writer w = {0};
 *     gw_u32(&w, "llama.block_count", 2);
 *     gw_tensor(&w, "output_norm.weight", TYPE_F32, 1, (uint64_t[]){64}, data, bytes);
 *     unsigned char *file = gw_finish(&w, &bytes);   // malloc'ed; w is empty again
 *
 *     struct random_model o = random_model_defaults("qwen3");
 *     o.type = TYPE_Q4_K; o.n_embd = 512;
 *     write_random_model("/tmp/m.gguf", &o);
 *
 * Out of memory aborts: these are tests. */
#ifndef INFER_GGUF_WRITER_H
#define INFER_GGUF_WRITER_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"
#include "quant.h"

/* ---- bytes ---- */

struct gw_bytes {
    unsigned char *p;
    size_t len, cap;
};

static inline void gw_put(struct gw_bytes *b, const void *data, size_t n)
{
    if (b->len + n > b->cap) {
        b->cap = (b->len + n) * 2;
        b->p = realloc(b->p, b->cap);
        if (!b->p) abort();
    }
    if (data) memcpy(b->p + b->len, data, n);
    else memset(b->p + b->len, 0, n);
    b->len += n;
}

static inline void gw_put_u32(struct gw_bytes *b, uint32_t v) { gw_put(b, &v, sizeof v); }
static inline void gw_put_u64(struct gw_bytes *b, uint64_t v) { gw_put(b, &v, sizeof v); }
static inline void gw_put_str(struct gw_bytes *b, const char *s, size_t n)
{
    gw_put_u64(b, n);
    gw_put(b, s, n);
}

/* ---- the file ---- */

struct gguf_writer {
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: the format's 32, not written */
    uint64_t n_kv, n_tensors;
    struct gw_bytes kv, table, data;
};

static inline void gw_key(struct gguf_writer *w, const char *key, enum gguf_value_type type)
{
    gw_put_str(&w->kv, key, strlen(key));
    gw_put_u32(&w->kv, (uint32_t)type);
    w->n_kv++;
}

static inline void gw_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    gw_key(w, key, GGUF_U32);
    gw_put_u32(&w->kv, v);
}

static inline void gw_f32(struct gguf_writer *w, const char *key, float v)
{
    gw_key(w, key, GGUF_F32);
    gw_put(&w->kv, &v, sizeof v);
}

static inline void gw_bool(struct gguf_writer *w, const char *key, bool v)
{
    unsigned char c = v;
    gw_key(w, key, GGUF_BOOL);
    gw_put(&w->kv, &c, 1);
}

static inline void gw_str(struct gguf_writer *w, const char *key, const char *v)
{
    gw_key(w, key, GGUF_STRING);
    gw_put_str(&w->kv, v, strlen(v));
}

/* Any scalar: the type and its bytes. */
static inline void gw_scalar(struct gguf_writer *w, const char *key, enum gguf_value_type type, const void *v, size_t n)
{
    gw_key(w, key, type);
    gw_put(&w->kv, v, n);
}

static inline void gw_array(struct gguf_writer *w, const char *key, enum gguf_value_type type, uint64_t len,
                            const void *elements, size_t bytes)
{
    gw_key(w, key, GGUF_ARRAY);
    gw_put_u32(&w->kv, (uint32_t)type);
    gw_put_u64(&w->kv, len);
    gw_put(&w->kv, elements, bytes);
}

static inline void gw_strings(struct gguf_writer *w, const char *key, uint64_t len, const char *const *s)
{
    gw_array(w, key, GGUF_STRING, len, "", 0);
    for (uint64_t i = 0; i < len; i++) gw_put_str(&w->kv, s[i], strlen(s[i]));
}

static inline uint32_t gw_alignment(const struct gguf_writer *w) { return w->alignment ? w->alignment : 32; }

static inline void gw_pad(struct gw_bytes *b, uint32_t alignment)
{
    gw_put(b, NULL, (alignment - b->len % alignment) % alignment);
}

static inline void gw_tensor(struct gguf_writer *w, const char *name, enum tensor_type type, uint32_t n_dims,
                             const uint64_t *dim, const void *data, size_t bytes)
{
    gw_put_str(&w->table, name, strlen(name));
    gw_put_u32(&w->table, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) gw_put_u64(&w->table, dim[i]);
    gw_put_u32(&w->table, (uint32_t)type);
    gw_put_u64(&w->table, w->data.len);
    gw_put(&w->data, data, bytes);
    gw_pad(&w->data, gw_alignment(w));
    w->n_tensors++;
}

/* The file's bytes, malloc'ed; w is reset. */
static inline unsigned char *gw_finish(struct gguf_writer *w, size_t *bytes)
{
    struct gw_bytes f = {0};
    if (w->alignment) gw_u32(w, "general.alignment", w->alignment);
    gw_put(&f, "GGUF", 4);
    gw_put_u32(&f, w->version ? w->version : 3);
    gw_put_u64(&f, w->n_tensors);
    gw_put_u64(&f, w->n_kv);
    gw_put(&f, w->kv.p, w->kv.len);
    gw_put(&f, w->table.p, w->table.len);
    gw_pad(&f, gw_alignment(w));
    gw_put(&f, w->data.p, w->data.len);
    free(w->kv.p);
    free(w->table.p);
    free(w->data.p);
    *w = (struct gguf_writer){0};
    *bytes = f.len;
    return f.p;
}

/* ---- random models ---- */

struct random_model {
    const char *architecture;
    int n_vocab, n_embd, n_layer, n_head, n_head_kv, n_ff, n_ctx;
    int k_dim, v_dim;  /* written as attention.key_length and value_length unless 0 */
    int n_rot;         /* written as rope.dimension_count unless 0 */
    float rope_base, norm_eps;
    enum tensor_type type;           /* of the layers' matrices */
    enum tensor_type embedding_type; /* of token_embd and output */
    enum tensor_type vector_type;    /* of norms and biases: F32, F16 or BF16 */
    bool tied;         /* no output.weight */
    bool qkv_bias, o_bias;
    bool rope_freqs;   /* rope_freqs.weight, factors 1..8 */
    bool no_vocab;     /* the caller puts the tokenizer's keys */
    uint64_t seed;
};

/* Small, with GQA, tied, everything F32; qwen2 has biases. Sizes divide by 256 where K types need it
 * only if set so: n_embd 64, n_ff 96. */
static inline struct random_model random_model_defaults(const char *architecture)
{
    return (struct random_model){
        .architecture = architecture, .n_vocab = 320, .n_embd = 64, .n_layer = 2, .n_head = 4, .n_head_kv = 2,
        .n_ff = 96, .n_ctx = 2048, .rope_base = 10000.0f, .norm_eps = 1e-5f, .type = TYPE_F32,
        .embedding_type = TYPE_F32, .vector_type = TYPE_F32, .tied = true,
        .qkv_bias = strcmp(architecture, "qwen2") == 0, .seed = 1,
    };
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t random_u64(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Uniform in [-1, 1). */
static inline float random_float(uint64_t *s) { return (float)(random_u64(s) >> 40) * 0x1p-23f - 1.0f; }

static inline void random_put_f16(unsigned char *p, float v)
{
    uint16_t h = f32_to_f16(v);
    memcpy(p, &h, sizeof h);
}

/* n weights of about the given standard deviation and mean 0, in any type. All bits
 * of quantized blocks are random but their floats. */
static inline void random_weights(unsigned char *p, enum tensor_type type, size_t n, float std, uint64_t *seed)
{
    const struct tensor_type_info *info = tensor_type_info((uint32_t)type);
    size_t size = (size_t)info->block_bytes;
    for (size_t i = 0; i < n / (size_t)info->block; i++, p += size) {
        float w = random_float(seed) * std * 1.732f;
        uint32_t bits;
        memcpy(&bits, &w, sizeof bits);
        for (size_t b = 0; b < size; b++) p[b] = (unsigned char)(random_u64(seed) >> 56);
        switch (type) { /* q uniform over its range: the divisor is w's deviation for d = 1, the minimum its mean */
        case TYPE_F32: memcpy(p, &w, 4); break;
        case TYPE_F16: random_put_f16(p, w); break;
        case TYPE_BF16: bits += 0x8000, p[0] = (unsigned char)(bits >> 16), p[1] = (unsigned char)(bits >> 24); break;
        case TYPE_Q4_0: random_put_f16(p, std / 4.6f); break;
        case TYPE_Q5_0: random_put_f16(p, std / 9.2f); break;
        case TYPE_Q8_0: random_put_f16(p, std / 74.0f); break;
        case TYPE_Q4_1: random_put_f16(p, std / 4.6f), random_put_f16(p + 2, std / 4.6f * -7.5f); break;
        case TYPE_Q5_1: random_put_f16(p, std / 9.2f), random_put_f16(p + 2, std / 9.2f * -15.5f); break;
        case TYPE_Q2_K: random_put_f16(p + 80, std / 14.0f), random_put_f16(p + 82, std / 14.0f * 1.5f); break;
        case TYPE_Q3_K: random_put_f16(p + 108, std / 43.0f); break;
        case TYPE_Q4_K: random_put_f16(p, std / 260.0f), random_put_f16(p + 2, std / 260.0f * 7.5f); break;
        case TYPE_Q5_K: random_put_f16(p, std / 520.0f), random_put_f16(p + 2, std / 520.0f * 15.5f); break;
        case TYPE_Q6_K: random_put_f16(p + 208, std / 1370.0f); break;
        case TYPE_COUNT: break;
        }
    }
}

static inline void random_matrix(struct gguf_writer *w, const char *name, enum tensor_type type, int n_out, int n_in,
                                 float std, uint64_t *seed)
{
    size_t bytes = tensor_row_bytes(type, n_in) * (size_t)n_out;
    unsigned char *p = malloc(bytes);
    if (!p || n_in % tensor_type_info((uint32_t)type)->block) abort(); /* the test's mistake: rows of no whole blocks */
    random_weights(p, type, (size_t)n_in * (size_t)n_out, std, seed);
    gw_tensor(w, name, type, 2, (uint64_t[]){(uint64_t)n_in, (uint64_t)n_out}, p, bytes);
    free(p);
}

/* Values center +- spread. */
static inline void random_vector(struct gguf_writer *w, const char *name, enum tensor_type type, int n, float center,
                                 float spread, uint64_t *seed)
{
    size_t each = type == TYPE_F32 ? 4 : 2;
    unsigned char *p = malloc((size_t)n * each);
    if (!p) abort();
    for (int i = 0; i < n; i++) {
        float v = center + spread * random_float(seed);
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        uint16_t half = type == TYPE_F16 ? f32_to_f16(v) : (uint16_t)(bits >> 16);
        memcpy(p + (size_t)i * each, type == TYPE_F32 ? (void *)&bits : (void *)&half, each);
    }
    gw_tensor(w, name, type, 1, (uint64_t[]){(uint64_t)n}, p, (size_t)n * each);
    free(p);
}

/* A byte-level vocabulary: 256 bytes, then words "w256", ...; the last token is <|endoftext|>, eos. */
static inline void random_model_vocab(struct gguf_writer *w, int n)
{
    char(*text)[16] = calloc((size_t)n, sizeof *text);
    const char **tokens = calloc((size_t)n, sizeof *tokens);
    int32_t *types = calloc((size_t)n, sizeof *types);
    if (!text || !tokens || !types) abort();
    int beyond = 0x100; /* GPT-2's alphabet: the bytes that do not print follow U+0100 in order */
    for (int i = 0; i < n; i++) {
        bool prints = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xff && i != 0xad);
        int cp = prints || i >= 256 ? i : beyond++;
        if (i == n - 1) snprintf(text[i], sizeof *text, "<|endoftext|>");
        else if (i >= 256) snprintf(text[i], sizeof *text, "w%d", i);
        else if (cp < 0x80) text[i][0] = (char)cp;
        else text[i][0] = (char)(0xc0 | cp >> 6), text[i][1] = (char)(0x80 | (cp & 0x3f));
        tokens[i] = text[i];
        types[i] = i == n - 1 ? 3 /* control */ : 1;
    }
    gw_str(w, "tokenizer.ggml.model", "gpt2");
    gw_str(w, "tokenizer.ggml.pre", "gpt-2");
    gw_strings(w, "tokenizer.ggml.tokens", (uint64_t)n, tokens);
    gw_array(w, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)n, types, (size_t)n * sizeof *types);
    gw_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)n - 1);
    free(text);
    free(tokens);
    free(types);
}

/* Puts the model's metadata and tensors into w. Weights have variance 1/n_in, so that activations keep their size. */
static inline void random_model_put(struct gguf_writer *w, const struct random_model *o)
{
    uint64_t seed = o->seed;
    char name[96];
    int k_dim = o->k_dim ? o->k_dim : o->n_embd / o->n_head;
    int v_dim = o->v_dim ? o->v_dim : o->n_embd / o->n_head;
    int n_rot = o->n_rot ? o->n_rot : k_dim;
    int n_q = o->n_head * k_dim, n_k = o->n_head_kv * k_dim, n_v = o->n_head_kv * v_dim, n_o = o->n_head * v_dim;
    float embd_std = 1.0f / sqrtf((float)o->n_embd);
#define KEY(suffix) (snprintf(name, sizeof name, "%s.%s", o->architecture, suffix), name)
    gw_str(w, "general.architecture", o->architecture);
    gw_str(w, "general.name", "random");
    gw_u32(w, KEY("block_count"), (uint32_t)o->n_layer);
    gw_u32(w, KEY("context_length"), (uint32_t)o->n_ctx);
    gw_u32(w, KEY("embedding_length"), (uint32_t)o->n_embd);
    gw_u32(w, KEY("feed_forward_length"), (uint32_t)o->n_ff);
    gw_u32(w, KEY("attention.head_count"), (uint32_t)o->n_head);
    gw_u32(w, KEY("attention.head_count_kv"), (uint32_t)o->n_head_kv);
    gw_f32(w, KEY("attention.layer_norm_rms_epsilon"), o->norm_eps);
    gw_f32(w, KEY("rope.freq_base"), o->rope_base);
    if (o->k_dim) gw_u32(w, KEY("attention.key_length"), (uint32_t)o->k_dim);
    if (o->v_dim) gw_u32(w, KEY("attention.value_length"), (uint32_t)o->v_dim);
    if (o->n_rot) gw_u32(w, KEY("rope.dimension_count"), (uint32_t)o->n_rot);
#undef KEY
    if (!o->no_vocab) random_model_vocab(w, o->n_vocab);

    random_matrix(w, "token_embd.weight", o->embedding_type, o->n_vocab, o->n_embd, 1.0f, &seed);
    if (!o->tied) random_matrix(w, "output.weight", o->embedding_type, o->n_vocab, o->n_embd, embd_std, &seed);
    random_vector(w, "output_norm.weight", o->vector_type, o->n_embd, 1.0f, 0.2f, &seed);
    if (o->rope_freqs) random_vector(w, "rope_freqs.weight", TYPE_F32, n_rot / 2, 4.5f, 3.5f, &seed);
    for (int i = 0; i < o->n_layer; i++) {
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d.%s", i, suffix), name)
        random_vector(w, NAME("attn_norm.weight"), o->vector_type, o->n_embd, 1.0f, 0.2f, &seed);
        random_matrix(w, NAME("attn_q.weight"), o->type, n_q, o->n_embd, embd_std, &seed);
        random_matrix(w, NAME("attn_k.weight"), o->type, n_k, o->n_embd, embd_std, &seed);
        random_matrix(w, NAME("attn_v.weight"), o->type, n_v, o->n_embd, embd_std, &seed);
        random_matrix(w, NAME("attn_output.weight"), o->type, o->n_embd, n_o, 1.0f / sqrtf((float)n_o), &seed);
        if (o->qkv_bias) {
            random_vector(w, NAME("attn_q.bias"), o->vector_type, n_q, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("attn_k.bias"), o->vector_type, n_k, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("attn_v.bias"), o->vector_type, n_v, 0.0f, 0.5f, &seed);
        }
        if (o->o_bias) random_vector(w, NAME("attn_output.bias"), o->vector_type, o->n_embd, 0.0f, 0.5f, &seed);
        if (strcmp(o->architecture, "qwen3") == 0) {
            random_vector(w, NAME("attn_q_norm.weight"), o->vector_type, k_dim, 1.0f, 0.2f, &seed);
            random_vector(w, NAME("attn_k_norm.weight"), o->vector_type, k_dim, 1.0f, 0.2f, &seed);
        }
        random_vector(w, NAME("ffn_norm.weight"), o->vector_type, o->n_embd, 1.0f, 0.2f, &seed);
        random_matrix(w, NAME("ffn_gate.weight"), o->type, o->n_ff, o->n_embd, embd_std, &seed);
        random_matrix(w, NAME("ffn_up.weight"), o->type, o->n_ff, o->n_embd, embd_std, &seed);
        random_matrix(w, NAME("ffn_down.weight"), o->type, o->n_embd, o->n_ff, 1.0f / sqrtf((float)o->n_ff), &seed);
#undef NAME
    }
}

/* The model's file, malloc'ed. */
static inline unsigned char *random_model_bytes(const struct random_model *o, size_t *bytes)
{
    struct gguf_writer w = {0};
    random_model_put(&w, o);
    return gw_finish(&w, bytes);
}

/* 0, or -1 when the file cannot be written. */
static inline int write_random_model(const char *path, const struct random_model *o)
{
    size_t bytes;
    unsigned char *p = random_model_bytes(o, &bytes);
    FILE *f = fopen(path, "wb");
    int rc = f && fwrite(p, 1, bytes, f) == bytes ? 0 : -1;
    if (f && fclose(f)) rc = -1;
    free(p);
    return rc;
}

#endif
