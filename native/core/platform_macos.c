/* What is macOS' own of platform.h, with public interfaces only.
 *
 * Mappings belong to the caller until it unmaps them. Every function may be
 * called from any thread; platform_*_thread change the calling thread only. */
#define _DARWIN_C_SOURCE
#include "platform_posix.h"

#include "platform.h"

#include <mach/vm_inherit.h>
#include <pthread/qos.h>
#include <sys/mman.h>
#include <sys/sysctl.h>
#include <time.h>
#include <unistd.h>

enum { WORKER_RELATIVE_PRIORITY = -10 }; /* within the class, of 0 to -15 */

void *platform_map_anonymous(size_t bytes)
{
    if (bytes == 0) return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (minherit(p, bytes, VM_INHERIT_NONE) != 0) {
        munmap(p, bytes);
        return NULL;
    }
    return p;
}

bool platform_drop_pages(void *pages, size_t bytes)
{
    /* No advice of macOS promises zeros afterwards; a fresh mapping in place does. */
    int flags = MAP_PRIVATE | MAP_ANON | MAP_FIXED;
    if (mmap(pages, bytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) return false;
    minherit(pages, bytes, VM_INHERIT_NONE);
    return true;
}

void platform_advise_weights(void *map, size_t bytes)
{
    (void)map; /* the system takes no advice on the size of a file's pages */
    (void)bytes;
}

void platform_name_thread(const char *name)
{
    pthread_setname_np(name);
}

bool platform_can_lower_priority(void)
{
    return true;
}

bool platform_populate(void *p, size_t bytes)
{
    (void)p, (void)bytes;
    return false; /* nothing public fetches memory without writing to it */
}

void platform_worker_thread(const char *name)
{
    platform_prepare_thread(name);
    /* Below the main thread inside its own class: a lower class would move the thread to the efficiency cores. */
    pthread_set_qos_class_self_np(QOS_CLASS_DEFAULT, WORKER_RELATIVE_PRIORITY);
}

void platform_idle_thread(const char *name)
{
    platform_prepare_thread(name);
    pthread_set_qos_class_self_np(QOS_CLASS_BACKGROUND, 0);
}

int platform_cpu_count(void)
{
    /* Threads of a step wait for one another, so the performance cores set the
     * number where the machine has two kinds. macOS has no affinity and no control groups. */
    int n = 0;
    size_t len = sizeof n;
    if (sysctlbyname("hw.perflevel0.logicalcpu", &n, &len, NULL, 0) == 0 && n > 0) return n;
    n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n;
}

static bool has_feature(const char *name)
{
    int value = 0;
    size_t len = sizeof value;
    return sysctlbyname(name, &value, &len, NULL, 0) == 0 && value != 0; /* unknown on the other processor */
}

struct platform_arm64 platform_arm64_features(void)
{
    return (struct platform_arm64){
        .dotprod = has_feature("hw.optional.arm.FEAT_DotProd"),
        .i8mm = has_feature("hw.optional.arm.FEAT_I8MM"),
    };
}

struct platform_x86 platform_x86_registers(void)
{
    /* Not what XCR0 says: the system keeps AVX-512's registers from a thread's first use of them on. */
    return (struct platform_x86){
        .ymm = has_feature("hw.optional.avx1_0"),
        .zmm = has_feature("hw.optional.avx512f"),
    };
}

uint64_t platform_now_us(void)
{
    return clock_gettime_nsec_np(CLOCK_UPTIME_RAW) / 1000;
}

uint64_t platform_thread_preemptions(void)
{
    static _Thread_local uint64_t calls; /* only the process' are counted */
    return ++calls;
}

/* Parking: the kernel's own wait-on-address is public only since macOS 14.4, so
 * words share a few mutexes and conditions by their address. A wake reaches every
 * thread of its bucket; those whose word did not change return early, which park's contract allows. */
static struct bucket {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
} buckets[] = {
#define BUCKET {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}
    BUCKET, BUCKET, BUCKET, BUCKET, BUCKET, BUCKET, BUCKET, BUCKET,
    BUCKET, BUCKET, BUCKET, BUCKET, BUCKET, BUCKET, BUCKET, BUCKET,
#undef BUCKET
};

static struct bucket *bucket_of(const _Atomic uint32_t *word)
{
    uint64_t h = (uint64_t)(uintptr_t)word * 0x9E3779B97F4A7C15u; /* Fibonacci hashing */
    return &buckets[(h >> 32) % (sizeof buckets / sizeof *buckets)];
}

void platform_park(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_us)
{
    struct bucket *b = bucket_of(word);
    pthread_mutex_lock(&b->mutex);
    if (atomic_load(word) == expected) {
        if (timeout_us) {
            struct timespec ts = {.tv_sec = (time_t)(timeout_us / 1000000),
                                  .tv_nsec = (long)(timeout_us % 1000000) * 1000};
            pthread_cond_timedwait_relative_np(&b->cond, &b->mutex, &ts);
        } else {
            pthread_cond_wait(&b->cond, &b->mutex);
        }
    }
    pthread_mutex_unlock(&b->mutex);
}

void platform_wake(_Atomic uint32_t *word, int all)
{
    (void)all; /* the bucket is shared: waking one could wake the wrong one */
    struct bucket *b = bucket_of(word);
    pthread_mutex_lock(&b->mutex);
    pthread_cond_broadcast(&b->cond);
    pthread_mutex_unlock(&b->mutex);
}
