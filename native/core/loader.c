/* Reading a model's metadata and tensors: see loader.h. */
#include "loader.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_LEN = 128 };

/* ---- the file ---- */

int loader_check_file(const struct loader *l)
{
    struct gguf_string type;
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
    return 0;
}

void loader_title(const struct loader *l, char *title, size_t size)
{
    struct gguf_string name;
    *title = '\0';
    if (!gguf_str(l->g, "general.name", &name)) return;
    int len = (int)(name.len < size ? name.len : size - 1);
    snprintf(title, size, "%.*s", len, name.data);
    for (char *c = title; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
    if ((size_t)len < name.len)
        while (len > 0 && (name.data[len] & 0xc0) == 0x80) title[--len] = '\0';
}

/* ---- metadata ---- */

static int key_is(const struct loader *l, const char *key, const char *rule)
{
    char value[KEY_LEN];
    gguf_describe(l->g, key, value, sizeof value);
    if (!*value) return infer_fail(l->err, INFER_ERR, "the file has no key '%s', which %s needs", key, l->arch);
    return infer_fail(l->err, INFER_ERR, "%s is %s; %s", key, value, rule);
}

static void full_key(const struct loader *l, const char *suffix, char key[KEY_LEN])
{
    snprintf(key, KEY_LEN, "%s.%s", l->arch, suffix);
}

bool loader_has(const struct loader *l, const char *suffix)
{
    char key[KEY_LEN];
    full_key(l, suffix, key);
    return gguf_has(l->g, key);
}

int loader_refuse(const struct loader *l, const char *suffix, const char *rule)
{
    char key[KEY_LEN];
    full_key(l, suffix, key);
    return key_is(l, key, rule);
}

int loader_dim(const struct loader *l, const char *suffix, int otherwise, int max, int *v)
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

int loader_positive(const struct loader *l, const char *suffix, float otherwise, float *v)
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

static int check_key(const struct loader *l, const struct known_key *known, size_t n, const char *key, const char *suffix)
{
    static const char rope_rule[] = "RoPE scaling is not implemented";
    double v = NAN;
    struct gguf_string s;
    size_t i = 0;
    while (i < n && strcmp(known[i].suffix, suffix) != 0) i++;
    if (i == n) return key_is(l, key, "this key is unknown here and may change the model's results");
    number(l->g, key, &v);
    switch (known[i].rule) {
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

int loader_check_keys(const struct loader *l, const struct known_key *known, size_t n)
{
    size_t prefix = strlen(l->arch);
    char key[KEY_LEN];
    full_key(l, "rope.scaling.type", key); /* first: it says more than the factors that come with it */
    if (gguf_has(l->g, key) && check_key(l, known, n, key, key + prefix + 1)) return -1;
    for (size_t i = 0; i < gguf_n_keys(l->g); i++) {
        struct gguf_string k = gguf_key_at(l->g, i);
        if (k.len <= prefix || memcmp(k.data, l->arch, prefix) != 0 || k.data[prefix] != '.') continue;
        if (k.len >= sizeof key || memchr(k.data, '\0', k.len))
            return infer_fail(l->err, INFER_ERR, "the file has an unknown key '%.*s...'", KEY_LEN - 1, k.data);
        memcpy(key, k.data, k.len);
        key[k.len] = '\0';
        if (check_key(l, known, n, key, key + prefix + 1)) return -1;
    }
    return 0;
}

/* ---- tensors ---- */

static bool is_float(enum tensor_type t)
{
    return t == TYPE_F32 || t == TYPE_F16 || t == TYPE_BF16;
}

int loader_begin_tensors(struct loader *l, int n_layer)
{
    size_t n = 0, n_tensors = gguf_n_tensors(l->g);
    if ((size_t)n_layer > n_tensors) /* before anything is allocated for so many */
        return infer_fail(l->err, INFER_ERR, "%s.block_count is %d, but the file has only %zu tensors", l->arch,
                          n_layer, n_tensors);
    /* Room for every vector of the file: those that are taken are among them. */
    for (size_t i = 0; i < n_tensors; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(l->g, i);
        /* no overflow: each element has at least two bytes of the file */
        if (is_float(t->type) && t->dim[1] == 1 && t->dim[2] == 1 && t->dim[3] == 1) n += (size_t)t->dim[0];
    }
    l->used = calloc(n_tensors ? n_tensors : 1, sizeof *l->used);
    l->floats = malloc((n ? n : 1) * sizeof *l->floats);
    if (!l->used || !l->floats) return infer_fail(l->err, INFER_ERR, "out of memory for %zu norm weights", n);
    return 0;
}

/* Finds a tensor of shape [n_out, n_in] (n_out 1 for vectors). *t is NULL if it is optional and missing. */
static int take(struct loader *l, const char *name, enum need need, int n_out, int n_in, const struct gguf_tensor **t)
{
    *t = gguf_tensor(l->g, name);
    if (!*t) {
        if (need == OPTIONAL) return 0;
        return infer_fail(l->err, INFER_ERR, "tensor '%s' is missing, which %s needs", name, l->arch);
    }
    const uint64_t *d = (*t)->dim;
    if (d[0] != (uint64_t)n_in || d[1] != (uint64_t)n_out || d[2] != 1 || d[3] != 1)
        return infer_fail(l->err, INFER_ERR,
                          "tensor '%s' has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                          "]; the metadata ask for [%d, %d]",
                          name, d[0], d[1], d[2], d[3], n_in, n_out);
    l->used[*t - gguf_tensor_at(l->g, 0)] = true;
    l->weight_bytes += (*t)->bytes;
    l->n_parameters += (size_t)n_in * (size_t)n_out;
    return 0;
}

int loader_matrix(struct loader *l, const char *name, enum need need, int n_out, int n_in, struct weight *w)
{
    const struct gguf_tensor *t;
    if (take(l, name, need, n_out, n_in, &t)) return -1;
    if (t)
        *w = (struct weight){.type = t->type, .n_out = n_out, .n_in = n_in,
                             .row_bytes = tensor_row_bytes(t->type, n_in), .data = t->data};
    return 0;
}

int loader_vector(struct loader *l, const char *name, enum need need, int n, const float **v)
{
    const struct gguf_tensor *t;
    if (take(l, name, need, 1, n, &t)) return -1;
    if (!t) return 0;
    if (!is_float(t->type))
        return infer_fail(l->err, INFER_ERR, "tensor '%s' has type %s; norms, biases and RoPE factors must be F32, F16 "
                          "or BF16", name, tensor_type_name(t->type));
    float *y = l->floats + l->n_floats;
    dequantize_row(t->type, t->data, y, n);
    l->n_floats += (size_t)n;
    *v = y;
    return 0;
}

int loader_rows(const struct loader *l, const char *name, int *n)
{
    const struct gguf_tensor *t = gguf_tensor(l->g, name);
    if (!t) return infer_fail(l->err, INFER_ERR, "tensor '%s' is missing, which %s needs", name, l->arch);
    if (t->dim[1] > LOADER_MAX_DIM)
        return infer_fail(l->err, INFER_ERR, "tensor '%s' has %" PRIu64 " rows; %d is the most", name, t->dim[1],
                          LOADER_MAX_DIM);
    *n = (int)t->dim[1];
    return 0;
}

int loader_end_tensors(const struct loader *l, int n_layer)
{
    for (size_t i = 0; i < gguf_n_tensors(l->g); i++) {
        struct gguf_string name = gguf_tensor_at(l->g, i)->name;
        if (!l->used[i])
            return infer_fail(l->err, INFER_ERR,
                              "tensor '%.*s' is not one of a %s model of %d layers and may change its results",
                              (int)name.len, name.data, l->arch, n_layer);
    }
    return 0;
}

void loader_free(struct loader *l)
{
    free(l->used);
    l->used = NULL;
}

const char *loader_quantization(const struct gguf *g)
{
    size_t bytes[TYPE_COUNT] = {0};
    uint32_t best = TYPE_F32;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        bytes[t->type] += t->bytes;
    }
    for (uint32_t t = 0; t < TYPE_COUNT; t++)
        if (bytes[t] > bytes[best]) best = t;
    return tensor_type_name(best);
}
