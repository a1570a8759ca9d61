/* The thread that writes to Redis: see writer.h. Owns the items that wait.
 *
 * Items come in through a list of atomics, newest first, which the writer takes over as a
 * whole. It parks on `bell`; who pushes makes the system call only where the writer
 * sleeps and the item is a reason to wake it.
 *
 * Turns. Redis' lock is a plain mutex: a thread that gives it back and takes it again at once may shut
 * the main thread out, and what was written is seen by blocked readers only when the event loop goes round. So
 * each hold leaves a call for the event loop, which wakes it, and the next hold waits until it was made.
 *
 * Priority. The main thread can't go on while this one holds the lock, so the writer runs at the main
 * thread's priority, above the workers that compute. */
#include "writer.h"

#include "platform.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum sleep { AWAKE, UNTIL_ITEM, UNTIL_URGENT, UNTIL_TURN };

static struct {
    bool running; /* main thread */
    pthread_t thread;
    RedisModuleCtx *ctx; /* used with the lock only */

    struct write_item *_Atomic arrivals; /* newest first */
    _Atomic uint32_t bell;
    _Atomic int sleep; /* enum sleep: what the writer parks for */
    _Atomic bool turn_due; /* the event loop has not come round since the last hold */
    _Atomic bool stop;

    /* the writer's */
    struct write_item *first, *last;
    bool urgent; /* one of them is */
    uint64_t drained_at;

    struct writer_latency latency;
    _Atomic uint64_t slowest_us;
} w;

static void ring(void)
{
    atomic_fetch_add(&w.bell, 1);
    platform_wake(&w.bell, 0);
}

/* Parks for what `why` says, unless the bell has moved since `seen` was read. Returns early now and then. */
static void park(enum sleep why, uint32_t seen, uint64_t timeout_us)
{
    atomic_store(&w.sleep, why);
    if (atomic_load(&w.bell) == seen) platform_park(&w.bell, seen, timeout_us);
    atomic_store(&w.sleep, AWAKE);
}

void writer_push(struct write_item *item)
{
    bool urgent = item->urgent; /* once pushed it may be gone */
    item->next = atomic_load(&w.arrivals);
    while (!atomic_compare_exchange_weak(&w.arrivals, &item->next, item)) {
    }
    /* Sequentially consistent here and in park(): either it sees the bell, or we see it asleep. */
    atomic_fetch_add(&w.bell, 1);
    int sleep = atomic_load(&w.sleep);
    if (sleep == UNTIL_ITEM || (sleep == UNTIL_URGENT && urgent)) platform_wake(&w.bell, 0);
}

static void take_arrivals(void)
{
    struct write_item *newest = atomic_exchange(&w.arrivals, NULL), *oldest = NULL, *last = newest;
    while (newest) {
        struct write_item *next = newest->next;
        w.urgent |= newest->urgent;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    if (!oldest) return;
    if (w.last) w.last->next = oldest;
    else w.first = oldest;
    w.last = last;
}

/* Main thread, in its event loop. */
static void on_turn(void *unused)
{
    (void)unused;
    atomic_store(&w.turn_due, false);
    atomic_fetch_add(&w.bell, 1);
    if (atomic_load(&w.sleep) == UNTIL_TURN) platform_wake(&w.bell, 0);
}

/* One hold of the lock. False: the first item can't be written now. */
static bool hold(void)
{
    bool refused = false;
    uint64_t asked = platform_now_us();
    RedisModule_ThreadSafeContextLock(w.ctx);
    uint64_t began = platform_now_us(), cpu_began = platform_thread_cpu_us(), now = began;
    while (w.first && !atomic_load(&w.stop)) {
        struct write_item *item = w.first, *next = item->next;
        if (!item->write(w.ctx, item)) {
            refused = true;
            break;
        }
        w.first = next;
        if (!next) w.last = NULL;
        now = platform_now_us();
        if (now - began >= WRITER_HOLD_US) break;
    }
    if (!w.first) {
        w.urgent = false;
        w.drained_at = now;
    }
    atomic_store(&w.turn_due, true);
    RedisModule_EventLoopAddOneShot(on_turn, NULL);
    RedisModule_ThreadSafeContextUnlock(w.ctx); /* replicates what was written, too */

    uint64_t held = platform_now_us() - began, worked = platform_thread_cpu_us() - cpu_began;
    histogram_add(&w.latency.wait, began - asked);
    histogram_add(&w.latency.hold, held);
    histogram_add(&w.latency.hold_cpu, worked);
    atomic_fetch_add(&w.latency.holds, 1);
    if (held > atomic_load(&w.slowest_us)) atomic_store(&w.slowest_us, held);
    return !refused;
}

static void *writer_main(void *arg)
{
    (void)arg;
    platform_service_thread("infer-writer");
    while (!atomic_load(&w.stop)) {
        uint32_t seen = atomic_load(&w.bell);
        if (atomic_load(&w.turn_due)) {
            park(UNTIL_TURN, seen, 0);
            continue;
        }
        take_arrivals();
        if (!w.first) {
            park(UNTIL_ITEM, seen, 0);
            continue;
        }
        uint64_t now = platform_now_us(), due = w.drained_at + WRITER_GATHER_US;
        if (!w.urgent && now < due) {
            park(UNTIL_URGENT, seen, due - now);
            continue;
        }
        if (!hold()) {
            uint64_t until = platform_now_us() + WRITER_RETRY_US;
            while (!atomic_load(&w.stop) && (now = platform_now_us()) < until)
                park(AWAKE, atomic_load(&w.bell), until - now);
        }
    }
    return NULL;
}

int writer_start(RedisModuleCtx *ctx, struct reply_error *err)
{
    if (w.running) return 0;
    if (!w.ctx) w.ctx = RedisModule_GetDetachedThreadSafeContext(ctx);
    atomic_store(&w.stop, false);
    int failed = pthread_create(&w.thread, NULL, writer_main, NULL);
    if (failed) return reply_fail(err, "ERR", "no thread to be had: %s", strerror(failed));
    w.running = true;
    return 0;
}

bool writer_stop(void)
{
    if (w.running) {
        if (atomic_load(&w.turn_due)) return false;
        atomic_store(&w.stop, true);
        ring();
        pthread_join(w.thread, NULL);
        w.running = false;
    }
    if (w.ctx) RedisModule_FreeThreadSafeContext(w.ctx);
    w.ctx = NULL;
    return true;
}

void writer_abandon(void)
{
    atomic_store(&w.stop, true);
    ring();
}

const struct writer_latency *writer_latency(void)
{
    return &w.latency;
}

uint64_t writer_take_slowest(void)
{
    return atomic_exchange(&w.slowest_us, 0);
}
