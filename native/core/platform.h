/* What the operating system gives. platform_posix.c has what is the same
 * everywhere, platform_linux.c and platform_macos.c what differs; the build
 * picks one of them. No other file of native/ asks for the platform. */
#ifndef INFER_PLATFORM_H
#define INFER_PLATFORM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Anonymous zeroed memory, page aligned, kept out of fork (a child that saves
 * RDB neither copies nor sees it) and backed by huge pages where the system
 * has them. NULL when there is none. */
void *platform_map_anonymous(size_t bytes);
void platform_unmap(void *p, size_t bytes);

/* Gets physical memory for a part of such a mapping, page aligned. Others may use it meanwhile: what it holds stays.
 * False: the system cannot, or has no memory left. */
bool platform_populate(void *p, size_t bytes);

/* Gives the physical memory behind [p, p+bytes) back; it reads as zero later. */
void platform_release(void *p, size_t bytes);

/* A read-only shared mapping of a whole regular file. Returns NULL and sets
 * errno on failure. An empty file fails with EINVAL. */
const void *platform_map_file(const char *path, size_t *bytes);
void platform_unmap_file(const void *p, size_t bytes);

/* For a new worker thread: its name (at most 15 characters), every signal
 * blocked that can come from outside (a fault of the thread's own still reaches
 * the process' handler), and a lower priority than the process' main thread. */
void platform_worker_thread(const char *name);

/* Whether the system lets threads lower their priority; if not, worker threads keep the main thread's. The first
 * call may cost a fork, so ask before the process has grown. */
bool platform_can_lower_priority(void);

/* As platform_worker_thread, with the lowest priority: for work that nobody waits for. */
void platform_idle_thread(const char *name);

/* Starts a thread in which all signals are blocked from its first moment on. stack_bytes 0: the system's default.
 * 0, or the number of the error. */
int platform_thread_start(pthread_t *thread, size_t stack_bytes, void *(*main)(void *), void *arg);

/* Processors that this process may run on (affinity and, where the system has
 * them, control group limits respected); at least 1. */
int platform_cpu_count(void);

/* Extensions of 64-bit ARM that this processor and the system offer; on others all false. */
struct platform_arm64 {
    bool dotprod; /* FEAT_DotProd: SDOT */
    bool i8mm;    /* FEAT_I8MM: SMMLA */
};
struct platform_arm64 platform_arm64_features(void);

/* Registers of x86-64 that the system keeps for each thread; the instructions that use others fault
 * though the processor has them. On other processors all false. */
struct platform_x86 {
    bool ymm; /* of AVX */
    bool zmm; /* of AVX-512, with the mask registers */
    bool tmm; /* of AMX: 8 KB for each thread that uses them, which Linux gives to a process that asks, as this does */
};
struct platform_x86 platform_x86_registers(void);

/* Monotonic clock, microseconds. */
uint64_t platform_now_us(void);

/* Processor time that the calling thread has used, microseconds. */
uint64_t platform_thread_cpu_us(void);

/* How often somebody else was given the calling thread's processor while it could have run on. Where the
 * system does not count that, each call counts as one. */
uint64_t platform_thread_preemptions(void);

/* Parks while *word == expected, at most timeout_us (0: no limit); may return
 * early. Wakes come from platform_wake. Both are safe from any thread. */
void platform_park(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_us);
void platform_wake(_Atomic uint32_t *word, int all);

#endif
