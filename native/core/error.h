/* Errors of the core library: a code that names the class, and one sentence
 * that names what was wrong, with the value seen, and what to do.
 *
 * Core never prints and never exits. A function that can fail returns 0 on
 * success and -1 on failure and fills the caller's struct infer_error. The
 * codes are the ones that a client sees in front of the message (see
 * docs/commands.md), so that the module passes them on unchanged. */
#ifndef INFER_ERROR_H
#define INFER_ERROR_H

enum infer_code {
    INFER_OK = 0,
    INFER_ERR,       /* ERR: anything without a class of its own */
    INFER_BADTOKENS, /* BADTOKENS: ids or lengths of a token array are wrong */
    INFER_CONTEXT,   /* CONTEXT: does not fit the context or the KV budget */
    INFER_BUSY,      /* BUSY: the queue is full, or requests for vectors hold too much */
    INFER_NOMODEL,   /* NOMODEL: the model is going away */
    INFER_CANCELLED, /* CANCELLED: ended before it produced a result */
};

struct infer_error {
    enum infer_code code;
    char message[256]; /* no code in front, no newline */
};

/* Fills *err (which may be NULL) and returns -1, so that a failing function
 * can end with `return infer_fail(err, INFER_ERR, "...", ...)`. Control characters
 * become '?'. */
int infer_fail(struct infer_error *err, enum infer_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "ERR", "BADTOKENS", ...: static storage. */
const char *infer_code_name(enum infer_code code);

#endif
