/* Physical memory for an arena before it is needed.
 *
 * A fresh mapping has no memory until it is first touched. The kernel takes a fraction of a millisecond then to find and
 * clear 2 MB, and several milliseconds on a virtual machine whose host has to find them too: longer than a whole step of a small
 * model, and in a step all threads wait for it. So a thread of the lowest priority stays PREFAULT_AHEAD bytes ahead of
 * what is in use, and is asleep whenever it is.
 *
 * Where the system has no means for it, or no memory is left, nothing is done: first touches then cost what they cost. */
#ifndef INFER_PREFAULT_H
#define INFER_PREFAULT_H

#include <stddef.h>

enum { PREFAULT_AHEAD = 64 << 20, PREFAULT_PIECE = 2 << 20 };

struct prefault;

/* For an arena of platform_map_anonymous that is used from its beginning on. The first PREFAULT_AHEAD bytes are fetched
 * at once, in the background. NULL, which the others take too: there is no thread to be had. */
struct prefault *prefault_start(void *arena, size_t bytes);

/* The first `used` bytes are in use now. One thread at a time; never waits. */
void prefault_reach(struct prefault *p, size_t used);

/* Before the arena is unmapped. Waits for a piece under way. */
void prefault_stop(struct prefault *p);

#endif
