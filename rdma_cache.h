/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_cache: the RDMA side of one httpd child: all its connections, the
 * threads that make and serve them, its limits and its memory.
 *
 *   endpoint   a client's listener: address, port, token; the ids it has used
 *   slot       one kind of connection to an endpoint: the cached thing
 *
 * Threads: one progress thread (CM events, receive completions, deadlines,
 * the end of connections), a few connector threads (rdma_connect blocks in the
 * kernel). A worker holds a slot from rdma_cache_acquire() to
 * rdma_cache_release() and never runs a call that blocks on a peer without a
 * deadline.
 *
 * The worker's way: acquire -> wait -> use_id -> rdma_body_open ... finish or
 * abandon -> release.
 *
 * Lock order: cache, then connection, then rdma_mem.
 */
#ifndef RDMA_CACHE_H
#define RDMA_CACHE_H

#include <apr_errno.h>

#include "rdma_body.h"
#include "rdma_conn.h"
#include "rdma_hdr.h"
#include "rdma_mem.h"

typedef struct rdma_cache rdma_cache;
typedef struct rdma_cache_slot rdma_cache_slot;

typedef struct rdma_cache_conf {
    size_t memory;                  /* bytes registered at most */
    rdma_conn_time connect_timeout; /* microseconds, all of them */
    rdma_conn_time timeout;         /* progress */
    rdma_conn_time lease_timeout;
    rdma_conn_time idle_timeout;
    unsigned max_streams;                /* per child: workers they hold */
    unsigned max_connections;            /* per child */
    unsigned max_connections_per_client; /* per client address */
    /* One line for the error log; level is syslog's (3 error .. 7 debug, 8
     * trace), id the message id (RDMAnnnn: 1 for RDMA0001). Any thread. */
    void (*log)(void *baton, int level, int id, const char *line);
    void *baton;
} rdma_cache_conf;

/* Called in the child. Starts no thread and opens no device before the first
 * acquire has need of it. The caller stops it with rdma_cache_stop().
 * APR_SUCCESS or an error, *out NULL then. */
apr_status_t rdma_cache_create(const rdma_cache_conf *conf, rdma_cache **out);

/* Any thread, any number of times; does not block. graceful: no new RDMA, what
 * runs finishes. Not graceful: in addition every wait of a worker ends now. */
void rdma_cache_stopping(rdma_cache *cache, int graceful);

/* Main thread, in the pre-cleanup of the child's pool. Waits until every id is
 * closed (only if every rdma_cache_stopping() was graceful; at most the lease
 * timeout; *give_up, set by a signal handler, ends it), then ends all threads and
 * frees everything within 2 s, or more for hundreds of connections. 0; or -1: a
 * worker or a connect does not come back, and nothing has been freed: the cache
 * and what it has stays usable, and starts nothing any more. */
int rdma_cache_stop(rdma_cache *cache, const volatile int *give_up);

typedef struct rdma_cache_target {
    struct sockaddr_storage local;  /* our end of the HTTP connection */
    struct sockaddr_storage remote; /* the endpoint: address and port */
    uint8_t token[RDMA_HDR_TOKEN_LEN];
    rdma_hdr_kind kind;
} rdma_cache_target;

/* Get the slot, and start to connect if it is not connected. Does not block.
 * NULL: *why is BUSY (a limit, stopping), MEMORY, or why this endpoint failed a
 * short while ago (CONNECT, DEVICE). */
rdma_cache_slot *rdma_cache_acquire(rdma_cache *cache,
                                    const rdma_cache_target *target,
                                    rdma_hdr_declined *why);

/* The same for a request that will acquire soon, if at all: starts to connect,
 * and holds nothing meanwhile. */
void rdma_cache_prepare(rdma_cache *cache, const rdma_cache_target *target);

/* Wait until the slot is connected, RdmaConnectTimeout after the connect began
 * at most, and twice as long before if it had to wait for a connector.
 * RDMA_HDR_NOT_DECLINED with *out (valid until release), or why not: CONNECT,
 * DEVICE, MEMORY, BUSY. */
rdma_hdr_declined rdma_cache_wait(rdma_cache_slot *slot, rdma_body_set **out);

/* Mark id as used at this endpoint. 1: the first time; 0: a second time (or too
 * far behind the newest to know): that request goes over TCP, PROTOCOL.md 3.4,
 * and *conn is the connection on which the first one still runs, or 0. */
int rdma_cache_use_id(rdma_cache_slot *slot, uint32_t id, uint32_t *conn);

void rdma_cache_release(rdma_cache_slot *slot);

/* A stream holds its worker as long as its client takes: 0, or -1: as many run
 * as there may be. Each begin that returned 0 has its end. */
int rdma_cache_stream_begin(rdma_cache *cache);
void rdma_cache_stream_end(rdma_cache *cache);

#endif /* RDMA_CACHE_H */
