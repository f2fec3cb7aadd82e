/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The write kind: blocks of the pool are filled, and RDMA-WRITten into the
 * client's window; a stream goes round it as in a ring.
 */
#include "rdma_body_private.h"

#include <errno.h>
#include <stddef.h>

/* A block of a stream is at most a quarter of the ring. */
static void limit_blocks(rdma_body *b)
{
    if (b->window / 4 < b->block_len) {
        b->block_len = (size_t)(b->window / 4);
    }
}

/* So many blocks, within what their client may have: several at a time of the first
 * half of that, so that many bodies of one client find one each. 0 or -1. */
static int take(rdma_body *b, unsigned n, char *bases[])
{
    const rdma_body_conf *conf = &b->set->conf;
    size_t bytes = (size_t)n * RDMA_MEM_BLOCK;
    size_t has = __atomic_add_fetch(conf->blocks, bytes, __ATOMIC_RELAXED);
    size_t most = n > 1 ? conf->blocks_max / 2 : conf->blocks_max;

    /* However little there is, it has one. */
    if ((has <= most || has == RDMA_MEM_BLOCK)
        && rdma_mem_pool_take(conf->pool, n, bases) == 0) {
        return 0;
    }
    __atomic_sub_fetch(conf->blocks, bytes, __ATOMIC_RELAXED);
    return -1;
}

static rdma_hdr_declined reserve(rdma_body *b, const rdma_hdr_request *req)
{
    rdma_mem_pool *pool = b->set->conf.pool;
    char *bases[RDMA_BODY_BLOCKS];
    unsigned i;
    unsigned n = RDMA_BODY_BLOCKS;

    b->block_len = RDMA_MEM_BLOCK;
    b->window = req->len;
    if (b->total > req->len || b->streamed) { /* also if it is not known */
        if (req->len < RDMA_BODY_RING) {
            return RDMA_HDR_WINDOW;
        }
        b->streamed = b->head_due = 1;
        limit_blocks(b);
    }
    else if (b->total <= (RDMA_BODY_BLOCKS - 1) * RDMA_MEM_BLOCK) {
        n = (unsigned)((b->total + RDMA_MEM_BLOCK - 1) / RDMA_MEM_BLOCK);
    }
    while (!pool || take(b, n, bases)) {
        if (!pool || n == 1) {
            return RDMA_HDR_MEMORY;
        }
        n = 1; /* slower, but by RDMA */
    }
    b->stag = req->stag;
    b->to = req->to;
    b->nblocks = n;
    for (i = 0; i < n; i++) {
        b->blocks[i].body = b;
        b->blocks[i].base = bases[i];
    }
    return RDMA_HDR_NOT_DECLINED;
}

/* Bytes that the current block may hold: a WRITE never crosses the end of the
 * window, where the ring goes on at its beginning. */
static size_t block_room(const rdma_body *b)
{
    uint64_t to_end = b->window - (b->committed - b->filled) % b->window;

    return to_end < b->block_len ? (size_t)to_end : b->block_len;
}

static int block_is_free(void *arg)
{
    rdma_body *b = arg;

    return !rdma_body_alive(b) || !b->blocks[b->current].busy;
}

static char *space(rdma_body *b, size_t *room)
{
    rdma_conn *c = b->set->conn;
    char *at = NULL;

    rdma_conn_lock(c);
    if (rdma_body_alive(b)
        && rdma_body_wait(b, block_is_free, b) == 0
        && rdma_body_alive(b)) {
        *room = block_room(b) - b->filled;
        at = b->blocks[b->current].base + b->filled;
    }
    rdma_conn_unlock(c);
    return at;
}

static void give_block(rdma_body *b, body_block *k)
{
    if (k->base && !k->busy) {
        rdma_mem_pool_give(b->set->conf.pool, k->base);
        __atomic_sub_fetch(b->set->conf.blocks, RDMA_MEM_BLOCK,
                           __ATOMIC_RELAXED);
        k->base = NULL;
    }
}

static void give_back(rdma_body *b)
{
    unsigned i;

    for (i = 0; i < b->nblocks; i++) {
        give_block(b, &b->blocks[i]);
    }
}

static void block_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    body_block *k = (body_block *)wr; /* wr is its first member */
    rdma_body *b = k->body;

    (void)c;
    (void)ok; /* the connection is CLOSED then, and closed() has been called */
    k->busy = 0;
    b->flying--;
    if (!b->worker) {
        give_block(b, k);
        rdma_body_settle(b);
    }
}

typedef struct writing {
    rdma_body *body;
    int rc;
} writing;

static int try_write(void *arg)
{
    writing *w = arg;
    rdma_body *b = w->body;
    body_block *k = &b->blocks[b->current];
    uint64_t at = (b->committed - b->filled) % b->window;

    if (!rdma_body_alive(b)) {
        w->rc = ECONNRESET;
        return 1;
    }
    k->wr.done = block_done;
    w->rc = rdma_conn_write(b->set->conn, &k->wr, k->base,
                            rdma_mem_pool_lkey(b->set->conf.pool),
                            (uint32_t)b->filled, b->to + at, b->stag);
    return w->rc != EAGAIN;
}

/* [locked] Post the current block, as soon as the ring has room for it. */
static int write_block(rdma_body *b)
{
    writing w = {b, 0};

    if (b->committed > b->window
        && rdma_body_await_consumed(b, b->committed - b->window)) {
        return -1;
    }
    if (rdma_body_wait(b, try_write, &w) || w.rc) {
        return -1;
    }
    b->spoken_of = 1; /* the connection may have been closed for it */
    if (b->state == RESERVED) {
        rdma_body_transit(b, ACTIVE, "first WRITE");
    }
    b->blocks[b->current].busy = 1;
    b->flying++;
    b->current = (b->current + 1) % b->nblocks;
    b->filled = 0;
    return 0;
}

/* [locked] What has been posted is announced: a block is never more than the
 * quarter of the ring after which PROTOCOL.md wants WRITTEN. */
static int say_written(rdma_body *b)
{
    rdma_hdr_msg m = {.type = RDMA_HDR_WRITTEN,
                      .id = b->id,
                      .bytes = b->committed - b->filled};

    if (m.bytes == b->announced) {
        return 0;
    }
    b->announced = m.bytes;
    return rdma_conn_say(b->set->conn, &m, NULL) ? -1 : 0;
}

/* [locked] What it has committed already may lie in one block that is larger
 * than a quarter of the ring; what comes after it will not. */
static int become_stream(rdma_body *b)
{
    if (b->window < RDMA_BODY_RING || (b->filled > 0 && write_block(b))) {
        return -1;
    }
    limit_blocks(b);
    b->head_due = 1;
    return 0;
}

static int holds_worker(const rdma_body *b)
{
    return b->total > b->nblocks * b->block_len;
}

static int flush(rdma_body *b)
{
    return (b->filled > 0 && write_block(b)) || say_written(b) ? -1 : 0;
}

static int commit(rdma_body *b)
{
    rdma_conn *c = b->set->conn;
    int rc = 0;

    if (b->filled == block_room(b) || b->committed == b->total) {
        rdma_conn_lock(c);
        rc = write_block(b);
        if (rc == 0 && b->streamed && b->committed != b->total) {
            rc = say_written(b);
        }
        rdma_conn_unlock(c);
    }
    return rc;
}

static void written_sent(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdma_body *b = (rdma_body *)((char *)wr - offsetof(rdma_body, sent));

    (void)c;
    b->sent_state = ok ? 1 : -1;
    b->flying--;
    rdma_body_settle(b);
}

static int has_been_sent(void *arg)
{
    return ((rdma_body *)arg)->sent_state != 0;
}

static int finish(rdma_body *b)
{
    rdma_conn *c = b->set->conn;
    rdma_hdr_msg m = {.type = RDMA_HDR_WRITTEN,
                      .flags = RDMA_HDR_FIN,
                      .id = b->id,
                      .bytes = b->committed};

    if (b->filled > 0 && write_block(b)) {
        return -1;
    }
    /* SAID first: the message may be answered before rdma_conn_say returns. */
    b->announced = b->committed;
    rdma_body_said(b, "WRITTEN fin");
    b->sent.done = written_sent;
    b->flying++;
    if (rdma_conn_say(c, &m, &b->sent)) {
        b->flying--;
        return -1;
    }
    if (rdma_body_wait(b, has_been_sent, b) || b->sent_state != 1) {
        return -1;
    }
    return 0;
}

static void describe(const rdma_body *b, rdma_hdr_response *head)
{
    if (b->total != RDMA_BODY_UNKNOWN) {
        head->has_total = 1;
        head->total = b->total;
    }
}

static void head_out(rdma_body *b)
{
    (void)b; /* it has announced nothing */
}

const body_kind rdma_body_write_kind = {.reserve = reserve,
                                        .space = space,
                                        .commit = commit,
                                        .flush = flush,
                                        .stream = become_stream,
                                        .holds_worker = holds_worker,
                                        .finish = finish,
                                        .describe = describe,
                                        .head_out = head_out,
                                        .give_back = give_back};
