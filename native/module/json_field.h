/* One field of a JSON object, as the attributes of a vector set's elements hold it.
 *
 * Attributes are whatever a client wrote, so the reader is strict (RFC 8259: the whole
 * text must be one object, and the field occur once in it) and safe with any
 * bytes: it reads each once, allocates nothing, does not recurse. Knows no Redis. Any thread. */
#ifndef REDIS_INFER_JSON_FIELD_H
#define REDIS_INFER_JSON_FIELD_H

#include <stddef.h>

enum { JSON_MAX_DEPTH = 64 };

/* The value of the object's own field `name`, which must be a string, decoded into `out`, which
 * has room for `len` bytes (no value is longer than the text around it). Bytes above 0x7f pass
 * as they are; \u escapes become UTF-8. NULL on success, else what is wrong: static text that
 * completes "the attributes ...". */
const char *json_string_field(const char *json, size_t len, const char *name, size_t name_len, char *out,
                              size_t *out_len);

#endif
