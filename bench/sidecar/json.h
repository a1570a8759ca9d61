/* Just enough JSON to read llama-server's events and the attributes of a vector set: finds members and reads numbers in
 * text that stays where it is.
 *
 * Owns nothing: spans point into the caller's text. Any thread. */
#ifndef SIDECAR_JSON_H
#define SIDECAR_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct span {
    const char *at;
    size_t len;
};

/* The value of a member of `object`, without the space around it. False: no object, no such member, or malformed before it.
 * Names are compared as they are written, so `name` must need no escapes. */
bool json_member(struct span object, const char *name, struct span *value);

bool json_number(struct span value, double *number);

/* Ids of an array of non-negative integers, at most `max`; how many it has, or -1 if it is something else. */
int json_ids(struct span array, uint32_t *ids, int max);

/* The inside of a string without escapes. */
bool json_plain_string(struct span value, struct span *text);

#endif
