/* Streaming text: against Python's reading of broken UTF-8 (data/text_reference.bin, written
 * by data/make_text_reference.py), and against a search by brute force for stop texts. */
#include "text.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static uint64_t seed = 1;

static unsigned random_below(unsigned n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX generator */
    return (unsigned)(seed >> 33) % n;
}

static bool is_border(const char *s, size_t len, size_t at)
{
    return at == len || ((unsigned char)s[at] & 0xc0) != 0x80;
}

/* Appends s in pieces of 1..max_piece bytes (0: all at once), stopping at a stop text; checks on the way
 * that what was ready never changes and ends at a character. Returns whether it stopped. */
static bool feed(struct text_out *t, const char *s, size_t len, unsigned max_piece)
{
    char before[256];
    size_t ready = 0;
    for (size_t i = 0; i < len;) {
        size_t n = max_piece ? 1 + random_below(max_piece) : len;
        if (n > len - i) n = len - i;
        int stopped = text_append(t, s + i, n);
        CHECK(stopped >= 0);
        CHECK(t->ready >= ready && t->ready <= t->len && memcmp(before, t->bytes, ready) == 0);
        CHECK(is_border(t->bytes, t->len, t->ready));
        ready = t->ready < sizeof before ? t->ready : sizeof before;
        if (ready) memcpy(before, t->bytes, ready);
        i += n;
        if (stopped) {
            CHECK(t->ready == t->len);
            return true;
        }
    }
    return false;
}

static bool is(const struct text_out *t, const char *s, size_t len)
{
    return t->len == len && t->ready == len && (len == 0 || memcmp(t->bytes, s, len) == 0);
}

static void broken_utf8_reads_as_in_python_however_it_is_split(void)
{
    FILE *f = fopen(TEST_DATA_DIR "/text_reference.bin", "rb");
    REQUIRE(f);
    uint32_t n, m;
    int cases = 0;
    while (fread(&n, sizeof n, 1, f) == 1) {
        char raw[128], want[384];
        REQUIRE(n <= sizeof raw && fread(raw, 1, n, f) == n);
        REQUIRE(fread(&m, sizeof m, 1, f) == 1 && m <= sizeof want && fread(want, 1, m, f) == m);
        for (unsigned max_piece = 0; max_piece <= 4; max_piece++) {
            struct text_out t;
            text_init(&t, NULL, 0);
            feed(&t, raw, n, max_piece);
            CHECK(text_finish(&t) == 0 && text_finish(&t) == 0);
            CHECKF(is(&t, want, m), "case %d in pieces of up to %u", cases, max_piece);
            text_free(&t);
        }
        cases++;
    }
    fclose(f);
    CHECKF(cases > 1000, "%d cases", cases);
}

static void without_stop_texts_only_an_incomplete_character_is_held(void)
{
    static const char text[] = "a\xc3\xa9\xf0\x9f\x98\x8a!"; /* a é 😊 ! */
    static const size_t ready[] = {1, 1, 3, 3, 3, 3, 7, 8};
    struct text_out t;
    text_init(&t, NULL, 0);
    for (size_t i = 0; i < sizeof text - 1; i++) {
        CHECK(text_append(&t, text + i, 1) == 0);
        CHECKF(t.ready == ready[i], "after byte %zu: %zu ready", i, t.ready);
    }
    CHECK(text_append(&t, "", 0) == 0 && t.ready == 8);
    text_free(&t);
}

/* Where the text ends, by trying every place: the first end of any stop text, of those the longest. */
static size_t cut_by_brute_force(const char *s, size_t len, const struct text_stop *stops, int n, bool *stopped)
{
    for (size_t end = 1; end <= len; end++) {
        size_t longest = 0;
        for (int i = 0; i < n; i++)
            if (stops[i].len <= end && stops[i].len > longest && !memcmp(s + end - stops[i].len, stops[i].text, stops[i].len))
                longest = stops[i].len;
        if (longest) return *stopped = true, end - longest;
    }
    return *stopped = false, len;
}

/* How much may be shown: all but the longest end that some stop text begins with. */
static size_t ready_by_brute_force(const char *s, size_t len, const struct text_stop *stops, int n)
{
    for (size_t start = 0; start < len; start++)
        for (int i = 0; i < n; i++)
            if (stops[i].len > len - start && !memcmp(s + start, stops[i].text, len - start)) return start;
    return len;
}

static void stop_texts_are_found_over_any_borders(void)
{
    static const char *const letters[] = {"a", "b", "\xc3\xa9"};
    int stopped_cases = 0;
    for (int round = 0; round < 20000; round++) {
        char text[128] = "", stop[3][32] = {"", "", ""};
        struct text_stop stops[3];
        int n_stops = 1 + (int)random_below(3);
        for (unsigned i = random_below(20); i > 0; i--) strcat(text, letters[random_below(3)]);
        for (int i = 0; i < n_stops; i++) {
            for (unsigned k = 1 + random_below(6); k > 0; k--) strcat(stop[i], letters[random_below(3)]);
            stops[i] = (struct text_stop){stop[i], strlen(stop[i])};
        }
        size_t len = strlen(text);
        bool stops_here;
        size_t cut = cut_by_brute_force(text, len, stops, n_stops, &stops_here);
        stopped_cases += stops_here;
        for (unsigned max_piece = 0; max_piece <= 3; max_piece++) {
            struct text_out t;
            text_init(&t, stops, n_stops);
            bool stopped = feed(&t, text, len, max_piece);
            CHECKF(stopped == stops_here, "'%s' stop '%s'", text, stop[0]);
            if (!stopped) {
                size_t ready = ready_by_brute_force(text, len, stops, n_stops);
                CHECKF(t.ready == ready, "'%s' stop '%s': %zu ready, not %zu", text, stop[0], t.ready, ready);
            }
            CHECK(text_finish(&t) == 0);
            CHECKF(is(&t, text, cut), "'%s' stop '%s': ends at %zu, not %zu", text, stop[0], t.len, cut);
            text_free(&t);
        }
    }
    CHECKF(stopped_cases > 1000 && stopped_cases < 19000, "%d of 20000 stop", stopped_cases);
}

static void a_stop_text_inside_a_piece_cuts_the_piece(void)
{
    struct text_stop stops[] = {{"\n\n", 2}, {"END", 3}};
    struct text_out t;
    text_init(&t, stops, 2);
    CHECK(text_append(&t, "one E", 5) == 0);
    CHECKF(t.ready == 4, "%zu", t.ready);
    CHECK(text_append(&t, "N two\n", 6) == 0);
    CHECKF(t.ready == 10, "%zu", t.ready);
    CHECK(text_append(&t, "\nthree END", 10) == 1);
    CHECK(is(&t, "one EN two", 10));
    text_free(&t);
}

static void what_is_held_for_a_stop_text_is_shown_at_the_end(void)
{
    struct text_stop stop = {"STOP", 4};
    struct text_out t;
    text_init(&t, &stop, 1);
    CHECK(text_append(&t, "x STO\xe2\x82", 7) == 0);
    CHECK(t.ready == 2);
    CHECK(text_finish(&t) == 0);
    CHECK(is(&t, "x STO\xef\xbf\xbd", 8));
    text_free(&t);
}

/* Stop texts need not be UTF-8; then they match no more than the text's whole characters. */
static void a_stop_text_that_is_no_utf8_never_cuts_a_character(void)
{
    struct text_stop stop = {"\xa9z", 2};
    struct text_out t;
    text_init(&t, &stop, 1);
    CHECK(text_append(&t, "a\xc3\xa9", 3) == 0);
    CHECK(t.ready == 1);
    CHECK(text_append(&t, "z", 1) == 1);
    CHECK(is(&t, "a", 1));
    text_free(&t);
}

int main(void)
{
    RUN(broken_utf8_reads_as_in_python_however_it_is_split);
    RUN(without_stop_texts_only_an_incomplete_character_is_held);
    RUN(stop_texts_are_found_over_any_borders);
    RUN(a_stop_text_inside_a_piece_cuts_the_piece);
    RUN(what_is_held_for_a_stop_text_is_shown_at_the_end);
    RUN(a_stop_text_that_is_no_utf8_never_cuts_a_character);
    return check_result();
}
