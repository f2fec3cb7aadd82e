/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_body.h"

#include "rdma_arenas.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS     4       /* of one body: filling overlaps with moving */
#define LINGER     100000  /* microseconds: to look for blocks on their way */
#define ARENA_LOOK 6000000 /* microseconds: then idle arenas are looked for */

typedef enum body_state { RESERVED, ACTIVE, SAID, CLOSED } body_state;

typedef struct block {
    rdma_conn_wr wr;
    rdma_body *body;
    char *base; /* NULL: not ours any more */
    int busy;   /* the device has it */
} block;

struct rdma_body {
    rdma_body *next, *prev; /* the set's */
    rdma_body_set *set;
    uint32_t id;
    uint64_t total;     /* bytes of the body */
    uint64_t committed; /* bytes that the worker has delivered */

    /* under the connection's lock */
    body_state state;
    int worker;      /* a worker has a pointer to us */
    int aborted;     /* our last word is ABORT */
    int peer_said;   /* the client's last word has come */
    unsigned flying; /* work requests that the device has */
    uint64_t consumed;
    rdma_conn_time deadline; /* SAID: for the client's last word */
    int revoked;             /* the deadline has passed once */

    /* write kind */
    uint32_t stag;
    uint64_t to;
    unsigned nblocks;
    unsigned current;
    size_t filled; /* bytes of blocks[current] */
    block blocks[BLOCKS];
    rdma_conn_wr sent; /* WRITTEN(fin) */
    int sent_state;    /* 0 on its way, 1 has gone, -1 failed */

    /* read kind */
    rdma_arenas_part part;
};

struct rdma_body_set {
    rdma_conn *conn;
    rdma_body_conf conf;
    rdma_arenas *arenas; /* read kind */
    rdma_body *bodies;
    unsigned live;
};

/* ---- set --------------------------------------------------------------- */

rdma_body_set *rdma_body_set_create(rdma_conn *c, const rdma_body_conf *conf)
{
    rdma_body_set *set = calloc(1, sizeof(*set));

    if (!set) {
        return NULL;
    }
    set->conn = c;
    set->conf = *conf;
    if (rdma_conn_kind(c) == RDMA_HDR_READ) {
        set->arenas =
            rdma_arenas_create(conf->mem, rdma_conn_pd(c), conf->arena_max);
        if (!set->arenas) {
            free(set);
            return NULL;
        }
    }
    return set;
}

static void give_block(rdma_body *b, block *k)
{
    if (k->base) {
        rdma_mem_pool_give(b->set->conf.pool, k->base);
        k->base = NULL;
    }
}

static void give_idle_blocks(rdma_body *b)
{
    unsigned i;

    for (i = 0; i < b->nblocks; i++) {
        if (!b->blocks[i].busy) {
            give_block(b, &b->blocks[i]);
        }
    }
}

static void unlink_body(rdma_body *b)
{
    give_idle_blocks(b);
    if (b->part.mem.base) {
        rdma_arenas_give(b->set->arenas, &b->part);
    }
    if (b->prev) {
        b->prev->next = b->next;
    }
    else {
        b->set->bodies = b->next;
    }
    if (b->next) {
        b->next->prev = b->prev;
    }
    free(b);
}

void rdma_body_set_destroy(rdma_body_set *set)
{
    while (set->bodies) {
        unlink_body(set->bodies);
    }
    rdma_arenas_destroy(set->arenas);
    free(set);
}

unsigned rdma_body_set_live(const rdma_body_set *set)
{
    return set->live;
}

static rdma_body *find(const rdma_body_set *set, uint32_t id)
{
    rdma_body *b = set->bodies;

    while (b && (b->id != id || b->state == CLOSED)) {
        b = b->next;
    }
    return b;
}

int rdma_body_set_has(const rdma_body_set *set, uint32_t id)
{
    return find(set, id) != NULL;
}

/* ---- states ------------------------------------------------------------ */

__attribute__((format(printf, 3, 4))) static void
say_line(const rdma_body *b, int level, const char *fmt, ...)
{
    const rdma_body_conf *conf = &b->set->conf;
    char line[256];
    int n;
    va_list ap;

    if (!conf->log) {
        return;
    }
    n = snprintf(line, sizeof(line), "%s id %u: ", rdma_conn_name(b->set->conn),
                 b->id);
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
    va_end(ap);
    conf->log(conf->baton, level, line);
}

/* The only place where the state changes. */
static void transit(rdma_body *b, body_state to, const char *why)
{
    static const char *const names[] = {"RESERVED", "ACTIVE", "SAID", "CLOSED"};

    say_line(b, 7, "%s -- %s --> %s", names[b->state], why, names[to]);
    if (to == CLOSED && b->state != CLOSED) {
        b->set->live--;
    }
    b->state = to;
}

/* Free a body that nobody needs any more: closed, without a worker, and
 * nothing of it in the device's hands. An arena part of a connection that is
 * CLOSED stays where it is until the QP is gone (rdma_body_set_destroy). */
static void settle(rdma_body *b)
{
    rdma_body_set *set = b->set;

    if (b->state != CLOSED || b->worker || b->flying) {
        return;
    }
    if (b->part.mem.base
        && rdma_conn_state_get(set->conn) == RDMA_CONN_CLOSED) {
        return;
    }
    unlink_body(b);
    if (set->arenas) { /* what is idle now will have to be given back */
        set->conf.remind(set->conf.baton, rdma_conn_now() + ARENA_LOOK);
    }
}

static void said(rdma_body *b, const char *why)
{
    transit(b, SAID, why);
    b->deadline = rdma_conn_now() + b->set->conf.lease_timeout;
    b->set->conf.remind(b->set->conf.baton, b->deadline);
    if (b->peer_said) {
        transit(b, CLOSED, "both last words");
    }
}

static void say_abort(rdma_body *b, rdma_hdr_abort reason)
{
    rdma_hdr_msg m = {
        .type = RDMA_HDR_ABORT, .id = b->id, .len = (uint32_t)reason};

    rdma_conn_say(b->set->conn, &m, NULL);
}

/* ---- opening ----------------------------------------------------------- */

static rdma_hdr_declined reserve_write(rdma_body *b,
                                       const rdma_hdr_request *req)
{
    rdma_mem_pool *pool = b->set->conf.pool;
    char *bases[BLOCKS];
    unsigned i;
    unsigned n = BLOCKS;

    if (b->total > req->len) {
        return RDMA_HDR_WINDOW;
    }
    if (b->total <= (BLOCKS - 1) * RDMA_MEM_BLOCK) {
        n = (unsigned)((b->total + RDMA_MEM_BLOCK - 1) / RDMA_MEM_BLOCK);
    }
    while (!pool || rdma_mem_pool_take(pool, n, bases)) {
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

static rdma_hdr_declined reserve_read(rdma_body *b)
{
    if (b->total > b->set->conf.arena_max || b->total > UINT32_MAX) {
        return RDMA_HDR_WINDOW;
    }
    return rdma_arenas_take(b->set->arenas, (size_t)b->total, &b->part)
               ? RDMA_HDR_MEMORY
               : RDMA_HDR_NOT_DECLINED;
}

rdma_hdr_declined rdma_body_open(rdma_body_set *set,
                                 const rdma_hdr_request *req, uint64_t total,
                                 rdma_body **out)
{
    rdma_hdr_declined why;
    rdma_body *b = calloc(1, sizeof(*b));

    *out = NULL;
    if (!b) {
        return RDMA_HDR_MEMORY;
    }
    b->set = set;
    b->id = req->id;
    b->total = total;
    b->worker = 1;
    rdma_conn_lock(set->conn);
    if (rdma_conn_state_get(set->conn) != RDMA_CONN_OPEN) {
        why = RDMA_HDR_CONNECT;
    }
    else if (rdma_conn_kind(set->conn) == RDMA_HDR_WRITE) {
        why = reserve_write(b, req);
    }
    else {
        why = reserve_read(b);
    }
    if (why == RDMA_HDR_NOT_DECLINED) {
        b->next = set->bodies;
        if (b->next) {
            b->next->prev = b;
        }
        set->bodies = b;
        set->live++;
        *out = b;
    }
    rdma_conn_unlock(set->conn);
    if (!*out) {
        free(b);
    }
    return why;
}

/* ---- filling ----------------------------------------------------------- */

static int is_write(const rdma_body *b)
{
    return b->nblocks > 0;
}

/* Neither the connection nor the client has ended it. */
static int alive(const rdma_body *b)
{
    return b->state == RESERVED || b->state == ACTIVE;
}

static int block_is_free(void *arg)
{
    rdma_body *b = arg;

    return !alive(b) || !b->blocks[b->current].busy;
}

static rdma_conn_time progress_deadline(const rdma_body *b)
{
    return rdma_conn_now() + b->set->conf.timeout;
}

char *rdma_body_space(rdma_body *b, size_t *room)
{
    rdma_conn *c = b->set->conn;
    uint64_t left = b->total - b->committed;
    char *at = NULL;

    rdma_conn_lock(c);
    if (left > 0 && alive(b) && is_write(b)) {
        if (rdma_conn_wait(c, block_is_free, b, progress_deadline(b)) == 0
            && alive(b)) {
            *room = RDMA_MEM_BLOCK - b->filled;
            at = b->blocks[b->current].base + b->filled;
        }
    }
    else if (left > 0 && alive(b)) {
        *room = (size_t)left;
        at = b->part.mem.base + b->committed;
    }
    rdma_conn_unlock(c);
    if (at && *room > left) {
        *room = (size_t)left;
    }
    return at;
}

static void block_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    block *k = (block *)wr; /* wr is its first member */
    rdma_body *b = k->body;

    (void)c;
    (void)ok; /* the connection is CLOSED then, and closed() has been called */
    k->busy = 0;
    b->flying--;
    if (!b->worker) {
        give_block(b, k);
        settle(b);
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
    block *k = &b->blocks[b->current];

    if (!alive(b)) {
        w->rc = ECONNRESET;
        return 1;
    }
    k->wr.done = block_done;
    w->rc = rdma_conn_write(
        b->set->conn, &k->wr, k->base, rdma_mem_pool_lkey(b->set->conf.pool),
        (uint32_t)b->filled, b->to + (b->committed - b->filled), b->stag);
    return w->rc != EAGAIN;
}

static int write_block(rdma_body *b)
{
    writing w = {b, 0};

    if (rdma_conn_wait(b->set->conn, try_write, &w, progress_deadline(b))
        || w.rc) {
        return -1;
    }
    if (b->state == RESERVED) {
        transit(b, ACTIVE, "first WRITE");
    }
    b->blocks[b->current].busy = 1;
    b->flying++;
    b->current = (b->current + 1) % b->nblocks;
    b->filled = 0;
    return 0;
}

int rdma_body_commit(rdma_body *b, size_t n)
{
    rdma_conn *c = b->set->conn;
    int rc = 0;

    if (n > b->total - b->committed) {
        return -1;
    }
    b->committed += n;
    if (is_write(b)) {
        b->filled += n;
        if (b->filled == RDMA_MEM_BLOCK || b->committed == b->total) {
            rdma_conn_lock(c);
            rc = write_block(b);
            rdma_conn_unlock(c);
        }
    }
    return rc;
}

/* ---- finishing --------------------------------------------------------- */

static void written_sent(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdma_body *b = (rdma_body *)((char *)wr - offsetof(rdma_body, sent));

    (void)c;
    b->sent_state = ok ? 1 : -1;
    b->flying--;
    settle(b);
}

static int has_been_sent(void *arg)
{
    return ((rdma_body *)arg)->sent_state != 0;
}

static int finish_write(rdma_body *b)
{
    rdma_conn *c = b->set->conn;
    rdma_hdr_msg m = {.type = RDMA_HDR_WRITTEN,
                      .flags = RDMA_HDR_FIN,
                      .id = b->id,
                      .bytes = b->total};

    /* SAID first: the message may be answered before rdma_conn_say returns. */
    said(b, "WRITTEN fin");
    b->sent.done = written_sent;
    b->flying++;
    if (rdma_conn_say(c, &m, &b->sent)) {
        b->flying--;
        return -1;
    }
    if (rdma_conn_wait(c, has_been_sent, b, progress_deadline(b))
        || b->sent_state != 1) {
        return -1;
    }
    return 0;
}

/* [locked] The worker leaves. Blocks that are not on their way go back at once:
 * a slow client pins none. A scan skips bodies that have a worker, so what the
 * progress thread has to look at from now on, it is told now. */
static void let_go(rdma_body *b)
{
    const rdma_body_conf *conf = &b->set->conf;

    b->worker = 0;
    give_idle_blocks(b);
    if (b->state == SAID) {
        conf->remind(conf->baton, b->deadline);
    }
    if (b->flying) {
        conf->remind(conf->baton, rdma_conn_now() + LINGER);
    }
    settle(b);
}

int rdma_body_finish(rdma_body *b, rdma_hdr_response *head)
{
    rdma_conn *c = b->set->conn;
    int rc = -1;

    memset(head, 0, sizeof(*head));
    head->id = b->id;
    head->conn = rdma_conn_number(c);
    head->kind = rdma_conn_kind(c);
    rdma_conn_lock(c);
    if (!alive(b) || b->committed != b->total) {
        rc = -1;
    }
    else if (is_write(b)) {
        head->has_total = 1;
        head->total = b->total;
        rc = finish_write(b);
    }
    else if (rdma_conn_state_get(c) == RDMA_CONN_OPEN) {
        head->stag = rdma_mem_arena_rkey(b->part.arena);
        head->to = (uintptr_t)b->part.mem.base;
        head->len = b->total;
        head->fin = 1;
        said(b, "lease");
        rc = 0;
    }
    if (rc == 0) {
        let_go(b);
    }
    rdma_conn_unlock(c);
    return rc;
}

uint32_t rdma_body_abandon(rdma_body *b, rdma_hdr_abort why)
{
    rdma_conn *c = b->set->conn;
    uint32_t posted;

    rdma_conn_lock(c);
    /* The client may have ended an id for which nothing was posted: it has got
     * our ABORT, so the head must name the connection all the same. */
    posted = b->state == RESERVED ? 0 : rdma_conn_number(c);
    if (b->state == RESERVED) {
        transit(b, CLOSED, "nothing was posted");
    }
    else if (b->state == ACTIVE) {
        b->aborted = 1;
        say_abort(b, why);
        /* Saying it may have closed the connection, and us. */
        if (b->state == ACTIVE) {
            said(b, "ABORT");
        }
    }
    let_go(b);
    rdma_conn_unlock(c);
    return posted;
}

/* ---- the progress thread ----------------------------------------------- */

static void peer_last_word(rdma_body *b, const char *what)
{
    b->peer_said = 1;
    if (b->state == SAID) {
        transit(b, CLOSED, what);
    }
    else { /* an ABORT, to be answered with our own last word */
        b->aborted = 1;
        say_abort(b, RDMA_HDR_ABORT_ANSWER);
        if (b->state != CLOSED) {
            transit(b, CLOSED, what);
        }
    }
    rdma_conn_wake(b->set->conn);
    settle(b);
}

static int consumed(rdma_body *b, const rdma_hdr_msg *m)
{
    int fin = (m->flags & RDMA_HDR_FIN) != 0;

    if (b->aborted) {
        if (fin) {
            peer_last_word(b, "CONSUMED fin");
        }
        return 0;
    }
    /* What can be consumed has been announced, which it is with our fin. */
    if (m->bytes < b->consumed || m->bytes > b->total
        || (b->state != SAID && (m->bytes > 0 || fin))
        || (fin && m->bytes != b->total)) {
        return -1;
    }
    if (m->bytes > b->consumed && !b->revoked) {
        b->consumed = m->bytes;
        b->deadline = rdma_conn_now() + b->set->conf.lease_timeout;
    }
    if (fin) {
        peer_last_word(b, "CONSUMED fin");
    }
    return 0;
}

int rdma_body_message(rdma_body_set *set, const rdma_hdr_msg *m)
{
    rdma_body *b;

    if (m->type != RDMA_HDR_CONSUMED && m->type != RDMA_HDR_ABORT) {
        return -1; /* WRITTEN and OFFER are the server's to say */
    }
    b = find(set, m->id);
    if (!b) {
        return 0;
    }
    if (m->type == RDMA_HDR_CONSUMED) {
        return consumed(b, m);
    }
    peer_last_word(b, "ABORT from the client");
    return 0;
}

void rdma_body_closed(rdma_body_set *set)
{
    rdma_body *b;
    rdma_body *next;

    for (b = set->bodies; b; b = next) {
        next = b->next;
        if (b->state != CLOSED) {
            transit(b, CLOSED, "connection closed");
        }
        settle(b);
    }
    rdma_conn_wake(set->conn);
}

rdma_conn_time rdma_body_expire(rdma_body_set *set, rdma_conn_time now)
{
    rdma_conn_time next = RDMA_CONN_NEVER;
    rdma_conn_time trim;
    rdma_body *b;

    rdma_conn_reap(set->conn); /* what nobody waits for */
    if (rdma_conn_state_get(set->conn) == RDMA_CONN_CLOSED) {
        return RDMA_CONN_NEVER;
    }
    for (b = set->bodies; b; b = b->next) {
        if (b->flying && !b->worker && now + LINGER < next) {
            next = now + LINGER;
        }
        if (b->state != SAID || b->worker) {
            continue;
        }
        if (now >= b->deadline && b->revoked) {
            say_line(b, 6, "no answer to ABORT");
            rdma_conn_close(set->conn, RDMA_CONN_CAUSE_TIMEOUT);
            return RDMA_CONN_NEVER; /* the list is another one now */
        }
        if (now >= b->deadline) {
            say_line(b, 6, "the client's last word is overdue");
            b->revoked = 1;
            b->deadline = now + set->conf.timeout;
            if (!b->aborted) {
                b->aborted = 1;
                say_abort(b, RDMA_HDR_ABORT_LEASE);
                if (rdma_conn_state_get(set->conn) == RDMA_CONN_CLOSED) {
                    return RDMA_CONN_NEVER;
                }
            }
        }
        if (b->deadline < next) {
            next = b->deadline;
        }
    }
    trim = set->arenas ? rdma_arenas_trim(set->arenas, now) : RDMA_CONN_NEVER;
    return trim < next ? trim : next;
}
