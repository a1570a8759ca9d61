/* One HTTP/1.1 connection to llama-server, kept alive, for one client: sends a POST and reads the events of its answer as
 * they come.
 *
 * The connection owns its buffers. It belongs to one thread at a time. */
#ifndef SIDECAR_HTTP_H
#define SIDECAR_HTTP_H

#include "json.h"
#include "request.h"

struct http {
    const char *unix_path, *host, *port; /* unix_path, or host and port; the caller's */
    int fd; /* -1: not connected */
    bool closing; /* the server will close after this answer */
    bool answering; /* some of the answer has come */
    bool reused; /* an answer has come on this connection before */
    double used_at; /* now_us of the last byte that came */

    /* bytes that were received and not read yet: in[in_at .. in_len) */
    char *in;
    size_t in_at, in_len, in_cap;

    /* where the body of the answer is */
    bool chunked;
    size_t left; /* of the chunk, or of the body */
    bool body_done;

    /* the line of the event stream that is being read */
    char *line;
    size_t line_len, line_cap;
};

void http_init(struct http *h, const char *unix_path, const char *host, const char *port);
void http_close(struct http *h);

/* Connects unless the connection is there and the server neither has ended it nor is about to. */
int http_ready(struct http *h, struct failure *failure);

/* Sends a POST with a JSON body in one system call where the socket takes it. */
int http_post(struct http *h, const char *path, const char *body, size_t len, struct failure *failure);

/* Reads status and headers of the answer: http_event follows. An answer other than 200 is a failure that cites its body. */
int http_answer(struct http *h, struct failure *failure);

/* The data of the next event: 1; 0 at the end of the answer; -1 on failure. *data holds until the next call. */
int http_event(struct http *h, struct span *data, struct failure *failure);

#endif
