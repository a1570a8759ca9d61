/* The KV cache: pages, the tree of known prefixes, and the promises to running sequences.
 *
 * The cache owns the arena, the page descriptors and one tree node per page;
 * a sequence owns its list of page pointers. All calls come from the conductor;
 * the counters that kv_get_stats shows are atomics, so that any thread may read them.
 *
 * The tree. A node is one page: its tokens continue its parent's. Inner nodes are full
 * (KV_PAGE tokens); a leaf may hold fewer. The children of a node are sorted by
 * their tokens and none is the beginning of another, so one binary search finds
 * both an exact continuation and the child that shares the most tokens, and the price
 * of a look-up does not grow with the number of prompts that the cache holds.
 *
 * Eviction. Whoever uses a page uses its ancestors too. So a page that
 * only the tree holds has no descendant in use, and all such pages can be had, leaves
 * first. They are in two lists, most recently used in front: found pages, which a sequence
 * other than their maker took over, and the rest, which go first. A path is always put in from its
 * end to its root, so that in each list a node stands in front of its descendants. The ancestors of a found page
 * are found too: who takes a page over holds its parent, which it took over as well, or made, and then the
 * page's maker took it over. So the last of the rest is a leaf, and if there is none, the last found one.
 *
 * Found pages do not stay for ever: beyond KV_FOUND_SHARE, or unused for KV_FOUND_TURNS, the last
 * of them becomes the first of the rest. It has no found descendant, and none of its ancestors is among
 * the rest, so all of the above still holds. The share leaves new pages the time to be found. The turns end
 * what the share alone would let stand: pages that nobody wants any more, beside prompts that would fit
 * into the whole cache, but take turns in what is left of it and are evicted each time before they are found.
 *
 * Promises. `outstanding` counts the pages that running sequences may still ask for. It
 * never exceeds free + evictable pages; kv_seq_start refuses what would break that.
 *
 * Free pages keep their physical memory: the budget is the user's word for
 * how much may be used, and giving pages back would mean that the kernel zeroes them again in the
 * middle of a step. They are reused last in, first out, so that memory that was never needed is not touched, but for a little ahead (prefault.h). */
#include "kv.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "platform.h"
#include "prefault.h"

enum { MEMORY_PAGE = 4096 }; /* what pages begin at a multiple of (see kv_count) */

struct kv_node {
    struct kv_page *page;
    struct kv_node *parent;
    struct kv_node **children; /* [n_children], sorted */
    int n_children, cap_children;
    int n_tokens;              /* KV_PAGE, or fewer in a leaf */
    struct kv_node *newer, *older; /* its list of evictable pages, while no sequence uses it */
    bool found;                    /* taken over by a sequence that did not make it */
    uint64_t evicted_before;       /* of a found one in its list: evicted_pages when it got there */
    uint32_t tokens[KV_PAGE];
};

struct kv_cache {
    void *arena;
    size_t page_bytes;
    int n_pages;
    struct kv_page *pages;      /* [n_pages] */
    struct kv_node *nodes;      /* [n_pages]: nodes[i] is for pages[i] */
    struct kv_page **free;      /* [n_free], the next one last */
    struct kv_node root;        /* no page, no tokens */
    struct kv_node found, rest; /* heads of the rings: older = most recently used, newer = least */
    int n_found;                /* in that ring */
    int outstanding;
    struct prefault *prefault;  /* NULL: pages get their memory when they are first written */
    _Atomic int n_free, n_evictable;
    _Atomic uint64_t hit_tokens, lookup_tokens, evicted_pages;
};

size_t kv_page_bytes(const struct hparams *hp)
{
    size_t heads = (size_t)hp->n_layer * (size_t)hp->n_head_kv;
    size_t bytes = heads * (kv_count(hp->k_dim, hp->v_dim) * sizeof(int16_t) + KV_SCALES * sizeof(uint16_t));
    return (bytes + MEMORY_PAGE - 1) / MEMORY_PAGE * MEMORY_PAGE;
}

struct kv_cache *kv_create(const struct hparams *hp, size_t budget_bytes, struct infer_error *err)
{
    size_t page_bytes = kv_page_bytes(hp);
    size_t n = budget_bytes / page_bytes;
    if (n == 0) {
        infer_fail(err, INFER_CONTEXT,
                   "the KV budget of %zu bytes holds no page: one page of %d tokens of this model takes %zu bytes",
                   budget_bytes, KV_PAGE, page_bytes);
        return NULL;
    }
    if (n > INT32_MAX / KV_PAGE) n = INT32_MAX / KV_PAGE; /* positions are ints */

    struct kv_cache *c = calloc(1, sizeof *c);
    if (!c) goto no_memory;
    c->page_bytes = page_bytes;
    c->n_pages = (int)n;
    c->pages = calloc(n, sizeof *c->pages);
    c->nodes = calloc(n, sizeof *c->nodes);
    c->free = calloc(n, sizeof(struct kv_page *));
    c->arena = platform_map_anonymous(n * page_bytes);
    if (!c->pages || !c->nodes || !c->free || !c->arena) goto no_memory;

    for (int i = 0; i < c->n_pages; i++) {
        c->pages[i].data = (char *)c->arena + (size_t)i * page_bytes;
        c->nodes[i].page = &c->pages[i];
        c->free[c->n_pages - 1 - i] = &c->pages[i];
    }
    c->found.newer = c->found.older = &c->found;
    c->rest.newer = c->rest.older = &c->rest;
    atomic_store(&c->n_free, c->n_pages);
    c->prefault = prefault_start(c->arena, n * page_bytes);
    return c;

no_memory:
    kv_free(c);
    infer_fail(err, INFER_ERR, "no memory for a KV cache of %zu bytes: lower its budget", n * page_bytes);
    return NULL;
}

void kv_free(struct kv_cache *c)
{
    if (!c) return;
    prefault_stop(c->prefault);
    for (int i = 0; c->nodes && i < c->n_pages; i++) free(c->nodes[i].children);
    free(c->root.children);
    platform_unmap(c->arena, (size_t)c->n_pages * c->page_bytes);
    free(c->pages);
    free(c->nodes);
    free(c->free);
    free(c);
}

void kv_get_stats(struct kv_cache *c, struct kv_stats *s)
{
    memset(s, 0, sizeof *s);
    s->page_bytes = c->page_bytes;
    s->arena_bytes = (size_t)c->n_pages * c->page_bytes;
    s->pages_total = c->n_pages;
    s->pages_free = atomic_load(&c->n_free);
    s->pages_cached = atomic_load(&c->n_evictable);
    s->pages_active = s->pages_total - s->pages_free - s->pages_cached;
    if (s->pages_active < 0) s->pages_active = 0; /* read while a page moved from one count to the other */
    s->hit_tokens = atomic_load(&c->hit_tokens);
    s->lookup_tokens = atomic_load(&c->lookup_tokens);
    s->evicted_pages = atomic_load(&c->evicted_pages);
}

/* ---- the lists of evictable pages ---- */

static void list_add_newest(struct kv_node *head, struct kv_node *n)
{
    n->newer = head;
    n->older = head->older;
    n->older->newer = n;
    head->older = n;
}

static void list_remove(struct kv_node *n)
{
    n->newer->older = n->older;
    n->older->newer = n->newer;
    n->newer = n->older = NULL;
}

static struct kv_node *list_oldest(struct kv_node *head)
{
    return head->newer == head ? NULL : head->newer;
}

/* Moves the found page that was not used for the longest time to the rest. */
static void demote_oldest(struct kv_cache *c)
{
    struct kv_node *n = list_oldest(&c->found);
    list_remove(n);
    c->n_found--;
    n->found = false;
    list_add_newest(&c->rest, n);
}

static void evictable_add(struct kv_cache *c, struct kv_node *n)
{
    list_add_newest(n->found ? &c->found : &c->rest, n);
    atomic_fetch_add(&c->n_evictable, 1);
    if (!n->found) return;
    n->evicted_before = atomic_load(&c->evicted_pages);
    if (++c->n_found > c->n_pages / KV_FOUND_SHARE) demote_oldest(c);
}

static void evictable_remove(struct kv_cache *c, struct kv_node *n)
{
    list_remove(n);
    atomic_fetch_sub(&c->n_evictable, 1);
    if (n->found) c->n_found--;
}

/* The leaf to evict next, NULL when every page is in use. */
static struct kv_node *next_victim(struct kv_cache *c)
{
    struct kv_node *n = list_oldest(&c->found);
    if (n && atomic_load(&c->evicted_pages) - n->evicted_before > (uint64_t)c->n_pages * KV_FOUND_TURNS)
        demote_oldest(c); /* one at a time is enough: as many leave as are evicted */
    n = list_oldest(&c->rest);
    return n ? n : list_oldest(&c->found);
}

/* ---- pages ---- */

static void page_ref(struct kv_cache *c, struct kv_page *p)
{
    if (p->refs == 1 && p->node) evictable_remove(c, p->node);
    p->refs++;
}

/* Gives up a sequence's reference, not the tree's. */
static void page_unref(struct kv_cache *c, struct kv_page *p)
{
    p->refs--;
    if (p->refs == 0) {
        c->free[atomic_load(&c->n_free)] = p;
        atomic_fetch_add(&c->n_free, 1);
    } else if (p->refs == 1 && p->node) {
        evictable_add(c, p->node);
    }
}

/* A sequence takes over a whole page of the tree. */
static void page_take(struct kv_cache *c, struct kv_page *p)
{
    page_ref(c, p);
    p->node->found = true;
}

static int child_index(const struct kv_node *parent, const struct kv_node *child);

/* Takes a leaf that no sequence uses out of the tree and frees its page. */
static void node_drop(struct kv_cache *c, struct kv_node *n)
{
    struct kv_node *parent = n->parent;
    int at = child_index(parent, n);
    parent->n_children--;
    memmove(&parent->children[at], &parent->children[at + 1],
            (size_t)(parent->n_children - at) * sizeof(struct kv_node *));
    evictable_remove(c, n);
    n->parent = NULL;
    n->page->node = NULL;
    page_unref(c, n->page);
}

/* A page with one reference, evicting if need be; NULL when every page is in use. */
static struct kv_page *page_alloc(struct kv_cache *c)
{
    if (atomic_load(&c->n_free) == 0) {
        struct kv_node *victim = next_victim(c);
        if (!victim) return NULL;
        node_drop(c, victim);
        atomic_fetch_add(&c->evicted_pages, 1);
    }
    struct kv_page *p = c->free[atomic_fetch_sub(&c->n_free, 1) - 1];
    p->refs = 1;
    prefault_reach(c->prefault, (size_t)(p - c->pages + 1) * c->page_bytes); /* new ones come in their order */
    return p;
}

/* ---- the tree ---- */

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Where tokens stand among the children of a node. */
struct spot {
    int index;            /* before which child they would be inserted */
    struct kv_node *near; /* the child that shares the most leading tokens, NULL if none shares any */
    int common;           /* how many */
};

static struct spot find_spot(const struct kv_node *parent, const uint32_t *tokens, int n)
{
    struct spot s = {0, NULL, 0};
    int lo = 0, hi = parent->n_children;
    /* Both neighbours of the final place are met on the way, and no child shares more than they do. */
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        struct kv_node *child = parent->children[mid];
        int limit = min_int(child->n_tokens, n), common = 0;
        while (common < limit && child->tokens[common] == tokens[common]) common++;
        if (common > s.common) {
            s.common = common;
            s.near = child;
        }
        if (common == limit) { /* one is the beginning of the other: nothing comes closer */
            lo = mid;
            break;
        }
        if (child->tokens[common] < tokens[common]) lo = mid + 1;
        else hi = mid;
    }
    s.index = lo;
    return s;
}

static int child_index(const struct kv_node *parent, const struct kv_node *child)
{
    return find_spot(parent, child->tokens, child->n_tokens).index;
}

/* Enters a sequence's page as a child; the tree takes its own reference. False when there is no memory. */
static bool node_insert(struct kv_node *parent, int index, struct kv_node *n, const uint32_t *tokens, int n_tokens)
{
    if (parent->n_children == parent->cap_children) {
        int cap = parent->cap_children ? parent->cap_children * 2 : 1; /* most nodes have one child */
        struct kv_node **grown = realloc(parent->children, (size_t)cap * sizeof(struct kv_node *));
        if (!grown) return false;
        parent->children = grown;
        parent->cap_children = cap;
    }
    memmove(&parent->children[index + 1], &parent->children[index],
            (size_t)(parent->n_children - index) * sizeof(struct kv_node *));
    parent->children[index] = n;
    parent->n_children++;
    n->parent = parent;
    n->n_children = 0;
    n->n_tokens = n_tokens;
    n->found = false;
    memcpy(n->tokens, tokens, (size_t)n_tokens * sizeof *tokens);
    n->page->node = n;
    n->page->refs++;
    return true;
}

/* The node that a sequence's page i continues, or NULL if that one is not in the tree. */
static struct kv_node *seq_parent(const struct kv_seq *s, int i)
{
    return i == 0 ? &s->cache->root : s->pages[i - 1]->node;
}

/* Puts page i of s, which holds these tokens, into the tree, or swaps it for the one there.
 * False if it could not be entered (no memory). */
static bool seq_enter_page(struct kv_seq *s, int i, const uint32_t *tokens, int n_tokens)
{
    struct kv_cache *c = s->cache;
    struct kv_node *parent = seq_parent(s, i);
    if (!parent) return false;
    struct spot at = find_spot(parent, tokens, n_tokens);
    if (at.near && at.common == n_tokens) { /* known already */
        if (n_tokens == KV_PAGE) {
            page_take(c, at.near->page);
            page_unref(c, s->pages[i]);
            s->pages[i] = at.near->page;
        }
        return true;
    }
    if (at.near && at.common == at.near->n_tokens) node_drop(c, at.near); /* a part of what comes in its place */
    return node_insert(parent, at.index, &c->nodes[s->pages[i] - c->pages], tokens, n_tokens);
}

/* ---- sequences ---- */

static int pages_of(int n_tokens)
{
    return n_tokens / KV_PAGE + (n_tokens % KV_PAGE != 0);
}

int kv_seq_start(struct kv_cache *c, struct kv_seq *s, const uint32_t *tokens, int n, int n_max, int use_cache)
{
    memset(s, 0, sizeof *s);
    int max_pages = pages_of(n_max);
    if (max_pages > c->n_pages) return KV_NO_ROOM;
    s->pages = malloc((size_t)max_pages * sizeof(struct kv_page *));
    if (!s->pages) return KV_NO_MEMORY;

    /* The full pages first, for they may be what makes it fit; a page can be copied only
     * once it is sure that one may be taken. */
    struct kv_node *node = &c->root;
    while (use_cache && n - s->n_tokens > KV_PAGE) {
        struct spot at = find_spot(node, tokens + s->n_tokens, KV_PAGE);
        if (at.common < KV_PAGE) break;
        node = at.near;
        page_ref(c, node->page);
        s->pages[s->n_pages++] = node->page;
        s->n_tokens += KV_PAGE;
    }
    int available = atomic_load(&c->n_free) + atomic_load(&c->n_evictable);
    if (c->outstanding + max_pages - s->n_pages > available) {
        while (s->n_pages > 0) page_unref(c, s->pages[--s->n_pages]);
        free(s->pages);
        memset(s, 0, sizeof *s);
        return KV_NO_ROOM;
    }
    for (int i = 0; i < s->n_pages; i++) s->pages[i]->node->found = true; /* only now is it sure that they are taken */
    s->cache = c;
    s->max_pages = max_pages;
    c->outstanding += max_pages - s->n_pages;
    if (use_cache) {
        atomic_fetch_add(&c->lookup_tokens, (uint64_t)n);
        atomic_fetch_add(&c->hit_tokens, (uint64_t)s->n_tokens);
        kv_seq_match(s, tokens, n);
    }
    return s->n_tokens;
}

int kv_seq_match(struct kv_seq *s, const uint32_t *tokens, int n)
{
    struct kv_cache *c = s->cache;
    int before = s->n_tokens;
    for (;;) {
        int i = s->n_tokens / KV_PAGE, base = i * KV_PAGE;
        int want = min_int(KV_PAGE, n - 1 - base); /* the last token is computed */
        struct kv_node *parent = seq_parent(s, i);
        if (want <= 0 || !parent) break;
        struct spot at = find_spot(parent, tokens + base, want);
        if (base + at.common <= s->n_tokens) break;
        if (at.common == KV_PAGE) {
            page_take(c, at.near->page);
            if (s->n_pages > i) { /* begun alone */
                page_unref(c, s->pages[i]);
            } else {
                s->n_pages++;
                c->outstanding--;
            }
            s->pages[i] = at.near->page;
            s->n_tokens = base + KV_PAGE;
            continue;
        }
        /* Part of a page. Holding it keeps it from being the one that is evicted for its copy. That does not
         * make it a found one: else prompts that share no more than a template's first words would
         * all keep each other's first page. */
        page_ref(c, at.near->page);
        if (s->n_pages > i || kv_seq_reserve(s, base + at.common) == 0) {
            memcpy(s->pages[i]->data, at.near->page->data, c->page_bytes);
            s->n_tokens = base + at.common;
        }
        page_unref(c, at.near->page);
        break;
    }
    atomic_fetch_add(&c->hit_tokens, (uint64_t)(s->n_tokens - before));
    return s->n_tokens - before;
}

int kv_seq_reserve(struct kv_seq *s, int n_tokens)
{
    struct kv_cache *c = s->cache;
    int want = pages_of(n_tokens), had = s->n_pages;
    if (want > s->max_pages) return -1;
    while (s->n_pages < want) {
        struct kv_page *p = page_alloc(c);
        if (!p) { /* only for kv_seq_match, which holds one page more than was promised */
            while (s->n_pages > had) page_unref(c, s->pages[--s->n_pages]);
            return -1;
        }
        s->pages[s->n_pages++] = p;
    }
    c->outstanding -= s->n_pages - had;
    return 0;
}

void kv_seq_publish(struct kv_seq *s, const uint32_t *tokens)
{
    int full = s->n_tokens / KV_PAGE, i = full;
    while (i > 0 && !s->pages[i - 1]->node) i--;
    while (i < full && seq_enter_page(s, i, tokens + (size_t)i * KV_PAGE, KV_PAGE)) i++;
}

void kv_seq_end(struct kv_seq *s, const uint32_t *tokens, int keep)
{
    struct kv_cache *c = s->cache;
    if (!c) return;
    if (keep) {
        kv_seq_publish(s, tokens);
        int full = s->n_tokens / KV_PAGE, rest = s->n_tokens % KV_PAGE;
        if (rest) seq_enter_page(s, full, tokens + (size_t)full * KV_PAGE, rest);
    }
    c->outstanding -= s->max_pages - s->n_pages;
    /* From the end, so that a page enters the list of evictable ones before those it continues. */
    while (s->n_pages > 0) page_unref(c, s->pages[--s->n_pages]);
    free(s->pages);
    memset(s, 0, sizeof *s);
}
