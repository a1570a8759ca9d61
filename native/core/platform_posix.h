/* What platform_posix.c leaves to the file of each operating system. Nobody else includes this. */
#ifndef INFER_PLATFORM_POSIX_H
#define INFER_PLATFORM_POSIX_H

#include <stdbool.h>
#include <stddef.h>

/* Of a new thread: its name, cut to what fits, and the signals that it takes. */
void platform_prepare_thread(const char *name);

/* Names the calling thread; at most 15 characters. */
void platform_name_thread(const char *name);

/* Tells the kernel that a fresh mapping of a file will be read whole and again and again. Only speed. */
void platform_advise_weights(void *map, size_t bytes);

/* Gives the physical memory of whole pages of platform_map_anonymous back, so that they read as zero.
 * False: nothing has changed. */
bool platform_drop_pages(void *pages, size_t bytes);

#endif
