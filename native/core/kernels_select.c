/* Which kernel table to use: by the CPU's features, or by name.
 *
 * The build defines INFER_KERNELS_<SET> for each kernel library that it links
 * in; each of those says itself whether this CPU can run it. Any thread. */
#include "kernels.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    const char *name;
    const struct kernels *(*get)(void); /* NULL: not built for this machine */
};

static const struct kernels *get_scalar(void) { return &kernels_scalar; }

/* What may be emulated. */
#ifdef INFER_KERNELS_AVX512
#define AVX512_ENTRIES {"amx", kernels_amx}, {"avx512", kernels_avx512},
#else
#define AVX512_ENTRIES {"amx", NULL}, {"avx512", NULL},
#endif
#ifdef INFER_KERNELS_AVX2
#define AVXVNNI_ENTRY {"avxvnni", kernels_avxvnni},
#else
#define AVXVNNI_ENTRY {"avxvnni", NULL},
#endif

static const struct entry entries[] = { /* best first */
#ifndef INFER_EMULATE
    AVX512_ENTRIES
    AVXVNNI_ENTRY
#endif
#ifdef INFER_KERNELS_AVX2
    {"avx2", kernels_avx2},
#else
    {"avx2", NULL},
#endif
#ifdef INFER_KERNELS_NEON
    {"neon-i8mm", kernels_neon_i8mm},
    {"neon-dotprod", kernels_neon_dotprod},
    {"neon", kernels_neon},
#else
    {"neon-i8mm", NULL},
    {"neon-dotprod", NULL},
    {"neon", NULL},
#endif
    {"scalar", get_scalar},
#ifdef INFER_EMULATE
    AVX512_ENTRIES /* for tests, and slower than all others */
    AVXVNNI_ENTRY
#endif
};

enum { N_ENTRIES = sizeof entries / sizeof *entries };

static const struct kernels *available[N_ENTRIES + 1];

static void find_available(void)
{
    int n = 0;
    for (int i = 0; i < N_ENTRIES; i++) {
        const struct kernels *k = entries[i].get ? entries[i].get() : NULL;
        if (k) available[n++] = k;
    }
}

const struct kernels *const *kernels_available(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_available);
    return available;
}

const struct kernels *kernels_by_name(const char *name, const char **why)
{
    for (int i = 0; i < N_ENTRIES; i++) {
        if (strcmp(entries[i].name, name) != 0) continue;
        if (!entries[i].get) {
            *why = "this build has no such kernels: they are of another processor architecture or were left out";
            return NULL;
        }
        const struct kernels *k = entries[i].get();
        if (!k) *why = "this processor lacks the instructions that they need";
        return k;
    }
    *why = "unknown kernels: use scalar, avx2, avxvnni, avx512, amx, neon, neon-dotprod or neon-i8mm";
    return NULL;
}

const struct kernels *kernels_select(const char **why)
{
    const char *name = getenv("REDIS_INFER_KERNELS");
    return name && *name ? kernels_by_name(name, why) : kernels_available()[0];
}
