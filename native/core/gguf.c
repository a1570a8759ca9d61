/* Reading of GGUF v2 and v3 files: one pass over header, metadata and tensor
 * table that checks everything, and two indexes sorted by name.
 *
 * What a file says is never trusted: a cursor holds what is left of the file, every read asks it first,
 * and a count is compared with the bytes that so many entries
 * need at least before anything is allocated for them. So memory is bounded by a small
 * multiple of the file's size, and time by n log n of it (sorting, not
 * hashing: no choice of names makes look-up or the search for duplicates slow).
 *
 * Refused although the format allows them: arrays of arrays (no model that we
 * run has them, and gguf_array need not nest) and tensors that overlap.
 *
 * Memory: struct gguf, the two index tables and the mapping belong to the
 * handle. The mapping is shared with the page cache: a file that someone truncates in place while it is
 * mapped raises SIGBUS when read. Replace model files by renaming.
 * Threads: gguf_open anywhere; afterwards immutable. */
#include "gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform.h"

enum {
    GGUF_DEFAULT_ALIGNMENT = 32,
    GGUF_MAX_DIMS = 4,
    GGUF_MAX_KEY = 65535,      /* bytes; the format's limit */
    GGUF_MAX_TENSOR_NAME = 64, /* bytes; the format's limit */
    /* the least that an entry takes in a file: length, one byte of name, and the rest */
    MIN_KV_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
    SHOWN_NAME = 100, /* bytes of a name that go into a message */
};

struct kv {
    struct gguf_string key; /* first: the comparison functions rely on it */
    enum gguf_value_type type;
    const unsigned char *value; /* for an array: its element type, length and elements */
    size_t value_bytes;
};

struct gguf {
    const unsigned char *file;
    size_t bytes;
    bool mapped; /* file is ours to unmap */
    struct kv *kv; /* [n_kv], sorted by key */
    size_t n_kv;
    struct gguf_tensor *tensors; /* [n_tensors], in the file's order */
    const struct gguf_tensor **by_name; /* [n_tensors], sorted by name */
    size_t n_tensors;
};

/* ---- the cursor: what is left of the file ---- */

struct cursor {
    const unsigned char *start, *at, *end;
    struct infer_error *err;
};

static size_t left(const struct cursor *c)
{
    return (size_t)(c->end - c->at);
}

static uint64_t load_uint(const unsigned char *p, size_t size)
{
    uint64_t v = 0; /* little-endian, as every machine that this is built for */
    memcpy(&v, p, size);
    return v;
}

/* Reads an unsigned integer of 1 to 8 bytes; `what` names it in the message. */
static int read_uint(struct cursor *c, size_t size, uint64_t *v, const char *what)
{
    *v = 0;
    if (left(c) < size)
        return infer_fail(c->err, INFER_ERR, "GGUF file ends at byte %zu, inside %s: is it truncated?",
                          (size_t)(c->end - c->start), what);
    *v = load_uint(c->at, size);
    c->at += size;
    return 0;
}

static int read_string(struct cursor *c, struct gguf_string *s, const char *what)
{
    uint64_t len;
    if (read_uint(c, 8, &len, what)) return -1;
    if (len > left(c))
        return infer_fail(c->err, INFER_ERR,
                          "GGUF file: %s at byte %zu claims %" PRIu64 " bytes, the file has %zu left", what,
                          (size_t)(c->at - c->start) - 8, len, left(c));
    s->data = (const char *)c->at;
    s->len = (size_t)len;
    c->at += len;
    return 0;
}

/* Arguments for "%.*s" of a name from the file. */
#define SHOW(s) (int)((s).len < SHOWN_NAME ? (s).len : SHOWN_NAME), (s).data

/* ---- metadata ---- */

/* Bytes of a value of fixed size; 0 for strings, arrays and unknown types. */
static size_t value_size(uint64_t type)
{
    switch (type) {
    case GGUF_U8: case GGUF_I8: case GGUF_BOOL: return 1;
    case GGUF_U16: case GGUF_I16: return 2;
    case GGUF_U32: case GGUF_I32: case GGUF_F32: return 4;
    case GGUF_U64: case GGUF_I64: case GGUF_F64: return 8;
    default: return 0;
    }
}

/* Steps over len elements of a type; checks all that their readers rely on. */
static int skip_values(struct cursor *c, struct gguf_string key, uint64_t type, uint64_t len)
{
    if (type == GGUF_STRING) {
        struct gguf_string s;
        if (len > left(c) / 8)
            return infer_fail(c->err, INFER_ERR,
                              "GGUF key '%.*s' claims %" PRIu64 " strings, the file has %zu bytes left", SHOW(key),
                              len, left(c));
        for (uint64_t i = 0; i < len; i++)
            if (read_string(c, &s, "a metadata string")) return -1;
        return 0;
    }
    size_t size = value_size(type);
    if (size == 0)
        return infer_fail(c->err, INFER_ERR, "GGUF key '%.*s' has value type %" PRIu64 ", which is unknown", SHOW(key),
                          type);
    if (len > left(c) / size)
        return infer_fail(c->err, INFER_ERR,
                          "GGUF key '%.*s' claims %" PRIu64 " values of %zu bytes, the file has %zu bytes left",
                          SHOW(key), len, size, left(c));
    if (type == GGUF_BOOL)
        for (uint64_t i = 0; i < len; i++)
            if (c->at[i] > 1)
                return infer_fail(c->err, INFER_ERR, "GGUF key '%.*s' holds the truth value %d; 0 and 1 are valid",
                                  SHOW(key), c->at[i]);
    c->at += (size_t)len * size;
    return 0;
}

static int read_kv(struct cursor *c, struct kv *kv)
{
    uint64_t type, element, len;
    if (read_string(c, &kv->key, "a metadata key")) return -1;
    if (kv->key.len == 0 || kv->key.len > GGUF_MAX_KEY)
        return infer_fail(c->err, INFER_ERR, "GGUF file: a metadata key of %zu bytes at byte %zu; 1 to %d are valid",
                          kv->key.len, (size_t)(c->at - c->start) - kv->key.len, GGUF_MAX_KEY);
    if (read_uint(c, 4, &type, "a metadata value type")) return -1;
    kv->value = c->at;
    if (type != GGUF_ARRAY) {
        element = type;
        len = 1;
    } else {
        if (read_uint(c, 4, &element, "an array's element type") || read_uint(c, 8, &len, "an array's length"))
            return -1;
        if (element == GGUF_ARRAY)
            return infer_fail(c->err, INFER_ERR, "GGUF key '%.*s' is an array of arrays, which is not supported",
                              SHOW(kv->key));
    }
    if (skip_values(c, kv->key, element, len)) return -1;
    kv->type = (enum gguf_value_type)type;
    kv->value_bytes = (size_t)(c->at - kv->value);
    return 0;
}

static int compare_strings(struct gguf_string a, struct gguf_string b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int order = memcmp(a.data, b.data, n);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_kv(const void *a, const void *b)
{
    return compare_strings(((const struct kv *)a)->key, ((const struct kv *)b)->key);
}

static int read_metadata(struct gguf *g, struct cursor *c)
{
    g->kv = calloc(g->n_kv ? g->n_kv : 1, sizeof *g->kv);
    if (!g->kv) return infer_fail(c->err, INFER_ERR, "out of memory for %zu GGUF metadata keys", g->n_kv);
    for (size_t i = 0; i < g->n_kv; i++)
        if (read_kv(c, &g->kv[i])) return -1;
    qsort(g->kv, g->n_kv, sizeof *g->kv, compare_kv);
    for (size_t i = 1; i < g->n_kv; i++)
        if (compare_kv(&g->kv[i - 1], &g->kv[i]) == 0)
            return infer_fail(c->err, INFER_ERR, "GGUF key '%.*s' occurs twice", SHOW(g->kv[i].key));
    return 0;
}

/* ---- tensors ---- */

/* One entry of the table, up to and without its place in the data. */
static int read_tensor_shape(struct cursor *c, struct gguf_tensor *t)
{
    uint64_t n_dims, type;
    if (read_string(c, &t->name, "a tensor's name")) return -1;
    if (t->name.len == 0 || t->name.len > GGUF_MAX_TENSOR_NAME)
        return infer_fail(c->err, INFER_ERR, "GGUF file: a tensor name of %zu bytes at byte %zu; 1 to %d are valid",
                          t->name.len, (size_t)(c->at - c->start) - t->name.len, GGUF_MAX_TENSOR_NAME);
    if (read_uint(c, 4, &n_dims, "a tensor's number of dimensions")) return -1;
    if (n_dims < 1 || n_dims > GGUF_MAX_DIMS)
        return infer_fail(c->err, INFER_ERR, "tensor '%.*s' has %" PRIu64 " dimensions; 1 to %d are valid",
                          SHOW(t->name), n_dims, GGUF_MAX_DIMS);
    t->n_dims = (int)n_dims;
    for (int i = 0; i < GGUF_MAX_DIMS; i++) {
        t->dim[i] = 1;
        if (i < t->n_dims && read_uint(c, 8, &t->dim[i], "a tensor's dimensions")) return -1;
        if (t->dim[i] == 0)
            return infer_fail(c->err, INFER_ERR, "tensor '%.*s' has dimension %d of size 0", SHOW(t->name), i);
    }
    if (read_uint(c, 4, &type, "a tensor's type")) return -1;
    if (!tensor_type_supported((uint32_t)type))
        return infer_fail(c->err, INFER_ERR,
                          "tensor '%.*s' has type %s (%" PRIu64 "), which is not supported; F32, F16, BF16, Q8_0, "
                          "Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K are",
                          SHOW(t->name), tensor_type_name((uint32_t)type), type);
    t->type = (enum tensor_type)type;

    const struct tensor_type_info *info = tensor_type_info(t->type);
    if (t->dim[0] % (uint64_t)info->block != 0)
        return infer_fail(c->err, INFER_ERR, "tensor '%.*s' has rows of %" PRIu64 " elements; %s takes multiples of %d",
                          SHOW(t->name), t->dim[0], info->name, info->block);
    size_t bytes = 0, elements = 1;
    bool overflow = __builtin_mul_overflow(t->dim[0] / (uint64_t)info->block, (size_t)info->block_bytes, &bytes);
    for (int i = 0; i < GGUF_MAX_DIMS; i++) {
        if (i > 0) overflow |= __builtin_mul_overflow(bytes, t->dim[i], &bytes);
        /* elements of quantized types can outnumber bytes: they must be countable too */
        overflow |= __builtin_mul_overflow(elements, t->dim[i], &elements);
    }
    if (overflow || elements > INT64_MAX)
        return infer_fail(c->err, INFER_ERR,
                          "tensor '%.*s' of %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64 " elements is too large",
                          SHOW(t->name), t->dim[0], t->dim[1], t->dim[2], t->dim[3]);
    t->bytes = bytes;
    return 0;
}

static int compare_tensor_names(const void *a, const void *b)
{
    return compare_strings((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static int compare_tensor_data(const void *a, const void *b)
{
    const char *x = (*(const struct gguf_tensor *const *)a)->data, *y = (*(const struct gguf_tensor *const *)b)->data;
    return (x > y) - (x < y);
}

static int read_tensors(struct gguf *g, struct cursor *c)
{
    g->tensors = calloc(g->n_tensors ? g->n_tensors : 1, sizeof *g->tensors);
    g->by_name = calloc(g->n_tensors ? g->n_tensors : 1, sizeof *g->by_name);
    uint64_t *offset = calloc(g->n_tensors ? g->n_tensors : 1, sizeof *offset);
    int rc = -1;
    if (!g->tensors || !g->by_name || !offset) {
        infer_fail(c->err, INFER_ERR, "out of memory for a table of %zu tensors", g->n_tensors);
        goto out;
    }
    for (size_t i = 0; i < g->n_tensors; i++) {
        if (read_tensor_shape(c, &g->tensors[i])) goto out;
        if (read_uint(c, 8, &offset[i], "a tensor's offset")) goto out;
        g->by_name[i] = &g->tensors[i];
    }

    uint32_t alignment = GGUF_DEFAULT_ALIGNMENT;
    if (gguf_has(g, "general.alignment") &&
        (!gguf_u32(g, "general.alignment", &alignment) || alignment == 0 || (alignment & (alignment - 1)) != 0)) {
        char value[SHOWN_NAME + 3];
        gguf_describe(g, "general.alignment", value, sizeof value);
        infer_fail(c->err, INFER_ERR, "GGUF key 'general.alignment' is %s; it must be a power of two", value);
        goto out;
    }
    /* The data begin at the next multiple of the alignment, which a file without data need not reach. */
    uint64_t table_end = (uint64_t)(c->at - c->start);
    uint64_t data_start = (table_end + alignment - 1) & ~(uint64_t)(alignment - 1);
    uint64_t data_bytes = data_start < g->bytes ? g->bytes - data_start : 0;
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (offset[i] % alignment != 0) {
            infer_fail(c->err, INFER_ERR, "tensor '%.*s' has offset %" PRIu64 ", no multiple of the alignment %" PRIu32,
                       SHOW(t->name), offset[i], alignment);
            goto out;
        }
        if (offset[i] > data_bytes || t->bytes > data_bytes - offset[i]) {
            infer_fail(c->err, INFER_ERR,
                       "tensor '%.*s' (%zu bytes at %" PRIu64 " of the data) ends past the file's %" PRIu64
                       " bytes of data: is the file truncated?",
                       SHOW(t->name), t->bytes, offset[i], data_bytes);
            goto out;
        }
        t->data = g->file + data_start + offset[i];
    }

    qsort(g->by_name, g->n_tensors, sizeof *g->by_name, compare_tensor_data);
    for (size_t i = 1; i < g->n_tensors; i++) {
        const struct gguf_tensor *a = g->by_name[i - 1], *b = g->by_name[i];
        if ((const char *)a->data + a->bytes > (const char *)b->data) {
            infer_fail(c->err, INFER_ERR, "tensors '%.*s' and '%.*s' overlap in the file", SHOW(a->name), SHOW(b->name));
            goto out;
        }
    }
    qsort(g->by_name, g->n_tensors, sizeof *g->by_name, compare_tensor_names);
    for (size_t i = 1; i < g->n_tensors; i++) {
        if (compare_tensor_names(&g->by_name[i - 1], &g->by_name[i]) == 0) {
            infer_fail(c->err, INFER_ERR, "tensor '%.*s' occurs twice", SHOW(g->by_name[i]->name));
            goto out;
        }
    }
    rc = 0;
out:
    free(offset);
    return rc;
}

/* ---- opening ---- */

static int parse(struct gguf *g, struct infer_error *err)
{
    struct cursor c = {g->file, g->file, g->file + g->bytes, err};
    uint64_t version, n_tensors, n_kv;
    if (g->bytes < 4 || memcmp(g->file, "GGUF", 4) != 0) {
        char magic[4 * 2 + 1] = "";
        for (size_t i = 0; i < 4 && i < g->bytes; i++) {
            magic[2 * i] = "0123456789abcdef"[g->file[i] >> 4];
            magic[2 * i + 1] = "0123456789abcdef"[g->file[i] & 15];
            magic[2 * i + 2] = '\0';
        }
        return infer_fail(err, INFER_ERR, "not a GGUF file: it begins with the bytes %s, not with 'GGUF'",
                          *magic ? magic : "(none)");
    }
    c.at += 4;
    if (read_uint(&c, 4, &version, "the version")) return -1;
    if (version != 2 && version != 3) {
        if (version != 0 && (version & 0xffff) == 0)
            return infer_fail(err, INFER_ERR,
                              "GGUF file of big-endian byte order (version reads as %" PRIu64
                              "), which is not supported; convert it with gguf-convert-endian of the gguf package",
                              version);
        return infer_fail(err, INFER_ERR, "GGUF version %" PRIu64 " is not supported; 2 and 3 are", version);
    }
    if (read_uint(&c, 8, &n_tensors, "the number of tensors") ||
        read_uint(&c, 8, &n_kv, "the number of metadata keys"))
        return -1;
    if (n_kv > left(&c) / MIN_KV_BYTES)
        return infer_fail(err, INFER_ERR, "GGUF file of %zu bytes claims %" PRIu64 " metadata keys", g->bytes, n_kv);
    if (n_tensors > left(&c) / MIN_TENSOR_BYTES)
        return infer_fail(err, INFER_ERR, "GGUF file of %zu bytes claims %" PRIu64 " tensors", g->bytes, n_tensors);
    g->n_kv = (size_t)n_kv;
    if (read_metadata(g, &c)) return -1;
    /* again: metadata has taken its part */
    if (n_tensors > left(&c) / MIN_TENSOR_BYTES)
        return infer_fail(err, INFER_ERR, "GGUF file claims %" PRIu64 " tensors with %zu bytes left for their table",
                          n_tensors, left(&c));
    g->n_tensors = (size_t)n_tensors;
    return read_tensors(g, &c);
}

static struct gguf *open_bytes(const void *data, size_t bytes, bool mapped, struct infer_error *err)
{
    struct gguf *g = calloc(1, sizeof *g);
    if (!g) {
        if (mapped) platform_unmap_file(data, bytes);
        infer_fail(err, INFER_ERR, "out of memory");
        return NULL;
    }
    g->file = data;
    g->bytes = bytes;
    g->mapped = mapped;
    if (parse(g, err)) {
        gguf_close(g);
        return NULL;
    }
    return g;
}

struct gguf *gguf_open(const char *path, struct infer_error *err)
{
    size_t bytes;
    const void *data = platform_map_file(path, &bytes);
    if (!data) {
        const char *why = errno == EINVAL ? "it is empty or no regular file" : strerror(errno);
        infer_fail(err, INFER_ERR, "cannot open model file '%.160s': %s", path, why);
        return NULL;
    }
    return open_bytes(data, bytes, true, err);
}

struct gguf *gguf_open_memory(const void *data, size_t bytes, struct infer_error *err)
{
    return open_bytes(data, bytes, false, err);
}

void gguf_close(struct gguf *g)
{
    if (!g) return;
    if (g->mapped) platform_unmap_file(g->file, g->bytes);
    free(g->kv);
    free(g->tensors);
    free(g->by_name);
    free(g);
}

size_t gguf_file_bytes(const struct gguf *g)
{
    return g->bytes;
}

/* ---- look-up ---- */

static const struct kv *find(const struct gguf *g, const char *key)
{
    struct kv wanted = {.key = {key, strlen(key)}};
    return bsearch(&wanted, g->kv, g->n_kv, sizeof *g->kv, compare_kv);
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

/* An integer value as magnitude and sign; false for other kinds. */
static bool integer(const struct kv *kv, uint64_t *magnitude, bool *negative)
{
    size_t size = value_size(kv->type);
    uint64_t v = load_uint(kv->value, size);
    *negative = false;
    switch (kv->type) {
    case GGUF_U8: case GGUF_U16: case GGUF_U32: case GGUF_U64: break;
    case GGUF_I8: case GGUF_I16: case GGUF_I32: case GGUF_I64: {
        unsigned unused_bits = 64 - 8 * (unsigned)size;
        int64_t s = (int64_t)(v << unused_bits) >> unused_bits; /* sign-extended */
        *negative = s < 0;
        v = s < 0 ? 0 - (uint64_t)s : (uint64_t)s;
        break;
    }
    default: return false;
    }
    *magnitude = v;
    return true;
}

bool gguf_u32(const struct gguf *g, const char *key, uint32_t *v)
{
    const struct kv *kv = find(g, key);
    uint64_t magnitude;
    bool negative;
    if (!kv || !integer(kv, &magnitude, &negative) || negative || magnitude > UINT32_MAX) return false;
    *v = (uint32_t)magnitude;
    return true;
}

bool gguf_f32(const struct gguf *g, const char *key, float *v)
{
    const struct kv *kv = find(g, key);
    double d;
    if (!kv) return false;
    if (kv->type == GGUF_F32) {
        memcpy(v, kv->value, sizeof *v);
    } else if (kv->type == GGUF_F64) {
        memcpy(&d, kv->value, sizeof d);
        *v = (float)d;
    } else {
        return false;
    }
    return true;
}

bool gguf_bool(const struct gguf *g, const char *key, bool *v)
{
    const struct kv *kv = find(g, key);
    if (!kv || kv->type != GGUF_BOOL) return false;
    *v = *kv->value != 0;
    return true;
}

/* The string that begins at p: checked when the file was opened. */
static struct gguf_string string_at(const unsigned char *p)
{
    return (struct gguf_string){(const char *)p + 8, (size_t)load_uint(p, 8)};
}

bool gguf_str(const struct gguf *g, const char *key, struct gguf_string *v)
{
    const struct kv *kv = find(g, key);
    if (!kv || kv->type != GGUF_STRING) return false;
    *v = string_at(kv->value);
    return true;
}

bool gguf_arr(const struct gguf *g, const char *key, struct gguf_array *v)
{
    const struct kv *kv = find(g, key);
    if (!kv || kv->type != GGUF_ARRAY) return false;
    const size_t head = 4 + 8; /* element type, length */
    v->type = (enum gguf_value_type)load_uint(kv->value, 4);
    v->len = load_uint(kv->value + 4, 8);
    v->data = kv->value + head;
    v->bytes = kv->value_bytes - head;
    return true;
}

bool gguf_array_next_string(const struct gguf_array *a, size_t *cursor, struct gguf_string *s)
{
    if (a->type != GGUF_STRING || *cursor >= a->bytes || a->bytes - *cursor < 8) return false;
    *s = string_at(a->data + *cursor);
    if (s->len > a->bytes - *cursor - 8) return false; /* not what was checked: the file is being overwritten */
    *cursor += 8 + s->len;
    return true;
}

bool gguf_string_is(struct gguf_string s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

void gguf_describe(const struct gguf *g, const char *key, char *text, size_t size)
{
    const struct kv *kv = find(g, key);
    uint64_t magnitude;
    bool negative;
    float f;
    text[0] = '\0';
    if (!kv) return;
    if (kv->type == GGUF_STRING) {
        struct gguf_string s = string_at(kv->value);
        snprintf(text, size, "'%.*s'", SHOW(s));
    } else if (kv->type == GGUF_ARRAY) {
        snprintf(text, size, "an array of %" PRIu64, load_uint(kv->value + 4, 8));
    } else if (kv->type == GGUF_BOOL) {
        snprintf(text, size, "%s", *kv->value ? "true" : "false");
    } else if (integer(kv, &magnitude, &negative)) {
        snprintf(text, size, "%s%" PRIu64, negative ? "-" : "", magnitude);
    } else if (gguf_f32(g, key, &f)) {
        snprintf(text, size, "%g", (double)f);
    }
}

size_t gguf_n_keys(const struct gguf *g)
{
    return g->n_kv;
}

struct gguf_string gguf_key_at(const struct gguf *g, size_t i)
{
    return g->kv[i].key;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    struct gguf_tensor wanted = {.name = {name, strlen(name)}};
    const struct gguf_tensor *key = &wanted;
    const struct gguf_tensor **found = bsearch(&key, g->by_name, g->n_tensors, sizeof *g->by_name, compare_tensor_names);
    return found ? *found : NULL;
}

size_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i)
{
    return &g->tensors[i];
}
