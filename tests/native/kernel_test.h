/* What the tests of the kernel tables share: reproducible random numbers, memory that
 * ends at a page nobody may touch, and the walk over the tables of this machine. One thread only. */
#ifndef INFER_KERNEL_TEST_H
#define INFER_KERNEL_TEST_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "kernels.h"

static uint64_t random_state = 1;

/* 32 random bits: a counter through a mixing function (splitmix64). */
static inline uint32_t random_bits(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}

/* Uniform in [-1, 1). */
static inline float random_float(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

/* Bytes whose last one is followed by a page that cannot be accessed, and whose page before the
 * first cannot be either. The tests are short-lived: a region is kept until the process ends. */
struct guarded {
    unsigned char *page, *end;
};

static inline struct guarded guarded_alloc(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (bytes + page - 1) / page * page;
    unsigned char *p = mmap(NULL, n + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) || mprotect(p + page + n, page, PROT_NONE)) {
        perror("guarded_alloc");
        exit(1);
    }
    return (struct guarded){p + page, p + page + n};
}

static inline void *checked_calloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        perror("calloc");
        exit(1);
    }
    return p;
}

/* Scratch of exactly the size that a table asks for: writing past it ends the test at once, writing before it too. */
static inline void *table_scratch(const struct kernels *k)
{
    static size_t capacity;
    static struct guarded g;
    if (k->scratch_bytes > capacity) {
        capacity = k->scratch_bytes;
        g = guarded_alloc(capacity);
    }
    size_t rounded = (k->scratch_bytes + 63) / 64 * 64;
    return g.end - rounded;
}

/* for_each_table(k): every table of this machine but the scalar one. */
#define for_each_table(k)                                                                             \
    for (const struct kernels *const *at_ = kernels_available(), *k = *at_; (k = *at_) != NULL; at_++) \
        if (k != &kernels_scalar)

static inline int float_bits_differ(const float *a, const float *b, size_t n, size_t *where)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) == 0) continue;
        if (isnan(a[i]) && isnan(b[i])) continue; /* which NaN is not part of the contract */
        *where = i;
        return 1;
    }
    return 0;
}

#define CHECK_SAME(a, b, n, ...)                                                       \
    do {                                                                               \
        size_t where_;                                                                 \
        if (float_bits_differ(a, b, (size_t)(n), &where_)) {                           \
            fprintf(stderr, __VA_ARGS__);                                              \
            CHECKF(0, ": element %zu is %a, scalar has %a", where_, (double)(a)[where_], \
                   (double)(b)[where_]);                                               \
        }                                                                              \
    } while (0)

#endif
