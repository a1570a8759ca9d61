/* See http.h. Reads what llama-server (cpp-httplib) and Python's http.server write: chunked bodies and bodies with a
 * length, no trailers, no compression. */
#include "http.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* Servers end connections that are idle, llama-server after 5 seconds; one that is about to must not get a request. */
static const double MAX_IDLE_US = 2e6;

enum { RECEIVE_BYTES = 64 << 10, MAX_HEAD_BYTES = 32 << 10, MAX_LINE_BYTES = 16 << 20 };

void http_init(struct http *h, const char *unix_path, const char *host, const char *port)
{
    *h = (struct http){.unix_path = unix_path, .host = host, .port = port, .fd = -1};
}

static void disconnect(struct http *h)
{
    if (h->fd >= 0) close(h->fd);
    h->fd = -1;
    h->closing = h->reused = false;
    h->in_at = h->in_len = 0;
}

void http_close(struct http *h)
{
    disconnect(h);
    free(h->in);
    free(h->line);
    http_init(h, h->unix_path, h->host, h->port);
}

static int connect_unix(struct http *h, struct failure *failure)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(h->unix_path);
    if (len >= sizeof address.sun_path) return fail(failure, "the socket's path has %zu bytes, too many", len);
    memcpy(address.sun_path, h->unix_path, len + 1);
    h->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (h->fd < 0 || connect(h->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        int why = errno;
        disconnect(h);
        return fail(failure, "llama-server at its unix socket: %s", strerror(why));
    }
    return 0;
}

static int connect_tcp(struct http *h, struct failure *failure)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    int status = getaddrinfo(h->host, h->port, &hints, &found);
    if (status != 0) return fail(failure, "llama-server at %s:%s: %s", h->host, h->port, gai_strerror(status));
    int why = 0;
    for (struct addrinfo *a = found; a && h->fd < 0; a = a->ai_next) {
        h->fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (h->fd >= 0 && connect(h->fd, a->ai_addr, a->ai_addrlen) == 0) break;
        why = errno;
        disconnect(h);
    }
    freeaddrinfo(found);
    if (h->fd < 0) return fail(failure, "llama-server at %s:%s: %s", h->host, h->port, strerror(why));
    int on = 1; /* without it the end of a request may wait for an acknowledgement */
    setsockopt(h->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return 0;
}

int http_ready(struct http *h, struct failure *failure)
{
    if (h->fd >= 0) {
        char byte;
        ssize_t n = recv(h->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        bool quiet = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
        if (quiet && !h->closing && now_us() - h->used_at < MAX_IDLE_US) return 0;
        disconnect(h);
    }
    if (!h->in) {
        h->in = malloc(RECEIVE_BYTES);
        if (!h->in) return fail(failure, "out of memory");
        h->in_cap = RECEIVE_BYTES;
    }
    h->used_at = now_us();
    return h->unix_path ? connect_unix(h, failure) : connect_tcp(h, failure);
}

int http_post(struct http *h, const char *path, const char *body, size_t len, struct failure *failure)
{
    char head[256];
    int head_len = snprintf(head, sizeof head,
                            "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            "Content-Length: %zu\r\nConnection: keep-alive\r\n\r\n",
                            path, len);
    struct iovec parts[2] = {{head, (size_t)head_len}, {(char *)(uintptr_t)body, len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    h->answering = false;
    while (message.msg_iovlen > 0) {
        ssize_t n = sendmsg(h->fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(failure, "sending to llama-server: %s", strerror(errno));
        size_t sent = (size_t)n;
        while (message.msg_iovlen > 0 && sent >= message.msg_iov[0].iov_len) {
            sent -= message.msg_iov[0].iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen > 0) {
            message.msg_iov[0].iov_base = (char *)message.msg_iov[0].iov_base + sent;
            message.msg_iov[0].iov_len -= sent;
        }
    }
    return 0;
}

/* Adds to what was received. */
static int receive(struct http *h, struct failure *failure)
{
    if (h->in_at == h->in_len) h->in_at = h->in_len = 0;
    if (h->in_len == h->in_cap) {
        memmove(h->in, h->in + h->in_at, h->in_len - h->in_at);
        h->in_len -= h->in_at;
        h->in_at = 0;
    }
    if (h->in_len == h->in_cap) return fail(failure, "llama-server sent a head of more than %zu bytes", h->in_cap);
    ssize_t n;
    do n = recv(h->fd, h->in + h->in_len, h->in_cap - h->in_len, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0) return fail(failure, "reading from llama-server: %s", strerror(errno));
    if (n == 0)
        return fail(failure, "llama-server closed the connection %s",
                    h->answering ? "in the middle of its answer" : "instead of answering");
    h->in_len += (size_t)n;
    h->used_at = now_us();
    return 0;
}

/* The next line of the head or of a chunk's frame, without its end; it holds until the next receive. */
static int frame_line(struct http *h, struct span *line, struct failure *failure)
{
    for (;;) {
        const char *from = h->in + h->in_at, *end = memchr(from, '\n', h->in_len - h->in_at);
        if (end) {
            size_t len = (size_t)(end - from);
            h->in_at += len + 1;
            if (len > 0 && from[len - 1] == '\r') len--;
            *line = (struct span){from, len};
            return 0;
        }
        if (h->in_len - h->in_at > MAX_HEAD_BYTES) return fail(failure, "llama-server sent a line without an end");
        if (receive(h, failure) < 0) return -1;
    }
}

/* The value of a header if the line is that one. */
static bool header(struct span line, const char *name, struct span *value)
{
    size_t len = strlen(name);
    if (line.len <= len || strncasecmp(line.at, name, len) != 0 || line.at[len] != ':') return false;
    const char *p = line.at + len + 1, *end = line.at + line.len;
    while (p < end && (*p == ' ' || *p == '\t')) p++;
    *value = (struct span){p, (size_t)(end - p)};
    return true;
}

static bool is(struct span text, const char *word)
{
    return text.len == strlen(word) && strncasecmp(text.at, word, text.len) == 0;
}

static int number(struct span text, int base, size_t *value, struct failure *failure)
{
    char digits[20], *behind;
    size_t len = text.len < sizeof digits ? text.len : sizeof digits - 1;
    memcpy(digits, text.at, len);
    digits[len] = 0;
    errno = 0;
    unsigned long long n = strtoull(digits, &behind, base);
    if (errno || behind == digits || (*behind && *behind != ';') || n > SIZE_MAX)
        return fail(failure, "llama-server sent '%s' for a length", digits);
    *value = (size_t)n;
    return 0;
}

/* Bytes of the body that are here already or come next: 0 at its end. */
static int body(struct http *h, struct span *bytes, struct failure *failure)
{
    *bytes = (struct span){0};
    while (h->left == 0 && !h->body_done) {
        if (!h->chunked) {
            h->body_done = true;
            break;
        }
        struct span line;
        if (frame_line(h, &line, failure) < 0) return -1;
        if (line.len == 0) continue; /* the end of the chunk before */
        if (number(line, 16, &h->left, failure) < 0) return -1;
        if (h->left == 0) {
            do {
                if (frame_line(h, &line, failure) < 0) return -1;
            } while (line.len > 0);
            h->body_done = true;
        }
    }
    if (h->body_done) return 0;
    if (h->in_at == h->in_len && receive(h, failure) < 0) return -1;
    size_t here = h->in_len - h->in_at, n = here < h->left ? here : h->left;
    *bytes = (struct span){h->in + h->in_at, n};
    h->in_at += n;
    h->left -= n;
    return 0;
}

int http_answer(struct http *h, struct failure *failure)
{
    struct span line, value;
    if (frame_line(h, &line, failure) < 0) return -1;
    h->answering = true;
    size_t status = 0;
    if (line.len < 12 || strncmp(line.at, "HTTP/1.", 7) != 0 ||
        number((struct span){line.at + 9, 3}, 10, &status, failure) < 0)
        return fail(failure, "no HTTP answer: '%.*s'", (int)(line.len < 80 ? line.len : 80), line.at);
    h->closing = line.at[7] == '0';
    h->chunked = h->body_done = false;
    h->left = 0;
    h->line_len = 0;
    for (;;) {
        if (frame_line(h, &line, failure) < 0) return -1;
        if (line.len == 0) break;
        if (header(line, "Transfer-Encoding", &value)) h->chunked = is(value, "chunked");
        if (header(line, "Connection", &value) && is(value, "close")) h->closing = true;
        if (header(line, "Content-Length", &value) && number(value, 10, &h->left, failure) < 0) return -1;
    }
    h->reused = true;
    if (status == 200) return 0;
    struct span bytes;
    if (body(h, &bytes, failure) < 0) return -1;
    h->closing = true; /* the rest of it is left unread */
    return fail(failure, "llama-server answered %zu: %.*s", status, (int)(bytes.len < 300 ? bytes.len : 300), bytes.at);
}

static int keep(struct http *h, const char *bytes, size_t len, struct failure *failure)
{
    if (h->line_len + len > MAX_LINE_BYTES) return fail(failure, "llama-server sent an event of more than 16 MB");
    if (h->line_len + len > h->line_cap) {
        size_t cap = 2 * (h->line_len + len);
        char *grown = realloc(h->line, cap);
        if (!grown) return fail(failure, "out of memory");
        h->line = grown;
        h->line_cap = cap;
    }
    memcpy(h->line + h->line_len, bytes, len);
    h->line_len += len;
    return 0;
}

/* An event is a line "data: ..." here: llama-server writes no others, and none over several lines. */
int http_event(struct http *h, struct span *data, struct failure *failure)
{
    h->line_len = 0;
    for (;;) {
        struct span bytes;
        if (body(h, &bytes, failure) < 0) return -1;
        if (bytes.len == 0) return 0;
        const char *end = memchr(bytes.at, '\n', bytes.len);
        size_t taken = end ? (size_t)(end - bytes.at) : bytes.len;
        if (keep(h, bytes.at, taken, failure) < 0) return -1;
        if (!end) continue;
        size_t back = bytes.len - taken - 1; /* what lies behind the line is for the next call */
        h->in_at -= back;
        h->left += back;
        if (h->line_len > 0 && h->line[h->line_len - 1] == '\r') h->line_len--;
        if (h->line_len >= 6 && memcmp(h->line, "error:", 6) == 0)
            return fail(failure, "llama-server: %.*s", (int)(h->line_len < 300 ? h->line_len : 300), h->line);
        if (h->line_len >= 5 && memcmp(h->line, "data:", 5) == 0) {
            size_t from = h->line_len > 5 && h->line[5] == ' ' ? 6 : 5;
            *data = (struct span){h->line + from, h->line_len - from};
            return 1;
        }
        h->line_len = 0;
    }
}
