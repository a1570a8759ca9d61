/* See json.h. */
#include "json.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 64, MAX_NUMBER = 63 };

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
    return p;
}

/* Behind the closing quote of the string that begins at p; NULL: it does not end. */
static const char *skip_string(const char *p, const char *end)
{
    for (p++; p < end; p++) {
        if (*p == '\\') p++;
        else if (*p == '"') return p + 1;
    }
    return NULL;
}

/* Behind the value that begins at p; NULL: malformed. What lies between brackets is only counted, which is enough to
 * find the end of text that a JSON library wrote. */
static const char *skip_value(const char *p, const char *end)
{
    if (p >= end) return NULL;
    if (*p == '"') return skip_string(p, end);
    if (*p != '{' && *p != '[') {
        const char *begin = p;
        while (p < end && !strchr(",]} \t\r\n", *p)) p++;
        return p > begin ? p : NULL;
    }
    int depth = 0;
    while (p < end) {
        if (*p == '"') {
            p = skip_string(p, end);
            if (!p) return NULL;
            continue;
        }
        if ((*p == '{' || *p == '[') && ++depth > MAX_DEPTH) return NULL;
        if ((*p == '}' || *p == ']') && --depth == 0) return p + 1;
        p++;
    }
    return NULL;
}

bool json_member(struct span object, const char *name, struct span *value)
{
    const char *end = object.at + object.len, *p = skip_space(object.at, end);
    if (p >= end || *p++ != '{') return false;
    size_t name_len = strlen(name);
    for (;;) {
        p = skip_space(p, end);
        if (p >= end || *p != '"') return false;
        const char *key = p + 1, *key_end = skip_string(p, end);
        if (!key_end) return false;
        p = skip_space(key_end, end);
        if (p >= end || *p++ != ':') return false;
        p = skip_space(p, end);
        const char *behind = skip_value(p, end);
        if (!behind) return false;
        if ((size_t)(key_end - 1 - key) == name_len && memcmp(key, name, name_len) == 0) {
            *value = (struct span){p, (size_t)(behind - p)};
            return true;
        }
        p = skip_space(behind, end);
        if (p >= end || *p++ != ',') return false;
    }
}

bool json_number(struct span value, double *number)
{
    char text[MAX_NUMBER + 1]; /* strtod needs an end */
    if (value.len == 0 || value.len > MAX_NUMBER || strchr("-0123456789", value.at[0]) == NULL) return false;
    memcpy(text, value.at, value.len);
    text[value.len] = 0;
    char *behind;
    *number = strtod(text, &behind);
    return *behind == 0;
}

int json_ids(struct span array, uint32_t *ids, int max)
{
    const char *end = array.at + array.len, *p = array.at;
    if (p >= end || *p++ != '[') return -1;
    p = skip_space(p, end);
    int n = 0;
    if (p < end && *p == ']') return 0;
    for (;;) {
        const char *behind = skip_value(p, end);
        double id;
        if (!behind || !json_number((struct span){p, (size_t)(behind - p)}, &id) || id < 0 || id > UINT32_MAX) return -1;
        if (n < max) ids[n] = (uint32_t)id;
        n++;
        p = skip_space(behind, end);
        if (p >= end) return -1;
        if (*p == ']') return n;
        if (*p++ != ',') return -1;
        p = skip_space(p, end);
    }
}

bool json_plain_string(struct span value, struct span *text)
{
    if (value.len < 2 || value.at[0] != '"' || memchr(value.at, '\\', value.len)) return false;
    *text = (struct span){value.at + 1, value.len - 2};
    return true;
}
