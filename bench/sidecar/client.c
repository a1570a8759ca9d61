/* The client of `redis-infer bench sidecar`: runs requests both ways, INFER.GENERATE in Redis (A) and fetch, JSON, HTTP to
 * a llama-server beside it (B), and says how long each part took.
 *
 * Jobs come on standard input, a line each, and run at "go": those of one client in order, all clients at once.
 *
 *   CLIENT WAY TRANSPORT OUTPUT keys KEY...
 *   CLIENT WAY TRANSPORT OUTPUT rag VSET QUERY HITS BEFORE AFTER
 *   go
 *
 * CLIENT: 0 to 63. WAY: reply, stream (A) or sidecar (B). TRANSPORT: unix or tcp, for Redis and llama-server alike.
 * OUTPUT: tokens. Each request gives a line of JSON, and each "go" one more, with the processor time of everything
 * involved. Times are microseconds from the request's start; what a way does not have is left out.
 *
 * The main thread reads, starts a thread for each client and writes what they measured; connections outlive a "go" and
 * belong to the client's thread while there is one. */
#include "beside_redis.h"
#include "in_redis.h"

#include <getopt.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLIENTS = 64, MAX_PROCESSES = 4, MAX_WORDS = 4096 };

struct job {
    char *line; /* what the request's strings lie in */
    struct request request;
    struct measured measured;
    struct failure failure; /* empty: it went well */
};

struct client {
    int index;
    redisContext *redis[N_TRANSPORTS];
    struct http http[N_TRANSPORTS];
    struct text text;
    struct job **jobs; /* owned */
    int n_jobs, cap_jobs;
};

static struct {
    const char *redis_unix, *llama_unix, *model;
    char *redis_host, *redis_port, *llama_host, *llama_port; /* allocated with their host */
    pid_t processes[MAX_PROCESSES];
    int n_processes;
    struct client clients[MAX_CLIENTS];
    pthread_barrier_t start;
} o;

int fail(struct failure *failure, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(failure->text, sizeof failure->text, format, args);
    va_end(args);
    return -1;
}

static double clock_us(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) < 0) return -1;
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

double now_us(void)
{
    return clock_us(CLOCK_MONOTONIC);
}

/* ---- one client ---- */

static redisContext *connection(struct client *c, enum transport transport, struct failure *failure)
{
    redisContext **redis = &c->redis[transport];
    if (*redis && (*redis)->err) {
        redisFree(*redis);
        *redis = NULL;
    }
    if (*redis) return *redis;
    *redis = transport == OVER_UNIX ? redisConnectUnix(o.redis_unix) : redisConnect(o.redis_host, atoi(o.redis_port));
    if (*redis && !(*redis)->err) return *redis;
    fail(failure, "Redis: %s", *redis ? (*redis)->errstr : "out of memory");
    return NULL;
}

/* The query vector is there before the clock starts, as it is where an application has computed it. */
static int fetch_query(redisContext *redis, const struct request *r, redisReply **vector, struct failure *failure)
{
    *vector = NULL;
    if (r->n_keys > 0) return 0;
    *vector = redisCommand(redis, "GET %s", r->rag.query);
    if (*vector && (*vector)->type == REDIS_REPLY_STRING) return 0;
    return fail(failure, "no query vector at key '%s'", r->rag.query);
}

static void run(struct client *c, struct job *job)
{
    const struct request *r = &job->request;
    struct measured *m = &job->measured;
    redisContext *redis = connection(c, r->transport, &job->failure);
    redisReply *vector = NULL;
    char stream[32];
    snprintf(stream, sizeof stream, "sidecar:out:%d", c->index);
    int status = redis ? fetch_query(redis, r, &vector, &job->failure) : -1;
    if (status == 0 && r->way == WAY_SIDECAR) {
        struct http *http = &c->http[r->transport];
        status = beside_redis_run(redis, http, &c->text, c->index, r, vector, m, &job->failure);
        if (status < 0) http_close(http);
    } else if (status == 0) {
        status = in_redis_run(redis, o.model, r, vector, stream, m, &job->failure);
    }
    if (vector) freeReplyObject(vector);
    if (status < 0 && !job->failure.text[0]) fail(&job->failure, "failed");
}

static void *client_main(void *arg)
{
    struct client *c = arg;
    struct failure ignored;
    for (int i = 0; i < c->n_jobs; i++) { /* connecting is no part of what is measured */
        const struct request *r = &c->jobs[i]->request;
        connection(c, r->transport, &ignored);
        if (r->way == WAY_SIDECAR) http_ready(&c->http[r->transport], &ignored);
    }
    pthread_barrier_wait(&o.start);
    for (int i = 0; i < c->n_jobs; i++) run(c, c->jobs[i]);
    return NULL;
}

/* ---- output ---- */

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\') printf("\\%c", byte);
        else if (byte < 0x20 || byte >= 0x7f) printf("\\u%04x", byte);
        else putchar(byte);
    }
    putchar('"');
}

static void print_figure(const char *name, double value)
{
    if (value >= 0) printf(",\"%s\":%.1f", name, value);
}

static void print(const struct client *c, const struct job *job)
{
    static const char *const ways[] = {"reply", "stream", "sidecar"};
    const struct measured *m = &job->measured;
    printf("{\"client\":%d,\"way\":\"%s\",\"transport\":\"%s\"", c->index, ways[job->request.way],
           job->request.transport == OVER_UNIX ? "unix" : "tcp");
    if (job->failure.text[0]) {
        printf(",\"error\":");
        print_string(job->failure.text);
        printf("}\n");
        return;
    }
    print_figure("search_us", m->search);
    print_figure("get_us", m->get);
    print_figure("build_us", m->build);
    print_figure("send_us", m->send);
    print_figure("first_us", m->first);
    print_figure("total_us", m->total);
    print_figure("model_us", m->model);
    print_figure("admit_us", m->admit);
    print_figure("queue_us", m->queue);
    print_figure("body_bytes", m->body_bytes);
    print_figure("prompt_tokens", m->prompt_tokens);
    print_figure("cached_tokens", m->cached_tokens);
    printf(",\"tokens\":[");
    for (int i = 0; i < m->n_tokens; i++) printf(i ? ",%u" : "%u", m->tokens[i]);
    printf("]}\n");
}

/* ---- jobs ---- */

static void forget(struct client *c)
{
    for (int i = 0; i < c->n_jobs; i++) {
        free(c->jobs[i]->request.keys);
        free(c->jobs[i]->line);
        free(c->jobs[i]);
    }
    c->n_jobs = 0;
}

static void processor_times(double *us)
{
    for (int i = 0; i < o.n_processes; i++) {
        clockid_t clock;
        us[i] = clock_getcpuclockid(o.processes[i], &clock) == 0 ? clock_us(clock) : -1;
    }
    us[o.n_processes] = clock_us(CLOCK_PROCESS_CPUTIME_ID);
}

static int go(void)
{
    int n = 0;
    for (int i = 0; i < MAX_CLIENTS; i++) n += o.clients[i].n_jobs > 0;
    if (n == 0) {
        fprintf(stderr, "sidecar-client: 'go' without a job\n");
        return -1;
    }
    pthread_t threads[MAX_CLIENTS];
    double before[MAX_PROCESSES + 1], after[MAX_PROCESSES + 1];
    pthread_barrier_init(&o.start, NULL, (unsigned)n + 1);
    for (int i = 0, at = 0; i < MAX_CLIENTS; i++) {
        if (o.clients[i].n_jobs == 0) continue;
        int status = pthread_create(&threads[at++], NULL, client_main, &o.clients[i]);
        if (status != 0) {
            fprintf(stderr, "sidecar-client: no thread for client %d: %s\n", i, strerror(status));
            exit(1);
        }
    }
    processor_times(before);
    pthread_barrier_wait(&o.start);
    double began = now_us();
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    double wall = now_us() - began;
    processor_times(after);
    pthread_barrier_destroy(&o.start);
    for (int i = 0; i < MAX_CLIENTS; i++) {
        for (int k = 0; k < o.clients[i].n_jobs; k++) print(&o.clients[i], o.clients[i].jobs[k]);
        forget(&o.clients[i]);
    }
    printf("{\"wall_us\":%.1f,\"cpu_us\":[", wall);
    for (int i = 0; i < o.n_processes; i++) printf("%.1f,", after[i] - before[i]);
    printf("%.1f]}\n", after[o.n_processes] - before[o.n_processes]);
    fflush(stdout);
    return 0;
}

static int choice(const char *word, int n, const char *const names[])
{
    for (int i = 0; i < n; i++)
        if (strcmp(word, names[i]) == 0) return i;
    return -1;
}

/* The whole of `text` as a number from 1 to `max`, or from 0 where that is allowed; -1. */
static int whole_number(const char *text, int min, int max)
{
    char *behind;
    long n = strtol(text, &behind, 10);
    return behind == text || *behind || n < min || n > max ? -1 : (int)n;
}

/* Takes the line over. */
static int add_job(char *line)
{
    static const char *const ways[] = {"reply", "stream", "sidecar"}, *const transports[] = {"unix", "tcp"};
    char *words[MAX_WORDS], *rest = line;
    int n = 0;
    for (char *word; n < MAX_WORDS && (word = strtok_r(rest, " \n", &rest));) words[n++] = word;
    if (n < 6) return fprintf(stderr, "sidecar-client: a job has 6 words or more, not %d\n", n), -1;
    int index = whole_number(words[0], 0, MAX_CLIENTS - 1), way = choice(words[1], 3, ways),
        transport = choice(words[2], 2, transports), output = whole_number(words[3], 1, MAX_OUTPUT);
    bool rag = strcmp(words[4], "rag") == 0;
    int hits = rag && n == 10 ? whole_number(words[7], 1, 1000) : -1;
    if (index < 0 || way < 0 || transport < 0 || output < 0 || (rag ? hits < 0 : strcmp(words[4], "keys") != 0))
        return fprintf(stderr, "sidecar-client: no job: '%s %s %s %s %s ...'\n", words[0], words[1], words[2], words[3],
                       words[4]),
               -1;
    if (transport == OVER_TCP ? !o.redis_host : !o.redis_unix)
        return fprintf(stderr, "sidecar-client: a job over %s needs --redis-%s\n", words[2], words[2]), -1;
    if (way == WAY_SIDECAR && (transport == OVER_TCP ? !o.llama_host : !o.llama_unix))
        return fprintf(stderr, "sidecar-client: a job over %s needs --llama-%s\n", words[2], words[2]), -1;

    struct client *c = &o.clients[index];
    struct job *job = calloc(1, sizeof *job);
    if (c->n_jobs == c->cap_jobs) {
        c->cap_jobs = 2 * c->cap_jobs + 16;
        c->jobs = realloc(c->jobs, (size_t)c->cap_jobs * sizeof(struct job *));
    }
    if (!job || !c->jobs) return fprintf(stderr, "sidecar-client: out of memory\n"), -1;
    job->line = line;
    job->request = (struct request){.way = (enum way)way, .transport = (enum transport)transport, .output = output};
    struct measured *m = &job->measured;
    m->search = m->get = m->build = m->send = m->first = m->total = m->model = m->admit = m->queue = -1;
    m->body_bytes = m->prompt_tokens = m->cached_tokens = -1;
    struct request *r = &job->request;
    if (rag) {
        r->rag.vset = words[5];
        r->rag.query = words[6];
        r->rag.hits = hits;
        r->rag.before = words[8];
        r->rag.after = words[9];
    } else {
        r->n_keys = n - 5;
        r->keys = malloc((size_t)r->n_keys * sizeof *r->keys);
        if (!r->keys) return fprintf(stderr, "sidecar-client: out of memory\n"), -1;
        memcpy(r->keys, words + 5, (size_t)r->n_keys * sizeof *r->keys);
    }
    c->jobs[c->n_jobs++] = job;
    return 0;
}

/* ---- the program ---- */

static const char usage[] =
    "usage: sidecar-client --model NAME [--redis-unix PATH] [--redis-tcp HOST:PORT]\n"
    "                      [--llama-unix PATH] [--llama-tcp HOST:PORT] [--process PID]...\n"
    "Jobs come on standard input: see the head of client.c. --process: whose processor time \"go\" reports,\n"
    "before its own.\n";

static void split(char *address, char **host, char **port)
{
    char *colon = strrchr(address, ':');
    if (!colon || colon == address || whole_number(colon + 1, 1, 65535) < 0) {
        fprintf(stderr, "sidecar-client: '%s' is no HOST:PORT\n", address);
        exit(2);
    }
    *colon = 0;
    *host = address;
    *port = colon + 1;
}

static void read_options(int argc, char **argv)
{
    enum { MODEL = 256, REDIS_UNIX, REDIS_TCP, LLAMA_UNIX, LLAMA_TCP, PROCESS };
    static const struct option options[] = {
        {"model", required_argument, NULL, MODEL},           {"redis-unix", required_argument, NULL, REDIS_UNIX},
        {"redis-tcp", required_argument, NULL, REDIS_TCP},   {"llama-unix", required_argument, NULL, LLAMA_UNIX},
        {"llama-tcp", required_argument, NULL, LLAMA_TCP},   {"process", required_argument, NULL, PROCESS},
        {0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case MODEL: o.model = optarg; break;
        case REDIS_UNIX: o.redis_unix = optarg; break;
        case LLAMA_UNIX: o.llama_unix = optarg; break;
        case REDIS_TCP: split(optarg, &o.redis_host, &o.redis_port); break;
        case LLAMA_TCP: split(optarg, &o.llama_host, &o.llama_port); break;
        case PROCESS:
            if (o.n_processes == MAX_PROCESSES || (o.processes[o.n_processes++] = whole_number(optarg, 1, 1 << 30)) < 0) {
                fprintf(stderr, "sidecar-client: --process '%s': no process, or more than %d\n", optarg, MAX_PROCESSES);
                exit(2);
            }
            break;
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (optind < argc || !o.model || !(o.redis_unix || o.redis_host)) {
        fputs(usage, stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    for (int i = 0; i < MAX_CLIENTS; i++) {
        o.clients[i].index = i;
        http_init(&o.clients[i].http[OVER_UNIX], o.llama_unix, NULL, NULL);
        http_init(&o.clients[i].http[OVER_TCP], NULL, o.llama_host, o.llama_port);
    }
    int status = 0;
    char *line = NULL;
    size_t cap = 0;
    while (status == 0 && getline(&line, &cap, stdin) > 0) {
        if (strcmp(line, "go\n") == 0) {
            status = go();
            continue;
        }
        char *own = line;
        line = NULL;
        cap = 0;
        status = add_job(own);
        if (status < 0) free(own);
    }
    free(line);
    for (int i = 0; i < MAX_CLIENTS; i++) {
        struct client *c = &o.clients[i];
        forget(c);
        free(c->jobs);
        free(c->text.at);
        for (int t = 0; t < N_TRANSPORTS; t++) {
            if (c->redis[t]) redisFree(c->redis[t]);
            http_close(&c->http[t]);
        }
    }
    return status < 0;
}
