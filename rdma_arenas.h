/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_arenas: the memory that one read connection offers to its client.
 *
 * Arenas come when a body needs one that no present arena has room for, and go
 * when they have been idle for a while: an idle connection pins none. They
 * belong to this connection for life and are never handed on.
 *
 * Owner: the connection's body set; all calls under the connection's lock, but
 * destroy, which comes when the QP is gone.
 */
#ifndef RDMA_ARENAS_H
#define RDMA_ARENAS_H

#include "rdma_conn.h"
#include "rdma_mem.h"

typedef struct rdma_arenas rdma_arenas;

typedef struct rdma_arenas_part {
    rdma_mem_part mem;     /* base NULL: none */
    rdma_mem_arena *arena; /* that it lies in */
} rdma_arenas_part;

/* max: bytes of one arena; share: of those of all connections that count into
 * *bytes (atomically; one client's). Nothing is registered yet. NULL: no memory.
 */
rdma_arenas *rdma_arenas_create(rdma_mem *mem, struct ibv_pd *pd, size_t max,
                                size_t share, size_t *bytes);
/* Parts still live end here. */
void rdma_arenas_destroy(rdma_arenas *a);

/* A part of len bytes (1 and up), in a new arena if need be: the one
 * registration that a request may cause. 0, or ENOMEM. */
int rdma_arenas_take(rdma_arenas *a, size_t len, rdma_arenas_part *out);
/* *part is all zero afterwards; one that is already is left alone. */
void rdma_arenas_give(rdma_arenas *a, rdma_arenas_part *part);

/* Give back what has been idle for long enough, *most arenas at most, which becomes
 * less by what has gone. Returns when to come again. */
rdma_conn_time rdma_arenas_trim(rdma_arenas *a, rdma_conn_time now,
                                unsigned *most);

/* Give back all that is idle: others need the memory. */
void rdma_arenas_drop_idle(rdma_arenas *a);

#endif /* RDMA_ARENAS_H */
