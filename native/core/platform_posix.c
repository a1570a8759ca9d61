/* The part of platform.h that is the same on every POSIX system.
 *
 * Mappings belong to the caller until it unmaps them. Every function may be
 * called from any thread; platform_prepare_thread changes the calling thread only. */
#include "platform_posix.h"

#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void platform_unmap(void *p, size_t bytes)
{
    if (p) munmap(p, bytes);
}

void platform_release(void *p, size_t bytes)
{
    /* Only whole pages can go; the kernel would widen a partial one at the end. */
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)p + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)p + bytes) / page * page;
    if (begin >= end) {
        memset(p, 0, bytes);
        return;
    }
    memset(p, 0, begin - (uintptr_t)p);
    memset((void *)end, 0, (uintptr_t)p + bytes - end);
    if (!platform_drop_pages((void *)begin, end - begin)) memset((void *)begin, 0, end - begin);
}

const void *platform_map_file(const char *path, size_t *bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* NONBLOCK: a FIFO must not hold us */
    if (fd < 0) return NULL;
    struct stat st;
    const void *p = NULL;
    int failed = 0;
    if (fstat(fd, &st) != 0) {
        failed = errno;
    } else if (!S_ISREG(st.st_mode) || st.st_size <= 0) {
        failed = S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
    } else {
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            failed = errno;
        } else {
            p = map;
            *bytes = (size_t)st.st_size;
            platform_advise_weights(map, *bytes);
        }
    }
    close(fd);
    if (!p) errno = failed;
    return p;
}

void platform_unmap_file(const void *p, size_t bytes)
{
    if (p) munmap((void *)(uintptr_t)p, bytes);
}

void platform_prepare_thread(const char *name)
{
    char cut[16];
    snprintf(cut, sizeof cut, "%s", name);
    platform_name_thread(cut);

    sigset_t set;
    sigfillset(&set);
    /* A blocked fault would kill the process without Redis' crash report. */
    sigdelset(&set, SIGSEGV);
    sigdelset(&set, SIGBUS);
    sigdelset(&set, SIGFPE);
    sigdelset(&set, SIGILL);
    sigdelset(&set, SIGABRT);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
}

int platform_thread_start(pthread_t *thread, size_t stack_bytes, void *(*main)(void *), void *arg)
{
    sigset_t all, old; /* a thread inherits the mask */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    if (stack_bytes) pthread_attr_setstacksize(&attr, stack_bytes);
    int failed = pthread_create(thread, &attr, main, arg);
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed;
}

uint64_t platform_thread_cpu_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}
