/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* What the peer was asked for, and what came of it. */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "sha256.h"
#include "wire.h"

enum { BINDS_MAX = 64, LIST_MAX = 65536, TEXT_MAX = 120, ERRORS_MAX = 32 };
enum verify { VERIFY_NONE, VERIFY_SHA, VERIFY_STAMP, VERIFY_SPARSE };
enum path { PATH_NONE, PATH_WRITE, PATH_READ, PATH_TCP, PATHS };

struct list {
    char **of;
    unsigned n;
};

struct options {
    struct sockaddr_storage server;
    struct sockaddr_storage binds[BINDS_MAX];
    unsigned n_binds;
    const char *host, *method, *addr, *field, *save;
    struct list paths, fields, headers, asks;
    unsigned clients, requests, concurrency;
    uint8_t prefer[2];
    uint64_t window;
    enum verify verify;
    char sha[65];
    uint64_t seed, base;
    bool has_bytes;
    uint64_t bytes;
    unsigned port, first_id, depth, reads, read_size, links_max;
    unsigned timeout, progress, linger;
    double hold;
    bool retry;
    bool nominate, http10, check_address, full, json, verbose, keep;
    enum path expect_path;
    const char *expect_declined;
    long expect_ok;
    int expect_status;
};
extern struct options opt;

/* A body as it arrives. */
struct check {
    struct sha256 sha;
    uint64_t offset, wrong;
    bool hash;
    uint8_t *bytes; /* all of it, with --save */
};
void check_init(struct check *c);
void check_feed(struct check *c, const uint8_t *data, size_t len);
bool check_fine(const struct check *c);

struct totals {
    unsigned requests, ok, failed;
    unsigned path[PATHS];
    uint64_t bytes[PATHS], wrong;
    unsigned accepted[3], rejected[8], lost, aside;
    unsigned unexpected, repeated;
    unsigned lies_done, lies_refused;
    uint64_t lies_seen; /* bytes that are not 0 */
    uint64_t in[MESSAGE_TYPES], out[MESSAGE_TYPES];
    unsigned status[1000];
    unsigned n_errors;
    char errors[ERRORS_MAX][TEXT_MAX];
    unsigned error_counts[ERRORS_MAX];
    unsigned http_connections;
};
extern struct totals totals;
extern const char *const path_names[PATHS];

void error_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void declined_note(const char *token);
/* With --verbose, what happens. */
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
