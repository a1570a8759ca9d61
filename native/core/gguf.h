/* GGUF v2 and v3 files: a checked, read-only view of a mapped file.
 *
 * Nothing is copied but the two index tables. Every count, length, offset,
 * type and dimension is checked against the file's size when it is opened, so
 * that whatever gguf_open accepts can be read without further checks.
 *
 * Ownership: strings and tensor data point into the mapping and live until
 * gguf_close. Immutable after gguf_open: any number of threads may read.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef INFER_GGUF_H
#define INFER_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "quant.h"

struct gguf_string {
    const char *data; /* not terminated */
    size_t len;
};

enum gguf_value_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64,
};

bool gguf_string_is(struct gguf_string s, const char *text);

struct gguf_array {
    enum gguf_value_type type; /* of the elements; never GGUF_ARRAY */
    uint64_t len;
    const unsigned char *data; /* packed elements as in the file, unaligned */
    size_t bytes;              /* of data */
};

struct gguf_tensor {
    struct gguf_string name;
    enum tensor_type type;
    int n_dims;
    uint64_t dim[4]; /* dim[0] is the contiguous one; unused dims are 1 */
    const void *data;
    size_t bytes;
};

struct gguf;

/* Opens, maps and checks a file. NULL and *err on failure; the message names
 * the offset or the key, tensor or type that was wrong. */
struct gguf *gguf_open(const char *path, struct infer_error *err);
/* The same of bytes in memory, which stay the caller's and outlive the handle. */
struct gguf *gguf_open_memory(const void *data, size_t bytes, struct infer_error *err);
void gguf_close(struct gguf *g);
size_t gguf_file_bytes(const struct gguf *g);

/* Typed metadata look-up. Integers of any width convert when the value fits, as do both
 * widths of floats. Return false, and leave *v, if the key is missing or of another kind. */
bool gguf_has(const struct gguf *g, const char *key);
bool gguf_u32(const struct gguf *g, const char *key, uint32_t *v);
bool gguf_f32(const struct gguf *g, const char *key, float *v);
bool gguf_bool(const struct gguf *g, const char *key, bool *v);
bool gguf_str(const struct gguf *g, const char *key, struct gguf_string *v);
bool gguf_arr(const struct gguf *g, const char *key, struct gguf_array *v);

/* The strings of a string array, in order: *cursor starts at 0. Returns false past the end, and
 * for an array of another type. */
bool gguf_array_next_string(const struct gguf_array *a, size_t *cursor, struct gguf_string *s);

/* All keys, sorted: 0 <= i < gguf_n_keys. */
size_t gguf_n_keys(const struct gguf *g);
struct gguf_string gguf_key_at(const struct gguf *g, size_t i);

/* A scalar value for a message ("0.5", "true", "'yarn'", "an array of 3"); empty if the key is missing. */
void gguf_describe(const struct gguf *g, const char *key, char *text, size_t size);

/* NULL if there is none. */
const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name);
/* In the file's order: 0 <= i < gguf_n_tensors. */
size_t gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i);

#endif
