/* Streaming text: incremental UTF-8 repair and search for stop texts. See text.h.
 * Memory: one growing buffer of the text_out, freed by text_free. */
#include "text.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
enum { REPLACEMENT_LEN = 3 };

void text_init(struct text_out *t, const struct text_stop *stops, int n_stops)
{
    *t = (struct text_out){.stops = stops, .n_stops = n_stops};
}

void text_free(struct text_out *t)
{
    free(t->bytes);
    t->bytes = NULL;
    t->len = t->cap = t->partial = t->ready = 0;
}

static int reserve(struct text_out *t, size_t more)
{
    size_t need, cap = t->cap ? t->cap : 64;
    if (__builtin_add_overflow(t->len, more, &need) || need > SIZE_MAX / 2) return -1;
    if (need <= t->cap) return 0;
    while (cap < need) cap *= 2;
    char *bytes = realloc(t->bytes, cap);
    if (!bytes) return -1;
    t->bytes = bytes;
    t->cap = cap;
    return 0;
}

/* Length of the character that a byte begins; 0: none does. (Unicode, table 3-7: C0, C1 and F5 up
 * would be overlong or past U+10FFFF.) */
static size_t sequence_length(unsigned char lead)
{
    if (lead < 0x80) return 1;
    if (lead < 0xc2) return 0;
    if (lead < 0xe0) return 2;
    if (lead < 0xf0) return 3;
    return lead < 0xf5 ? 4 : 0;
}

/* Whether c may be byte `at` (from 1) of the character that lead begins. Overlong forms,
 * surrogates and values past U+10FFFF show in the second byte. */
static bool continues(unsigned char lead, size_t at, unsigned char c)
{
    if (at > 1) return c >= 0x80 && c <= 0xbf;
    switch (lead) {
    case 0xe0: return c >= 0xa0 && c <= 0xbf;
    case 0xed: return c >= 0x80 && c <= 0x9f;
    case 0xf0: return c >= 0x90 && c <= 0xbf;
    case 0xf4: return c >= 0x80 && c <= 0x8f;
    default: return c >= 0x80 && c <= 0xbf;
    }
}

static void append_replacement(struct text_out *t)
{
    memcpy(t->bytes + t->len, replacement, REPLACEMENT_LEN);
    t->len += REPLACEMENT_LEN;
}

/* Appends one byte; there is room for a replacement and the byte. */
static void append_byte(struct text_out *t, unsigned char c)
{
    if (t->partial) {
        unsigned char lead = (unsigned char)t->bytes[t->len - t->partial];
        if (continues(lead, t->partial, c)) {
            t->bytes[t->len++] = (char)c;
            t->partial = t->partial + 1 == sequence_length(lead) ? 0 : t->partial + 1;
            return;
        }
        t->len -= t->partial; /* cut short: one replacement for what there was, and c begins anew */
        t->partial = 0;
        append_replacement(t);
    }
    switch (sequence_length(c)) {
    case 0: append_replacement(t); break;
    case 1: t->bytes[t->len++] = (char)c; break;
    default:
        t->bytes[t->len++] = (char)c;
        t->partial = 1;
    }
}

/* The length of the longest stop text that ends at `end` and begins in what is held; 0: none. */
static size_t stop_ending_at(const struct text_out *t, size_t end)
{
    size_t longest = 0;
    for (int i = 0; i < t->n_stops; i++) {
        const struct text_stop *s = &t->stops[i];
        if (s->len > longest && s->len <= end - t->ready && memcmp(t->bytes + end - s->len, s->text, s->len) == 0)
            longest = s->len;
    }
    return longest;
}

/* Start of the longest suffix of bytes[ready..end) that a stop text begins with; end if there is none. */
static size_t held_from(const struct text_out *t, size_t end)
{
    for (size_t start = t->ready; start < end; start++)
        for (int i = 0; i < t->n_stops; i++)
            if (t->stops[i].len > end - start && memcmp(t->bytes + start, t->stops[i].text, end - start) == 0)
                return start;
    return end;
}

/* The last border between characters at or before `at`. Only a stop text that is no UTF-8 itself
 * matches in the middle of a character. */
static size_t character_border(const struct text_out *t, size_t at)
{
    while (at > 0 && at < t->len && ((unsigned char)t->bytes[at] & 0xc0) == 0x80) at--;
    return at;
}

int text_append(struct text_out *t, const char *piece, size_t len)
{
    size_t room;
    /* at most every byte, and the character begun before, becomes a replacement */
    if (__builtin_mul_overflow(len, (size_t)REPLACEMENT_LEN, &room) ||
        __builtin_add_overflow(room, (size_t)REPLACEMENT_LEN, &room) || reserve(t, room))
        return -1;
    size_t end = t->len - t->partial; /* every place up to here has been searched */
    for (size_t i = 0; i < len; i++) append_byte(t, (unsigned char)piece[i]);
    size_t whole = t->len - t->partial;

    while (++end <= whole) {
        size_t stop = stop_ending_at(t, end);
        if (stop) {
            t->ready = t->len = character_border(t, end - stop);
            t->partial = 0;
            return 1;
        }
    }
    t->ready = character_border(t, held_from(t, whole));
    return 0;
}

int text_finish(struct text_out *t)
{
    if (t->partial) {
        if (reserve(t, REPLACEMENT_LEN)) return -1;
        t->len -= t->partial;
        t->partial = 0;
        append_replacement(t);
    }
    t->ready = t->len;
    return 0;
}
