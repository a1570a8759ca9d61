/* Priorities of worker threads where a filter of system calls (seccomp) ends processes that change them, as
 * systemd's units do. Each case runs in a child, which the filter or what is tested may end. */
#include "platform.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { FINE, WRONG, NO_FILTERS_HERE };

/* From now on setpriority and sched_setattr do `action`. */
static int filter(unsigned action)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setpriority, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_setattr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all);
}

static int become_a_worker(unsigned action, bool expected)
{
    if (action != SECCOMP_RET_ALLOW && filter(action) != 0) return NO_FILTERS_HERE;
    int before = getpriority(PRIO_PROCESS, 0);
    platform_worker_thread("infer-test");
    int after = getpriority(PRIO_PROCESS, 0);
    if (platform_can_lower_priority() != expected) return WRONG;
    if (waitpid(-1, NULL, __WALL) != -1 || errno != ECHILD) return WRONG; /* nobody is left */
    return (after > before) == (expected && before < 19 && action == SECCOMP_RET_ALLOW) ? FINE : WRONG;
}

static void in_a_child(unsigned action, bool expected)
{
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) _exit(become_a_worker(action, expected));
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECKF(WIFEXITED(status), "ended by signal %d", WTERMSIG(status));
    if (WIFEXITED(status) && WEXITSTATUS(status) == NO_FILTERS_HERE)
        fputs("left out: this system has no filters of system calls\n", stderr);
    else
        CHECKF(status == 0, "status %d", status);
}

static void a_worker_has_a_lower_priority(void)
{
    in_a_child(SECCOMP_RET_ALLOW, true);
}

static void a_worker_survives_a_filter_that_ends_the_process(void)
{
    in_a_child(SECCOMP_RET_KILL_PROCESS, false);
}

static void a_worker_survives_a_filter_that_refuses(void)
{
    in_a_child(SECCOMP_RET_ERRNO | EPERM, true);
}

int main(void)
{
    RUN(a_worker_has_a_lower_priority);
    RUN(a_worker_survives_a_filter_that_ends_the_process);
    RUN(a_worker_survives_a_filter_that_refuses);
    return check_result();
}
