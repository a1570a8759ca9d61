/* What is Linux' own of platform.h (glibc and musl).
 *
 * Mappings belong to the caller until it unmaps them. Every function may be
 * called from any thread; platform_*_thread change the calling thread only. */
#include "platform_posix.h"

#include "platform.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older kernels refuse it */
#endif

enum {
    HUGE_PAGE_BYTES = 2 << 20, /* of x86-64, and of aarch64 with 4 KB pages */
    WORKER_NICE = 10,          /* added to the main thread's: about a tenth of its weight */
    IDLE_NICE = 19,            /* the most */
    WORKER_SLICE_NS = 10000000 /* longer than the kernel's own (3 ms): see lower_priority */
};

/* struct sched_attr of sched_setattr(2), version 0; not every libc has it. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

void *platform_map_anonymous(size_t bytes)
{
    if (bytes == 0) return NULL;
    /* A huge page needs 2 MB alignment, which mmap does not promise: map more and cut the ends off. */
    size_t slack = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (bytes > SIZE_MAX - slack - page) return NULL;
    bytes = (bytes + page - 1) / page * page;
    char *base = mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    char *p = base;
    if (slack) {
        size_t head = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
        p = base + head;
        if (head) munmap(base, head);
        if (slack > head) munmap(p + bytes, slack - head);
        madvise(p, bytes, MADV_HUGEPAGE); /* only speed: a kernel without them may refuse */
    }
    /* Without this a child that saves RDB would copy every page that a step writes. */
    if (madvise(p, bytes, MADV_DONTFORK) != 0) {
        munmap(p, bytes);
        return NULL;
    }
    return p;
}

bool platform_populate(void *p, size_t bytes)
{
    return madvise(p, bytes, MADV_POPULATE_WRITE) == 0;
}

bool platform_drop_pages(void *pages, size_t bytes)
{
    return madvise(pages, bytes, MADV_DONTNEED) == 0;
}

void platform_advise_weights(void *map, size_t bytes)
{
    /* File systems with large folios then read what is not cached yet into huge pages, which are
     * streamed a quarter faster from memory. Others may refuse. */
    madvise(map, bytes, MADV_HUGEPAGE);
}

void platform_name_thread(const char *name)
{
    pthread_setname_np(pthread_self(), name);
}

/* A smaller share of the processors is not enough: a thread that wakes up, as Redis' main thread does for each
 * request, must also get one at once, and the kernel lets whoever runs finish a slice first. It makes an
 * exception (6.12 and newer) for one that wakes up with a shorter slice. Older kernels know no slices, and let
 * wakers in sooner. SCHED_BATCH in addition makes rare waits longer; SCHED_IDLE would leave nothing on a busy machine. */
static void lower_priority(int by)
{
    /* Linux keeps the nice value per thread; the kernel clips it at 19. */
    int main_nice = getpriority(PRIO_PROCESS, (id_t)getpid());
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), main_nice + by);
    struct scheduling s = {
        .size = sizeof s,
        .policy = SCHED_OTHER,
        .nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid)),
        .runtime = WORKER_SLICE_NS,
    };
    syscall(SYS_sched_setattr, 0, &s, 0); /* refused in some containers: the nice value remains */
}

/* A filter of system calls (seccomp) may end the process instead of refusing the call, and the one of Debian's
 * unit for redis-server does. Where there is a filter a child goes first. It shares no memory with us, since older
 * kernels end everybody who shares memory with a process that dies so; and it has no exit signal, so that
 * Redis, which waits for children of its own, never sees it. */
static bool can_lower_priority;

static void ask_for_lower_priority(void)
{
    can_lower_priority = true;
    if (prctl(PR_GET_SECCOMP) != SECCOMP_MODE_FILTER) return;
    long child = syscall(SYS_clone, 0L, NULL, NULL, NULL, NULL);
    if (child == 0) {
        prctl(PR_SET_DUMPABLE, 0); /* no core file */
        lower_priority(WORKER_NICE);
        syscall(SYS_exit_group, 0);
    }
    int status = 0;
    while (child > 0 && waitpid((pid_t)child, &status, __WALL) < 0)
        if (errno != EINTR) child = -1;
    can_lower_priority = child > 0 && WIFEXITED(status);
}

bool platform_can_lower_priority(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ask_for_lower_priority);
    return can_lower_priority;
}

void platform_worker_thread(const char *name)
{
    platform_prepare_thread(name);
    if (platform_can_lower_priority()) lower_priority(WORKER_NICE);
}

void platform_idle_thread(const char *name)
{
    platform_prepare_thread(name);
    if (platform_can_lower_priority()) lower_priority(IDLE_NICE);
}

/* Processors that the quota of the control group (version 2) at `dir` allows,
 * or INT_MAX. Rounded down: a group that used up its quota stops as a whole,
 * Redis' main thread too. */
static int cgroup_limit(const char *dir)
{
    char path[PATH_MAX + 32], max[32];
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", dir);
    FILE *f = fopen(path, "re");
    if (!f) return INT_MAX;
    long long period = 0;
    int limit = INT_MAX;
    if (fscanf(f, "%31s %lld", max, &period) == 2 && strcmp(max, "max") != 0 && period > 0) {
        long long cpus = atoll(max) / period;
        limit = cpus < 1 ? 1 : cpus > INT_MAX ? INT_MAX : (int)cpus;
    }
    fclose(f);
    return limit;
}

/* The smallest limit of this process' control group and those above it. */
static int cgroup_cpus(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f) return INT_MAX;
    char line[PATH_MAX], *dir = NULL;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "0::/", 4) == 0) { /* version 2's entry */
            line[strcspn(line, "\n")] = 0;
            dir = line + 3;
            break;
        }
    fclose(f);
    if (!dir) return INT_MAX;
    int limit = INT_MAX;
    for (;;) {
        int here = cgroup_limit(dir);
        if (here < limit) limit = here;
        char *slash = strrchr(dir, '/');
        if (!slash) return limit;
        *slash = 0; /* the parent; "" is the root that this process sees */
    }
}

int platform_cpu_count(void)
{
    int allowed = 0;
    for (int cpus = 1024; cpus <= 1 << 16 && !allowed; cpus *= 2) { /* EINVAL: the kernel's set is larger */
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (!set) break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        if (sched_getaffinity(0, bytes, set) == 0)
            allowed = CPU_COUNT_S(bytes, set);
        else if (errno != EINVAL)
            cpus = 1 << 16;
        CPU_FREE(set);
    }
    if (allowed < 1) allowed = (int)sysconf(_SC_NPROCESSORS_ONLN);
    int limit = cgroup_cpus();
    if (allowed > limit) allowed = limit;
    return allowed < 1 ? 1 : allowed;
}

struct platform_arm64 platform_arm64_features(void)
{
    struct platform_arm64 has = {false, false};
#ifdef __aarch64__
    /* The kernel's interface, by number: headers of older systems do not name the later ones. */
    has.dotprod = getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
    has.i8mm = getauxval(AT_HWCAP2) >> 13 & 1;   /* HWCAP2_I8MM */
#endif
    return has;
}

struct platform_x86 platform_x86_registers(void)
{
    struct platform_x86 saved = {false, false, false};
#ifdef __x86_64__
    unsigned eax, ebx, ecx, edx;
    uint32_t low = 0, high; /* of XCR0, which says what XSAVE saves */
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx >> 27 & 1) /* OSXSAVE: the system has set XCR0 */
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    saved.ymm = (low & 0x06) == 0x06; /* SSE and AVX */
    saved.zmm = (low & 0xE6) == 0xE6; /* and the three parts of AVX-512 */
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 }; /* arch_prctl(2) */
    saved.tmm = (low & 0x60000) == 0x60000 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#endif
    return saved;
}

uint64_t platform_now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t platform_thread_preemptions(void)
{
    struct rusage u;
    return getrusage(RUSAGE_THREAD, &u) == 0 ? (uint64_t)u.ru_nivcsw : 0;
}

void platform_park(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_us)
{
    struct timespec ts = {.tv_sec = (time_t)(timeout_us / 1000000), .tv_nsec = (long)(timeout_us % 1000000) * 1000};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_us ? &ts : NULL, NULL, 0);
}

void platform_wake(_Atomic uint32_t *word, int all)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, all ? INT_MAX : 1, NULL, NULL, 0);
}
