/* What other threads leave for the main thread to write: see writer.h. Owns the items that wait.
 *
 * Items come in through a list of atomics, newest first, which a turn takes over as a whole.
 *
 * Turns. Redis has two ways to be called back by another thread. A one-shot event is made at once, even
 * inside a script that takes long and while a dataset is loaded, where nobody may look at the keys; a timer is
 * not, and Redis replicates what its callback wrote. So who pushes adds a one-shot event, if none is due that is
 * early enough, and that one sets the timer.
 *
 * An alternative was a thread of ours with Redis' lock. It stood in the main thread's way whenever the system took the processor
 * from it while it held the lock, for milliseconds on a busy machine, and each token took one wake-up more. */
#include "writer.h"

#include "platform.h"

#include <stdatomic.h>

enum due { NOT_DUE, DUE_LATER, DUE_NOW };

static struct {
    struct write_item *_Atomic arrivals; /* newest first */
    _Atomic int due; /* enum due: the next turn, from the moment that it is called for */
    _Atomic int n_calls; /* one-shot events that were not made yet */
    _Atomic uint64_t called_at;

    /* The main thread's. */
    RedisModuleCtx *ctx; /* to set timers with */
    RedisModuleTimerID timer;
    bool timer_set;
    struct write_item *first, *last;
    uint64_t drained_at, slowest_us;

    struct writer_latency latency;
} w;

static void on_turn(RedisModuleCtx *ctx, void *unused);

static void set_timer(uint64_t us)
{
    if (w.timer_set) RedisModule_StopTimer(w.ctx, w.timer, NULL);
    w.timer = RedisModule_CreateTimer(w.ctx, (long long)((us + 999) / 1000), on_turn, NULL);
    w.timer_set = true;
}

/* In the event loop, anywhere. */
static void on_call(void *unused)
{
    (void)unused;
    atomic_fetch_sub(&w.n_calls, 1);
    int due = atomic_load(&w.due);
    if (due == NOT_DUE) return; /* a turn came before this call */
    uint64_t now = platform_now_us(), at = w.drained_at + WRITER_GATHER_US;
    set_timer(due == DUE_LATER && now < at ? at - now : 0);
}

/* Any thread. */
static void call_for(enum due due)
{
    int before = atomic_load(&w.due);
    do {
        if (before >= (int)due) return;
        if (due == DUE_NOW) atomic_store(&w.called_at, platform_now_us()); /* before a turn can see it */
    } while (!atomic_compare_exchange_weak(&w.due, &before, (int)due));
    atomic_fetch_add(&w.n_calls, 1);
    RedisModule_EventLoopAddOneShot(on_call, NULL);
}

void writer_push(struct write_item *item)
{
    enum due due = item->urgent ? DUE_NOW : DUE_LATER; /* once pushed it may be gone, */
    atomic_fetch_add(&w.n_calls, 1); /* and with it the last request: the module stays until the call below is made */
    item->next = atomic_load(&w.arrivals);
    while (!atomic_compare_exchange_weak(&w.arrivals, &item->next, item)) {
    }
    call_for(due);
    atomic_fetch_sub(&w.n_calls, 1);
}

static void take_arrivals(void)
{
    struct write_item *newest = atomic_exchange(&w.arrivals, NULL), *oldest = NULL, *last = newest;
    while (newest) {
        struct write_item *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    if (!oldest) return;
    if (w.last) w.last->next = oldest;
    else w.first = oldest;
    w.last = last;
}

static void on_turn(RedisModuleCtx *ctx, void *unused)
{
    (void)unused;
    uint64_t began = platform_now_us(), cpu_began = platform_thread_cpu_us(), now = began;
    bool refused = false;
    w.timer_set = false;
    /* Before the arrivals are taken: whoever comes after that calls again. */
    if (atomic_exchange(&w.due, NOT_DUE) == DUE_NOW) {
        uint64_t called = atomic_load(&w.called_at); /* perhaps a moment ago */
        histogram_add(&w.latency.wait, began > called ? began - called : 0);
    }
    take_arrivals();
    if (!w.first) return; /* an earlier turn had them all */
    while (w.first && now - began < WRITER_TURN_US) {
        struct write_item *item = w.first, *next = item->next;
        if (!item->write(ctx, item)) {
            refused = true;
            break;
        }
        w.first = next;
        if (!next) w.last = NULL;
        now = platform_now_us();
    }
    if (!w.first) {
        w.drained_at = now;
    } else if (!refused) {
        call_for(DUE_NOW);
    } else if (!w.timer_set) {
        set_timer(WRITER_RETRY_US);
    }

    uint64_t took = platform_now_us() - began;
    histogram_add(&w.latency.turn, took);
    histogram_add(&w.latency.turn_cpu, platform_thread_cpu_us() - cpu_began);
    atomic_fetch_add(&w.latency.turns, 1);
    if (took > w.slowest_us) w.slowest_us = took;
}

void writer_start(RedisModuleCtx *ctx)
{
    if (!w.ctx) w.ctx = RedisModule_GetDetachedThreadSafeContext(ctx);
}

bool writer_stop(void)
{
    if (w.timer_set || atomic_load(&w.n_calls) > 0) return false;
    if (w.ctx) RedisModule_FreeThreadSafeContext(w.ctx);
    w.ctx = NULL;
    return true;
}

const struct writer_latency *writer_latency(void)
{
    return &w.latency;
}

uint64_t writer_take_slowest(void)
{
    uint64_t us = w.slowest_us;
    w.slowest_us = 0;
    return us;
}
