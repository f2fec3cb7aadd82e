/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * load: clients that GET one URL again and again, all in this one process.
 *
 *     load MODE CLIENTS SECONDS BYTES ADDRESS FILE URL
 *
 * MODE is tcp, write or read. Each client is a thread with an rdmahttp of its
 * own: one kept-alive HTTP connection and, in modes write and read, one RDMA
 * connection. Each fetches once, and compares every byte with FILE; then
 * "ready" is printed. When a line comes on standard input, all go on until
 * SECONDS have passed and BYTES have come, whichever is later, and look at
 * lengths only. What they did is printed as JSON. ADDRESS is that of this host.
 *
 * A response that came another way than MODE, was not 200, or had another
 * length than FILE is an error: exit status 1.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rdmahttp.h"

/* A window holds a whole body if that is at most: */
#define WINDOW_MOST ((size_t)16 * 1024 * 1024)

typedef struct run {
    const char *mode;
    const char *url;
    const char *expected; /* the file, mapped */
    uint64_t size;        /* its length, bytes */
    double seconds;
    uint64_t bytes; /* of all clients, at least */
    double start;
    uint64_t taken; /* of all clients, so far; atomic */
} run;

typedef struct client {
    run *r;
    pthread_t thread;
    rdmahttp *h;
    int verify;
    uint64_t at; /* bytes of this body, so far */
    uint64_t requests;
    double slowest; /* seconds */
    int failed;
} client;

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int take(void *baton, const void *bytes, size_t n)
{
    client *c = baton;

    if (n > c->r->size - c->at
        || (c->verify && memcmp(c->r->expected + c->at, bytes, n) != 0)) {
        fprintf(stderr, "load: a body differs at byte %" PRIu64 " or after\n",
                c->at);
        return -1;
    }
    c->at += n;
    return 0;
}

/* One request. 0, or -1 after saying why. */
static int get(client *c)
{
    const rdmahttp_sink sink = {NULL, take, NULL, c};
    rdmahttp_result result;
    rdmahttp_status status;
    int ok;

    c->at = 0;
    status = rdmahttp_get(c->h, c->r->url, NULL, &sink, &result);
    ok = status == RDMAHTTP_OK && result.http == 200 && c->at == c->r->size
         && strcmp(rdmahttp_path_name(result.path), c->r->mode) == 0;
    if (!ok) {
        fprintf(stderr,
                "load: %s: status %d, HTTP %ld, %" PRIu64
                " bytes, by %s: %s%s\n",
                c->r->url, status, result.http, c->at,
                rdmahttp_path_name(result.path), result.why, result.message);
    }
    rdmahttp_result_clear(&result);
    return ok ? 0 : -1;
}

static void *client_main(void *arg)
{
    client *c = arg;
    run *r = c->r;
    double begun = now();

    while (begun - r->start < r->seconds
           || __atomic_load_n(&r->taken, __ATOMIC_RELAXED) < r->bytes) {
        double ended;

        if (get(c)) {
            c->failed = 1;
            break;
        }
        ended = now();
        c->requests++;
        if (ended - begun > c->slowest) {
            c->slowest = ended - begun;
        }
        __atomic_fetch_add(&r->taken, r->size, __ATOMIC_RELAXED);
        begun = ended;
    }
    return NULL;
}

/* The client's object, and its first request. 0 or -1. */
static int prepare(client *c, run *r, const char *address)
{
    rdmahttp_conf conf = RDMAHTTP_CONF_INIT;

    conf.mode = strcmp(r->mode, "write") == 0  ? RDMAHTTP_WRITE
                : strcmp(r->mode, "read") == 0 ? RDMAHTTP_READ
                                               : RDMAHTTP_OFF;
    conf.bind_address = address;
    conf.window = r->size > WINDOW_MOST           ? WINDOW_MOST
                  : r->size > RDMAHTTP_WINDOW ? (size_t)r->size
                                              : RDMAHTTP_WINDOW;
    c->r = r;
    c->h = rdmahttp_create(&conf);
    if (!c->h) {
        fprintf(stderr, "load: no memory\n");
        return -1;
    }
    c->verify = 1;
    if (get(c)) {
        return -1;
    }
    c->verify = 0;
    return 0;
}

static int map_expected(run *r, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *at;

    if (fd < 0 || fstat(fd, &st) || st.st_size == 0) {
        perror(path);
        return -1;
    }
    r->size = (uint64_t)st.st_size;
    at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (at == MAP_FAILED) {
        perror(path);
        return -1;
    }
    r->expected = at;
    return 0;
}

/* "ready", and wait for the line. 0, or -1: there is none. */
static int await_go(void)
{
    char line[16];

    printf("ready\n");
    fflush(stdout);
    return fgets(line, sizeof(line), stdin) ? 0 : -1;
}

static int measure(run *r, client *clients, unsigned n)
{
    uint64_t requests = 0;
    double slowest = 0, took;
    unsigned i;
    int failed = 0;

    r->start = now();
    for (i = 0; i < n; i++) {
        if (pthread_create(&clients[i].thread, NULL, client_main,
                           &clients[i])) {
            perror("load: pthread_create");
            exit(1);
        }
    }
    for (i = 0; i < n; i++) {
        pthread_join(clients[i].thread, NULL);
        requests += clients[i].requests;
        failed |= clients[i].failed;
        if (clients[i].slowest > slowest) {
            slowest = clients[i].slowest;
        }
    }
    took = now() - r->start;
    printf("{\"requests\": %" PRIu64 ", \"bytes\": %" PRIu64
           ", \"seconds\": %.6f, \"slowest\": %.6f}\n",
           requests, r->taken, took, slowest);
    fflush(stdout);
    return failed;
}

int main(int argc, char **argv)
{
    run r = {NULL, NULL, NULL, 0, 0, 0, 0, 0};
    client *clients;
    unsigned n, i;
    int failed = 0;

    if (argc != 8) {
        fprintf(stderr, "usage: load tcp|write|read CLIENTS SECONDS BYTES"
                        " ADDRESS FILE URL\n");
        return 2;
    }
    r.mode = argv[1];
    n = (unsigned)strtoul(argv[2], NULL, 10);
    r.seconds = strtod(argv[3], NULL);
    r.bytes = strtoull(argv[4], NULL, 10);
    r.url = argv[7];
    clients = n > 0 ? calloc(n, sizeof(*clients)) : NULL;
    if (!clients || map_expected(&r, argv[6])) {
        return 1;
    }
    for (i = 0; i < n && !failed; i++) {
        failed = prepare(&clients[i], &r, argv[5]);
    }
    if (!failed && await_go() == 0) {
        failed = measure(&r, clients, n);
    }
    for (i = 0; i < n; i++) {
        if (clients[i].h) {
            rdmahttp_destroy(clients[i].h);
        }
    }
    free(clients);
    return failed ? 1 : 0;
}
