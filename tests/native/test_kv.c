/* The KV cache, without a model: "computing" a token writes numbers into its slots that are a function of the whole
 * prefix, as K and V are. Whatever a sequence holds must be those numbers. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels.h"
#include "kv.h"

static const struct hparams shape = {.n_layer = 2, .n_head_kv = 2, .k_dim = 5, .v_dim = 35};

static uint32_t rng_state = 1;
static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)rng_state * below) >> 32);
}

static struct kv_cache *cache_of(int pages)
{
    struct infer_error err;
    return kv_create(&shape, (size_t)pages * kv_page_bytes(&shape), &err);
}

static int16_t value_of(uint64_t prefix, int layer, int head, int d)
{
    uint64_t x = (prefix + (uint64_t)(layer * 64 + head * 8 + d)) * 0x9e3779b97f4a7c15u;
    return (int16_t)(x >> 48);
}

static uint64_t prefix_step(uint64_t prefix, uint32_t token)
{
    return (prefix ^ token) * 0x100000001b3u + 7;
}

/* Writes (or, with check, compares) the slots of positions [from, to). Returns the number of wrong ones. */
static int touch(struct kv_seq *s, const uint32_t *tokens, int from, int to, int check)
{
    uint64_t prefix = 0;
    int wrong = 0;
    for (int p = 0; p < to; p++) {
        prefix = prefix_step(prefix, tokens[p]);
        if (p < from) continue;
        int slot = p % KV_PAGE;
        for (int layer = 0; layer < shape.n_layer; layer++)
            for (int head = 0; head < shape.n_head_kv; head++) {
                struct kv_head h = kv_head_of(&shape, s->pages[p / KV_PAGE], layer, head);
                int16_t *v = h.data + kv_k_count(shape.k_dim);
                for (int d = 0; d < shape.k_dim + shape.v_dim; d++) {
                    int16_t *at = d < shape.k_dim ? &h.data[kv_k_at(shape.k_dim, slot, d)] : &v[kv_v_at(shape.v_dim, slot, d - shape.k_dim)];
                    if (check) wrong += *at != value_of(prefix, layer, head, d);
                    else *at = value_of(prefix, layer, head, d);
                }
                uint16_t scale = (uint16_t)value_of(prefix, layer, head, -1);
                if (check) wrong += h.scale[slot] != scale || h.scale[KV_PAGE + slot] != scale;
                else h.scale[slot] = h.scale[KV_PAGE + slot] = scale;
            }
    }
    return wrong;
}

/* Computes up to n tokens of s, publishing on the way or not. */
static int compute(struct kv_seq *s, const uint32_t *tokens, int n, int publish)
{
    if (kv_seq_reserve(s, n) != 0) return -1;
    touch(s, tokens, s->n_tokens, n, 0);
    s->n_tokens = n;
    if (publish) kv_seq_publish(s, tokens);
    return 0;
}

/* Runs a whole sequence and keeps it. Returns the number of tokens that it found. */
static int run(struct kv_cache *c, const uint32_t *tokens, int n)
{
    struct kv_seq s;
    int found = kv_seq_start(c, &s, tokens, n, n, 1);
    if (found < 0) return found;
    CHECK(compute(&s, tokens, n, 1) == 0);
    CHECK(touch(&s, tokens, 0, n, 1) == 0);
    kv_seq_end(&s, tokens, 1);
    return found;
}

static void fill(uint32_t *tokens, int n, uint32_t seed)
{
    for (int i = 0; i < n; i++) tokens[i] = seed * 100000u + (uint32_t)i;
}

static void a_known_prompt_is_found_but_for_its_last_token(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[300];
    fill(t, 300, 1);
    CHECK(run(c, t, 300) == 0);
    CHECK(run(c, t, 300) == 299);
    CHECK(run(c, t, 256) == 255); /* ends with a page */
    CHECK(run(c, t, 257) == 256);
    CHECK(run(c, t, 1) == 0);
    CHECK(run(c, t, 2) == 1);
    struct kv_stats s;
    kv_get_stats(c, &s);
    CHECK(s.pages_cached == 5 && s.pages_active == 0 && s.pages_free == 11);
    CHECK(s.hit_tokens == 299 + 255 + 256 + 1);
    CHECK(s.lookup_tokens == 300 + 300 + 256 + 257 + 1 + 2);
    kv_free(c);
}

static void a_match_may_end_inside_a_page_and_changes_nothing_of_it(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t a[200], b[200];
    fill(a, 200, 1);
    memcpy(b, a, sizeof b);
    for (int i = 150; i < 200; i++) b[i] = 7;
    CHECK(run(c, a, 200) == 0);
    CHECK(run(c, b, 200) == 150);
    CHECK(run(c, a, 200) == 199);
    CHECK(run(c, b, 200) == 199);
    kv_free(c);
}

static void a_longer_run_takes_the_place_of_the_shorter_leaf(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[128];
    fill(t, 128, 3);
    run(c, t, 10);
    run(c, t, 40);
    run(c, t, 20); /* known: adds nothing */
    struct kv_stats s;
    kv_get_stats(c, &s);
    CHECK(s.pages_cached == 1);
    CHECK(run(c, t, 128) == 40);
    kv_get_stats(c, &s);
    CHECK(s.pages_cached == 2);
    kv_free(c);
}

static void sequences_with_one_prefix_hold_its_pages_once(void)
{
    enum { N = 16, PREFIX = 1024, TAIL = 32 };
    struct kv_cache *c = cache_of(64);
    static uint32_t t[N][PREFIX + TAIL];
    struct kv_seq s[N];
    for (int i = 0; i < N; i++) {
        fill(t[i], PREFIX, 9);
        fill(t[i] + PREFIX, TAIL, (uint32_t)i + 20);
        CHECK(kv_seq_start(c, &s[i], t[i], PREFIX + TAIL, PREFIX + TAIL, 1) == (i ? PREFIX : 0));
        CHECK(compute(&s[i], t[i], PREFIX + TAIL, 1) == 0);
    }
    struct kv_stats st;
    kv_get_stats(c, &st);
    CHECK(st.pages_active == PREFIX / KV_PAGE + N);
    for (int i = 0; i < N; i++) {
        CHECK(touch(&s[i], t[i], 0, PREFIX + TAIL, 1) == 0);
        kv_seq_end(&s[i], t[i], 1);
    }
    kv_get_stats(c, &st);
    CHECK(st.pages_active == 0 && st.pages_cached == PREFIX / KV_PAGE + N);
    kv_free(c);
}

static void pages_computed_twice_are_kept_once(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[200];
    fill(t, 200, 4);
    struct kv_seq a, b;
    CHECK(kv_seq_start(c, &a, t, 200, 200, 1) == 0);
    CHECK(kv_seq_start(c, &b, t, 200, 200, 1) == 0);
    compute(&a, t, 200, 1);
    compute(&b, t, 200, 1);
    struct kv_stats s;
    kv_get_stats(c, &s);
    CHECK(s.pages_active == 3 + 2); /* the last one is each one's own */
    CHECK(a.pages[2] == b.pages[2] && a.pages[3] != b.pages[3]);
    kv_seq_end(&a, t, 1);
    CHECK(touch(&b, t, 0, 200, 1) == 0);
    kv_seq_end(&b, t, 1);
    kv_get_stats(c, &s);
    CHECK(s.pages_active == 0 && s.pages_cached == 4 && s.pages_free == 12);
    kv_free(c);
}

static void a_prompt_under_way_takes_what_others_publish_meanwhile(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t a[300], b[300];
    fill(a, 300, 5);
    memcpy(b, a, sizeof b);
    b[220] = 0;
    struct kv_seq s, t;
    kv_seq_start(c, &s, a, 300, 300, 1);
    kv_seq_start(c, &t, b, 300, 300, 1);
    compute(&s, a, 150, 1);
    compute(&t, b, 30, 1); /* a page begun alone */
    CHECK(kv_seq_match(&t, b, 300) == 128 - 30);
    CHECK(kv_seq_match(&t, b, 300) == 0);
    compute(&s, a, 300, 1);
    CHECK(kv_seq_match(&t, b, 300) == 220 - 128);
    CHECK(touch(&t, b, 0, t.n_tokens, 1) == 0);
    compute(&t, b, 300, 1);
    CHECK(touch(&t, b, 0, 300, 1) == 0 && touch(&s, a, 0, 300, 1) == 0);
    kv_seq_end(&s, a, 1);
    kv_seq_end(&t, b, 1);
    kv_free(c);
}

static void a_sequence_without_the_cache_neither_finds_nor_leaves_anything(void)
{
    struct kv_cache *c = cache_of(8);
    uint32_t t[200];
    fill(t, 200, 6);
    run(c, t, 200);
    struct kv_seq s;
    CHECK(kv_seq_start(c, &s, t, 200, 200, 0) == 0);
    compute(&s, t, 200, 0);
    kv_seq_end(&s, t, 0);
    struct kv_stats st;
    kv_get_stats(c, &st);
    CHECK(st.pages_cached == 4 && st.pages_free == 4 && st.hit_tokens == 0);
    kv_free(c);
}

static void the_least_recently_used_prefix_is_evicted_leaves_first(void)
{
    struct kv_cache *c = cache_of(6);
    uint32_t a[128], b[128], d[192];
    fill(a, 128, 1);
    fill(b, 128, 2);
    fill(d, 192, 3);
    run(c, a, 128);
    run(c, b, 128);
    run(c, a, 128); /* used again: b is the older one */
    run(c, d, 192); /* needs 3 pages, 2 are free: b's leaf goes */
    struct kv_stats s;
    kv_get_stats(c, &s);
    CHECK(s.evicted_pages == 1);
    struct kv_seq q;
    CHECK(kv_seq_start(c, &q, b, 128, 128, 1) == 64);
    kv_seq_end(&q, b, 1);
    CHECK(kv_seq_start(c, &q, a, 128, 128, 1) == 127);
    kv_seq_end(&q, a, 1);
    kv_free(c);
}

/* How many tokens of a prompt are known; changes no more than a request that looks and does nothing. */
static int known(struct kv_cache *c, const uint32_t *tokens, int n)
{
    struct kv_seq s;
    int found = kv_seq_start(c, &s, tokens, n, n, 1);
    kv_seq_end(&s, tokens, 1);
    return found;
}

/* Prompts of 3 pages that nobody asks for twice; they begin alike for n_alike tokens. Returns how many pages they evicted. */
static int flood(struct kv_cache *c, int n_prompts, const uint32_t *alike, int n_alike)
{
    static uint32_t seed = 1000;
    uint32_t t[3 * KV_PAGE];
    struct kv_stats before, after;
    kv_get_stats(c, &before);
    for (int i = 0; i < n_prompts; i++) {
        fill(t, 3 * KV_PAGE, seed++);
        if (n_alike) memcpy(t, alike, (size_t)n_alike * sizeof *t);
        run(c, t, 3 * KV_PAGE);
    }
    kv_get_stats(c, &after);
    return (int)(after.evicted_pages - before.evicted_pages);
}

/* One prompt after another, which have their first `pages` pages in common. */
static void ask_often(struct kv_cache *c, uint32_t seed, int pages)
{
    static uint32_t end = 500;
    uint32_t t[16 * KV_PAGE];
    int n = pages * KV_PAGE;
    for (int i = 0; i < 3; i++) {
        fill(t, n, seed);
        fill(t + n, 20, end++);
        run(c, t, n + 20);
    }
}

static void what_prompts_have_in_common_outlives_many_that_came_once(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[4 * KV_PAGE + 1];
    fill(t, 4 * KV_PAGE + 1, 1);
    ask_often(c, 1, 4);
    CHECK(flood(c, 30, NULL, 0) > 3 * 16);
    CHECK(known(c, t, 4 * KV_PAGE + 1) == 4 * KV_PAGE);
    kv_free(c);
}

static void a_prompt_that_came_again_outlives_many_that_came_once(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[300];
    fill(t, 300, 1);
    run(c, t, 300);
    run(c, t, 300);
    CHECK(flood(c, 30, NULL, 0) > 3 * 16);
    CHECK(known(c, t, 300) == 256); /* its last page was copied, and never more than a part of a page */
    kv_free(c);
}

static void prompts_that_share_less_than_a_page_keep_none_of_each_other(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[8 * KV_PAGE + 1];
    fill(t, 8 * KV_PAGE + 1, 1);
    ask_often(c, 1, 8); /* as many as are kept: one more, and they would lose their last */
    CHECK(flood(c, 30, t, 20) > 3 * 16);
    CHECK(known(c, t, 8 * KV_PAGE + 1) == 8 * KV_PAGE);
    kv_free(c);
}

static void what_was_in_common_gives_way_to_what_is_now(void)
{
    struct kv_cache *c = cache_of(16); /* 8 of which stay because they were found */
    uint32_t a[6 * KV_PAGE + 1], b[6 * KV_PAGE + 1], d[6 * KV_PAGE + 1];
    fill(a, 6 * KV_PAGE + 1, 1);
    fill(b, 6 * KV_PAGE + 1, 2);
    fill(d, 6 * KV_PAGE + 1, 3);
    ask_often(c, 1, 6);
    CHECK(known(c, a, 6 * KV_PAGE + 1) == 6 * KV_PAGE);
    ask_often(c, 2, 6);
    ask_often(c, 3, 6);
    flood(c, 10, NULL, 0);
    CHECK(known(c, a, 6 * KV_PAGE + 1) == 0);
    CHECK(known(c, b, 6 * KV_PAGE + 1) == (16 / KV_FOUND_SHARE - 6) * KV_PAGE); /* its end went first */
    CHECK(known(c, d, 6 * KV_PAGE + 1) == 6 * KV_PAGE);
    kv_free(c);
}

static void what_was_in_common_goes_when_nobody_asks_for_it_any_more(void)
{
    struct kv_cache *c = cache_of(16);
    uint32_t t[4 * KV_PAGE + 1];
    fill(t, 4 * KV_PAGE + 1, 1);
    ask_often(c, 1, 4);
    for (int evicted = 0; evicted <= 16 * (KV_FOUND_TURNS + 2);) evicted += flood(c, 1, NULL, 0);
    CHECK(known(c, t, 4 * KV_PAGE + 1) == 0);
    kv_free(c);
}

static void prompts_that_take_turns_are_all_known_in_the_end_if_they_fit(void)
{
    enum { N = 4, LENGTH = 3 * KV_PAGE + 1 }; /* 16 of 20 pages */
    struct kv_cache *c = cache_of(20);
    uint32_t t[N][LENGTH];
    for (int i = 0; i < N; i++) fill(t[i], LENGTH, (uint32_t)i + 10);
    ask_often(c, 1, 10); /* half of the cache, and nobody asks for it again */
    for (int round = 0; round < 200; round++)
        for (int i = 0; i < N; i++) run(c, t[i], LENGTH);
    for (int i = 0; i < N; i++) CHECK(known(c, t[i], LENGTH) == 3 * KV_PAGE);
    kv_free(c);
}

static void a_sequence_starts_only_when_its_pages_are_sure(void)
{
    struct kv_cache *c = cache_of(8);
    uint32_t a[64], b[64];
    fill(a, 64, 1);
    fill(b, 64, 2);
    struct kv_seq s, t;
    CHECK(kv_seq_start(c, &s, a, 64, 5 * KV_PAGE, 1) == 0); /* holds none yet, promised 5 */
    CHECK(kv_seq_start(c, &t, b, 64, 4 * KV_PAGE, 1) == KV_NO_ROOM);
    CHECK(kv_seq_start(c, &t, b, 64, 3 * KV_PAGE, 1) == 0);
    CHECK(kv_seq_reserve(&s, 5 * KV_PAGE) == 0 && kv_seq_reserve(&t, 3 * KV_PAGE) == 0);
    CHECK(kv_seq_reserve(&t, 3 * KV_PAGE + 1) == -1);
    kv_seq_end(&s, a, 0);
    kv_seq_end(&t, b, 0);
    CHECK(kv_seq_start(c, &t, b, 64, 8 * KV_PAGE, 1) == 0);
    kv_seq_end(&t, b, 0);
    CHECK(kv_seq_start(c, &t, b, 64, 8 * KV_PAGE + 1, 1) == KV_NO_ROOM);
    kv_free(c);
}

static void a_full_arena_still_runs_a_prompt_that_would_copy_its_only_page(void)
{
    struct kv_cache *c = cache_of(1);
    uint32_t t[64];
    fill(t, 64, 1);
    CHECK(run(c, t, 64) == 0);
    CHECK(run(c, t, 64) == 0); /* nowhere to copy it: computed again */
    kv_free(c);
}

/* Every length around the ends of pages that a small arena has room for: computed, found again, and after another prompt. */
static void a_small_arena_runs_whatever_fits_it(void)
{
    enum { MOST = 4 };
    static const int lengths[] = {1, 2, KV_PAGE - 1, KV_PAGE, KV_PAGE + 1, 2 * KV_PAGE - 1, 2 * KV_PAGE, 2 * KV_PAGE + 1, 3 * KV_PAGE - 1,
                                  3 * KV_PAGE, 3 * KV_PAGE + 1, 4 * KV_PAGE};
    uint32_t a[MOST * KV_PAGE], b[MOST * KV_PAGE];
    fill(a, MOST * KV_PAGE, 1);
    memcpy(b, a, sizeof b);
    for (int pages = 1; pages <= MOST; pages++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            struct kv_cache *c = cache_of(pages);
            int n = lengths[i], whole = (n - 1) / KV_PAGE * KV_PAGE, needed = (n + KV_PAGE - 1) / KV_PAGE;
            struct kv_stats s;
            if (needed > pages) {
                CHECK(run(c, a, n) == KV_NO_ROOM);
            } else {
                CHECK(run(c, a, n) == 0);
                /* part of a page is copied, if there is a page to copy it to */
                int found = run(c, a, n);
                CHECKF(found == (needed < pages ? n - 1 : whole), "%d pages, %d tokens: found %d", pages, n, found);
                b[n / 2] = 77; /* begins alike */
                CHECK(run(c, b, n) <= n / 2);
                b[n / 2] = a[n / 2];
                found = run(c, a, n);
                CHECK(found >= 0 && found < n);
            }
            kv_get_stats(c, &s);
            CHECK(s.pages_active == 0 && s.pages_cached + s.pages_free == pages);
            struct kv_seq all;
            CHECK(kv_seq_start(c, &all, b, 1, pages * KV_PAGE, 0) == 0 && kv_seq_reserve(&all, pages * KV_PAGE) == 0);
            kv_seq_end(&all, b, 0);
            kv_free(c);
        }
}

static void an_ended_or_never_started_sequence_can_be_ended_again(void)
{
    struct kv_cache *c = cache_of(2);
    struct kv_seq s = {0};
    kv_seq_end(&s, NULL, 1);
    uint32_t t[2] = {1, 2};
    kv_seq_start(c, &s, t, 2, 2, 1);
    kv_seq_end(&s, t, 1);
    kv_seq_end(&s, t, 1);
    kv_free(c);
}

static void a_budget_below_one_page_is_refused_with_both_sizes(void)
{
    struct infer_error err = {0};
    CHECK(kv_create(&shape, kv_page_bytes(&shape) - 1, &err) == NULL);
    char size[32];
    snprintf(size, sizeof size, "%zu bytes", kv_page_bytes(&shape));
    CHECK(err.code == INFER_CONTEXT && strstr(err.message, size));
}

/* Many sequences over an alphabet of two tokens, so that they branch everywhere, in an arena too small for them. */
static void random_sequences_hold_their_own_values_and_give_every_page_back(void)
{
    enum { LIVE = 6, PAGES = 15, LONGEST = 4 * KV_PAGE };
    struct kv_cache *c = cache_of(PAGES);
    static uint32_t tokens[LIVE][LONGEST];
    struct kv_seq s[LIVE] = {0};
    int n[LIVE] = {0}, keep[LIVE] = {0}, started = 0, refused = 0;
    struct kv_stats st;
    for (int round = 0; round < 20000; round++) {
        int i = (int)rng(LIVE);
        if (!s[i].cache) {
            n[i] = 1 + (int)rng(LONGEST);
            /* a few stems, then random: shares whole pages, parts of pages, or nothing */
            uint32_t stem = rng(3), own = rng(LONGEST);
            for (int p = 0; p < n[i]; p++) tokens[i][p] = (uint32_t)p < own ? (stem * (uint32_t)p / 50) & 1 : rng(2);
            keep[i] = rng(8) != 0;
            int found = kv_seq_start(c, &s[i], tokens[i], n[i], n[i], keep[i]);
            started += found >= 0;
            refused += found == KV_NO_ROOM;
            CHECK(found < n[i]);
            if (found > 0) CHECK(touch(&s[i], tokens[i], 0, found, 1) == 0);
        } else if (s[i].n_tokens < n[i] && rng(10)) {
            if (keep[i] && rng(2)) {
                kv_seq_match(&s[i], tokens[i], n[i]);
                CHECK(s[i].n_tokens < n[i]);
            }
            int to = s[i].n_tokens + 1 + (int)rng((uint32_t)(n[i] - s[i].n_tokens));
            CHECK(compute(&s[i], tokens[i], to, keep[i] && rng(2)) == 0);
        } else {
            CHECK(touch(&s[i], tokens[i], 0, s[i].n_tokens, 1) == 0);
            kv_seq_end(&s[i], tokens[i], keep[i]);
        }
        if (round % 100) continue;
        int held = 0;
        for (int a = 0; a < LIVE; a++)
            for (int p = 0; p < s[a].n_pages; p++) {
                int first = 1;
                for (int b = 0; b < a; b++) first &= p >= s[b].n_pages || s[b].pages[p] != s[a].pages[p];
                held += first;
            }
        kv_get_stats(c, &st);
        CHECK(st.pages_active == held);
        CHECK(st.pages_active + st.pages_cached + st.pages_free == PAGES);
    }
    CHECK(started > 1000 && refused > 10);
    for (int i = 0; i < LIVE; i++) kv_seq_end(&s[i], tokens[i], keep[i]);
    kv_get_stats(c, &st);
    CHECK(st.pages_active == 0 && st.evicted_pages > 100 && st.hit_tokens > 1000);
    /* every page can be had */
    struct kv_seq all;
    CHECK(kv_seq_start(c, &all, tokens[0], 1, PAGES * KV_PAGE, 0) == 0);
    CHECK(kv_seq_reserve(&all, PAGES * KV_PAGE) == 0);
    kv_seq_end(&all, tokens[0], 0);
    kv_get_stats(c, &st);
    CHECK(st.pages_free == PAGES);
    kv_free(c);
}

int main(void)
{
    RUN(a_known_prompt_is_found_but_for_its_last_token);
    RUN(a_match_may_end_inside_a_page_and_changes_nothing_of_it);
    RUN(a_longer_run_takes_the_place_of_the_shorter_leaf);
    RUN(sequences_with_one_prefix_hold_its_pages_once);
    RUN(pages_computed_twice_are_kept_once);
    RUN(a_prompt_under_way_takes_what_others_publish_meanwhile);
    RUN(a_sequence_without_the_cache_neither_finds_nor_leaves_anything);
    RUN(the_least_recently_used_prefix_is_evicted_leaves_first);
    RUN(what_prompts_have_in_common_outlives_many_that_came_once);
    RUN(a_prompt_that_came_again_outlives_many_that_came_once);
    RUN(prompts_that_share_less_than_a_page_keep_none_of_each_other);
    RUN(what_was_in_common_gives_way_to_what_is_now);
    RUN(what_was_in_common_goes_when_nobody_asks_for_it_any_more);
    RUN(prompts_that_take_turns_are_all_known_in_the_end_if_they_fit);
    RUN(a_sequence_starts_only_when_its_pages_are_sure);
    RUN(a_full_arena_still_runs_a_prompt_that_would_copy_its_only_page);
    RUN(a_small_arena_runs_whatever_fits_it);
    RUN(an_ended_or_never_started_sequence_can_be_ended_again);
    RUN(a_budget_below_one_page_is_refused_with_both_sizes);
    RUN(random_sequences_hold_their_own_values_and_give_every_page_back);
    return check_result();
}
