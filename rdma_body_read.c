/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The read kind: the body lies in parts of the connection's arena, which the
 * client RDMA-READs. A body that fits is one part; a stream fills two in turn.
 */
#include "rdma_body_private.h"

#include <errno.h>
#include <string.h>

#define PART_LEN ((size_t)512 * 1024) /* bytes, of a stream */
#define PART_MIN ((size_t)64 * 1024)  /* when memory is short */

/* What was never offered is not to be read, although the arena still can: the
 * worker may have filled all that was lent, and committed nothing of it. */
static void give_back(rdma_body *b)
{
    unsigned i;

    if (b->lent > 0) {
        memset(b->parts[b->current].at.mem.base, 0, b->lent);
    }
    for (i = 0; i < b->nparts; i++) {
        rdma_arenas_give(b->set->arenas, &b->parts[i].at);
    }
}

/* [locked] n parts of len bytes each, all or none. */
static int take_parts(rdma_body *b, unsigned n, size_t len)
{
    for (b->nparts = 0; b->nparts < n; b->nparts++) {
        if (rdma_arenas_take(b->set->arenas, len, &b->parts[b->nparts].at)) {
            give_back(b);
            b->nparts = 0;
            return ENOMEM;
        }
        b->parts[b->nparts].shown = len;
    }
    return 0;
}

/* [locked] The part may be read from now on: behind what fills it nothing is
 * left of other bodies, or of what it held before. (A whole body's part has been
 * zeroed where the body does not fill it.) */
static void show(rdma_body *b)
{
    body_part *p = &b->parts[b->current];

    if (b->filled < p->shown) {
        memset(p->at.mem.base + b->filled, 0, p->shown - b->filled);
    }
    p->shown = b->filled;
}

static rdma_hdr_declined reserve(rdma_body *b, const rdma_hdr_request *req)
{
    size_t most = b->set->conf.arena_max;
    size_t least = b->thrifty ? PART_MIN : PART_LEN;
    size_t len;

    (void)req;
    if (!b->streamed && b->total <= most && b->total <= UINT32_MAX
        && take_parts(b, 1, (size_t)b->total) == 0) {
        return RDMA_HDR_NOT_DECLINED;
    }
    if (!b->thrifty && !b->streamed && b->total <= most) {
        return RDMA_HDR_MEMORY; /* others may have some that is idle */
    }
    /* Wanted so, unknown, too large, or more than there is memory for: then parts
     * are of use only if they are smaller together. */
    for (len = PART_LEN; len >= least; len /= 2) {
        size_t part = b->total < len ? (size_t)b->total : len;

        if ((b->streamed || b->total > RDMA_BODY_PARTS * len)
            && take_parts(b, RDMA_BODY_PARTS, part) == 0) {
            b->streamed = 1;
            return RDMA_HDR_NOT_DECLINED;
        }
    }
    return RDMA_HDR_MEMORY;
}

static int part_is_full(const rdma_body *b)
{
    return b->filled == b->parts[b->current].at.mem.len;
}

static char *space(rdma_body *b, size_t *room)
{
    rdma_conn *c = b->set->conn;
    body_part *p = &b->parts[b->current];
    char *at = NULL;

    rdma_conn_lock(c);
    if (rdma_body_alive(b) && rdma_body_await_consumed(b, p->end) == 0) {
        *room = p->at.mem.len - b->filled;
        at = p->at.mem.base + b->filled;
    }
    rdma_conn_unlock(c);
    return at;
}

/* [locked] The current part has been announced: go on in the other one. */
static void next_part(rdma_body *b)
{
    b->parts[b->current].end = b->announced = b->committed;
    b->current = (b->current + 1) % b->nparts;
    b->filled = b->lent = 0;
}

/* [locked] Announce what the current part holds. */
static int offer(rdma_body *b, unsigned flags)
{
    const rdma_arenas_part *at = &b->parts[b->current].at;
    rdma_hdr_msg m = {.type = RDMA_HDR_OFFER,
                      .flags = (uint8_t)flags,
                      .id = b->id,
                      .bytes = b->committed,
                      .len = (uint32_t)b->filled};

    if (b->filled > 0) {
        show(b);
        m.stag = rdma_mem_arena_rkey(at->arena);
        m.to = (uintptr_t)at->mem.base;
    }
    next_part(b);
    return rdma_conn_say(b->set->conn, &m, NULL) ? -1 : 0;
}

/* [locked] At most two parts are outstanding: with two of them, whoever fills
 * one has waited for it to be consumed. */
static int flush(rdma_body *b)
{
    if (b->filled == 0) {
        return 0;
    }
    if (!b->head_out) {
        b->head_due = 1; /* the head names the first part */
        show(b);
        return 0;
    }
    return offer(b, 0);
}

/* [locked] It has one part, which it fills and offers again and again. */
static int become_stream(rdma_body *b)
{
    (void)b;
    return 0;
}

/* Where the client reads, and when, is nothing to the worker. */
static int holds_worker(const rdma_body *b)
{
    (void)b;
    return 0;
}

static int commit(rdma_body *b)
{
    rdma_conn *c = b->set->conn;
    int rc = 0;

    if (b->streamed && part_is_full(b) && b->committed != b->total) {
        rdma_conn_lock(c);
        rc = flush(b);
        rdma_conn_unlock(c);
    }
    return rc;
}

/* [locked] */
static int finish(rdma_body *b)
{
    if (rdma_conn_state_get(b->set->conn) != RDMA_CONN_OPEN) {
        return -1;
    }
    if (!b->head_out) { /* all of it lies in one part: the head is our fin */
        b->announced = b->committed;
        b->lent = 0;
        rdma_body_said(b, "lease");
        return 0;
    }
    /* SAID first: what has come already is dealt with if saying it fails. */
    rdma_body_said(b, "OFFER fin");
    if (offer(b, RDMA_HDR_FIN)) {
        return -1;
    }
    return b->state == CLOSED && !b->taken ? -1 : 0;
}

static void describe(const rdma_body *b, rdma_hdr_response *head)
{
    const rdma_arenas_part *at = &b->parts[b->current].at;

    head->stag = rdma_mem_arena_rkey(at->arena);
    head->to = (uintptr_t)at->mem.base;
    head->len = b->filled;
    if (b->state == SAID) {
        head->fin = 1;
    }
    else if (b->total != RDMA_BODY_UNKNOWN) {
        head->has_total = 1;
        head->total = b->total;
    }
}

static void head_out(rdma_body *b)
{
    next_part(b);
}

const body_kind rdma_body_read_kind = {.reserve = reserve,
                                       .space = space,
                                       .commit = commit,
                                       .flush = flush,
                                       .stream = become_stream,
                                       .holds_worker = holds_worker,
                                       .finish = finish,
                                       .describe = describe,
                                       .head_out = head_out,
                                       .give_back = give_back};
