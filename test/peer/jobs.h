/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* What the small server is at: its requests, and the connections they use. */
#ifndef JOBS_H
#define JOBS_H

#include "conn.h"
#include "field.h"
#include "job.h"

struct lie;

/* A connection to a client, being made or there. */
struct remote {
    struct cm_owner owner;
    struct remote *next;
    struct sockaddr_storage to;
    uint8_t token[TOKEN_SIZE];
    uint8_t kind;
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct conn *conn;
    uint32_t number;
    bool dead;
    const struct lie *lie; /* of the one request that it is for */
};

enum stage { CONNECTING, RUNNING, ENDED };

struct job {
    struct job *next;
    struct session *session; /* NULL when HTTP has gone, or is done with it */
    struct sockaddr_storage peer, local;
    struct remote *remote;
    struct offer offer;
    char query[256];
    uint64_t seed, size, announced, consumed;
    uint32_t part;
    enum stage stage;
    bool stream, unknown, dry, fin, head_sent, server_last, client_last;
    uint8_t *memory;
    size_t length;
    struct ibv_mr *mr;
    const struct lie *lie;
};

/* The value of an option, "" if it has none; NULL when it is not there. */
const char *job_option(const struct job *j, const char *name);
void job_stamps(uint8_t *out, uint64_t from, uint64_t n, uint64_t seed);
void job_head(struct job *j, const char *field, const char *framing);
/* All of the answer is said: the session takes its next request. */
void job_http_over(struct job *j);
bool job_memory(struct job *j, size_t length, unsigned rights);

#endif
