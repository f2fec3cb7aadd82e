/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_body: response bodies on their way by RDMA, seen from the server.
 *
 *   set    all ids of one connection and, for the read kind, the arena that
 *          their parts come from; made and destroyed with the connection
 *   body   one id, from the reservation of what it needs to both last words
 *
 * The caller (the output filter, on a worker) sees the same steps for both
 * kinds:
 *
 *      open -> { space -> fill it -> commit } ... -> finish -> send the head
 *        \________________ abandon ______________________/
 *
 *   server-write  space is a block of the pool; commit posts RDMA WRITEs;
 *                 finish says WRITTEN(fin) and waits until it has been sent
 *   client-read   space lies in the arena; finish makes it a lease: from then
 *                 on the progress thread owns the body, and no worker waits for
 *                 the client
 *
 * States of an id (PROTOCOL.md): RESERVED -> ACTIVE (first post) -> SAID (our
 * last word) -> CLOSED (both last words); CLOSED is the end of the object.
 *
 * Threads: open to finish or abandon belong to one worker, which keeps the
 * connection alive meanwhile (rdma_cache_acquire); the rest happens on the
 * progress thread. After finish or abandon the worker's pointer is dead.
 */
#ifndef RDMA_BODY_H
#define RDMA_BODY_H

#include "rdma_conn.h"
#include "rdma_hdr.h"
#include "rdma_mem.h"

#define RDMA_BODY_UNKNOWN UINT64_MAX /* bytes: the length is not known yet */
#define RDMA_BODY_RING    ((uint64_t)64 * 1024) /* bytes: the least window
                                                 * that streams go through */

typedef struct rdma_body rdma_body;
typedef struct rdma_body_set rdma_body_set;

typedef struct rdma_body_conf {
    rdma_mem *mem;       /* pays for the arena */
    rdma_mem_pool *pool; /* write kind: the device's; NULL: no memory for it */
    size_t arena_max;    /* bytes: read kind: the largest arena */
    size_t arenas_max;   /* bytes: read kind: what all that count here have */
    size_t *arenas;      /* bytes: read kind: that they have now; atomic */
    size_t blocks_max;   /* bytes: write kind: the same, of pools */
    size_t *blocks;
    rdma_conn_time timeout;       /* progress, microseconds */
    rdma_conn_time lease_timeout; /* without CONSUMED progress */
    /* The progress thread is to call rdma_body_expire() at `when`, if it would
     * not do so before. Any thread, connection locked. */
    void (*remind)(void *baton, rdma_conn_time when);
    /* There is not enough memory for a body: make other connections give back
     * what is idle. A worker's thread, nothing locked. May be NULL. */
    void (*reclaim)(void *baton);
    /* A worker is about to wait for a client for longer than a moment, with a
     * body that does not hold one (rdma_body_holds_worker): 0, or not 0: too
     * many do, and it must not. Connection locked. */
    int (*hold)(void *baton);
    void (*unhold)(void *baton);
    /* As rdma_conn_handler's log. May be NULL. */
    void (*log)(void *baton, int level, const char *line);
    void *baton;
} rdma_body_conf;

/* conf is copied. NULL: no memory. */
rdma_body_set *rdma_body_set_create(rdma_conn *c, const rdma_body_conf *conf);
/* What is left of the ids and the arena goes. Called from rdma_conn_destroy()'s
 * gone(): the QP is no more, the protection domain still is. */
void rdma_body_set_destroy(rdma_body_set *set);
/* [connection locked] Ids that are not CLOSED; 1 if this id is one of them. */
unsigned rdma_body_set_live(const rdma_body_set *set);
/* [connection locked] When the last of them so far was CLOSED, or 0. */
rdma_conn_time rdma_body_set_ended(const rdma_body_set *set);
int rdma_body_set_has(const rdma_body_set *set, uint32_t id);

/* Reserve all that a body of total bytes (1 and up, or RDMA_BODY_UNKNOWN) needs.
 * req is copied. A body that is unknown, or too large for window, arena or
 * memory, is streamed, and any body if stream is not 0: see rdma_body_head().
 * RDMA_HDR_NOT_DECLINED with *out, or why not (nothing has been posted then):
 * WINDOW: it would have to be streamed, through too small a window; MEMORY;
 * BUSY: too many ids are open on this connection; CONNECT: it is gone. */
rdma_hdr_declined rdma_body_open(rdma_body_set *set,
                                 const rdma_hdr_request *req, uint64_t total,
                                 int stream, rdma_body **out);

/* Where the next bytes of the body go: *room bytes (1 and up). May wait, at
 * most RdmaTimeout. NULL: the connection or a deadline failed: abandon. */
char *rdma_body_space(rdma_body *b, size_t *room);
/* n bytes (up to room) of that space have been filled. 0, or -1: abandon. */
int rdma_body_commit(rdma_body *b, size_t n);

/* The source is dry for now: what has been committed is moved and announced. 0,
 * or -1: abandon. Nothing happens unless the body is streamed. */
int rdma_body_flush(rdma_body *b);

int rdma_body_streamed(const rdma_body *b);
/* 1: its worker goes at the client's pace, and is to be counted: a stream, or what
 * is written and larger than the blocks that it has. */
int rdma_body_holds_worker(const rdma_body *b);

/* A body that would go whole is to go as a stream, because its source pauses.
 * 0, or -1: the window is too small for that, or the connection failed, which
 * the next step will say; it goes on as it is. May wait, as space does. */
int rdma_body_stream(rdma_body *b);

/* After open, commit and flush: 1 if the head of a stream must be sent now, with
 * *head in the response field, before anything else is done with the body. */
int rdma_body_head(rdma_body *b, rdma_hdr_response *head);

/* All bytes have been committed. 0: the body is the engine's; unless a head
 * has been sent, *head says what the response field must say, and the head must
 * be sent now. -1: abandon. */
int rdma_body_finish(rdma_body *b, rdma_hdr_response *head);

/* Give up before finish has succeeded: ABORT if anything was posted. Returns 0
 * if nothing was (the answer is declined=why), else the conn that
 * declined=failed must name. */
uint32_t rdma_body_abandon(rdma_body *b, rdma_hdr_abort why);

/* [connection locked] Memory that no body needs is given back now. */
void rdma_body_reclaim(rdma_body_set *set);

/* ---- the progress thread ----------------------------------------------- */

/* [connection locked] What the handler's message() and closed() do. */
int rdma_body_message(rdma_body_set *set, const rdma_hdr_msg *m);
void rdma_body_closed(rdma_body_set *set);
/* [connection locked] See to leases: revoke one that has run out, close a
 * connection that does not answer. Give back *trims idle arenas at most, which
 * becomes less by those. Returns the next deadline. */
rdma_conn_time rdma_body_expire(rdma_body_set *set, rdma_conn_time now,
                                unsigned *trims);

#endif /* RDMA_BODY_H */
