/* A strict reader for one field of a JSON object: see json_field.h.
 *
 * Nested values are skipped with a stack of one bit per level: is this an object or an array. */
#include "json_field.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct reader {
    const unsigned char *at, *end;
    const char *fault; /* the first one found */
};

static bool fail(struct reader *r, const char *fault)
{
    if (!r->fault) r->fault = fault;
    return false;
}

static const char not_json[] = "are not valid JSON";

static void skip_space(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static bool take(struct reader *r, unsigned char c)
{
    if (r->at == r->end || *r->at != c) return false;
    r->at++;
    return true;
}

static bool expect(struct reader *r, unsigned char c)
{
    return take(r, c) || fail(r, not_json);
}

/* ---- strings ---- */

static bool read_hex4(struct reader *r, uint32_t *value)
{
    if (r->end - r->at < 4) return fail(r, not_json);
    *value = 0;
    for (int i = 0; i < 4; i++) {
        unsigned char c = *r->at++, lower = c | 0x20;
        uint32_t digit;
        if (c >= '0' && c <= '9') digit = c - '0';
        else if (lower >= 'a' && lower <= 'f') digit = lower - 'a' + 10u;
        else return fail(r, not_json);
        *value = *value << 4 | digit;
    }
    return true;
}

static int put_utf8(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}

/* After \u: a character, which may take a second escape. The number of its bytes; 0: a fault. */
static int read_unicode(struct reader *r, char out[4])
{
    uint32_t high, low;
    if (!read_hex4(r, &high)) return 0;
    if (high < 0xd800 || high > 0xdfff) return put_utf8(high, out);
    if (high <= 0xdbff && take(r, '\\') && take(r, 'u')) {
        if (!read_hex4(r, &low)) return 0;
        if (low >= 0xdc00 && low <= 0xdfff) return put_utf8(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00), out);
    }
    fail(r, "have half a surrogate pair, which is no character");
    return 0;
}

/* One character of a string, decoded: the number of its bytes, at most as many as it was written
 * with; 0 at the closing quote, which is taken, and on a fault. */
static int read_char(struct reader *r, char out[4])
{
    if (r->at == r->end || *r->at < 0x20) {
        fail(r, not_json);
        return 0;
    }
    unsigned char c = *r->at++;
    if (c == '"') return 0;
    if (c == '\\') {
        if (r->at == r->end) {
            fail(r, not_json);
            return 0;
        }
        c = *r->at++;
        switch (c) {
        case '"':
        case '\\':
        case '/': break;
        case 'b': c = '\b'; break;
        case 'f': c = '\f'; break;
        case 'n': c = '\n'; break;
        case 'r': c = '\r'; break;
        case 't': c = '\t'; break;
        case 'u': return read_unicode(r, out);
        default: fail(r, not_json); return 0;
        }
    }
    out[0] = (char)c;
    return 1;
}

static bool skip_string(struct reader *r)
{
    char c[4];
    if (!expect(r, '"')) return false;
    while (read_char(r, c) > 0) {
    }
    return !r->fault;
}

/* Reads a name; *same tells whether it is the wanted one. */
static bool read_name(struct reader *r, const char *name, size_t len, bool *same)
{
    char c[4];
    size_t n;
    *same = true;
    if (!expect(r, '"')) return false;
    while ((n = (size_t)read_char(r, c)) > 0) {
        *same = *same && n <= len && memcmp(name, c, n) == 0;
        if (*same) name += n, len -= n;
    }
    *same = *same && len == 0;
    return !r->fault;
}

static bool read_value(struct reader *r, char *out, size_t *len)
{
    char c[4];
    size_t n;
    *len = 0;
    if (r->at == r->end) return fail(r, not_json);
    if (!take(r, '"')) return fail(r, "have something else than a string in the field");
    while ((n = (size_t)read_char(r, c)) > 0) {
        memcpy(out + *len, c, n);
        *len += n;
    }
    return !r->fault;
}

/* ---- whatever else there is ---- */

static bool skip_digits(struct reader *r)
{
    const unsigned char *from = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
    return r->at > from || fail(r, not_json);
}

static bool skip_number(struct reader *r)
{
    take(r, '-');
    if (!take(r, '0') && !skip_digits(r)) return false;
    if (take(r, '.') && !skip_digits(r)) return false;
    if (take(r, 'e') || take(r, 'E')) {
        if (!take(r, '+')) take(r, '-');
        return skip_digits(r);
    }
    return true;
}

static bool skip_word(struct reader *r, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) return fail(r, not_json);
    r->at += n;
    return true;
}

static bool skip_scalar(struct reader *r)
{
    if (r->at == r->end) return fail(r, not_json);
    switch (*r->at) {
    case '"': return skip_string(r);
    case 't': return skip_word(r, "true");
    case 'f': return skip_word(r, "false");
    case 'n': return skip_word(r, "null");
    default: return skip_number(r);
    }
}

static bool skip_name(struct reader *r)
{
    skip_space(r);
    if (!skip_string(r)) return false;
    skip_space(r);
    return expect(r, ':');
}

static bool skip_value(struct reader *r)
{
    uint64_t objects = 0; /* bit d: level d is an object, else an array */
    int depth = 0;
    for (;;) {
        /* At the beginning of a value. */
        skip_space(r);
        bool object = take(r, '{');
        if (object || take(r, '[')) {
            if (depth == JSON_MAX_DEPTH) return fail(r, "are nested too deeply");
            uint64_t bit = 1ull << depth++;
            objects = object ? objects | bit : objects & ~bit;
            skip_space(r);
            if (!take(r, object ? '}' : ']')) {
                if (object && !skip_name(r)) return false;
                continue;
            }
            depth--;
        } else if (!skip_scalar(r)) {
            return false;
        }
        /* After a value: ends of what it was in, until one goes on. */
        for (;;) {
            if (depth == 0) return true;
            bool in_object = objects >> (depth - 1) & 1;
            skip_space(r);
            if (take(r, ',')) {
                if (in_object && !skip_name(r)) return false;
                break;
            }
            if (!expect(r, in_object ? '}' : ']')) return false;
            depth--;
        }
    }
}

const char *json_string_field(const char *json, size_t len, const char *name, size_t name_len, char *out,
                              size_t *out_len)
{
    const unsigned char *bytes = (const unsigned char *)json;
    struct reader r = {bytes, bytes + len, NULL};
    bool found = false, same;
    *out_len = 0;
    skip_space(&r);
    if (!take(&r, '{')) return "are no JSON object";
    skip_space(&r);
    if (!take(&r, '}')) {
        do {
            skip_space(&r);
            if (!read_name(&r, name, name_len, &same)) return r.fault;
            skip_space(&r);
            if (!expect(&r, ':')) return r.fault;
            skip_space(&r);
            if (same && found) return "have the field twice";
            if (!(same ? read_value(&r, out, out_len) : skip_value(&r))) return r.fault;
            found |= same;
            skip_space(&r);
        } while (take(&r, ','));
        if (!expect(&r, '}')) return r.fault;
    }
    skip_space(&r);
    if (r.at != r.end) return not_json;
    return found ? NULL : "lack the field";
}
