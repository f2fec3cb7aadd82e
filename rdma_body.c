/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_body_private.h"
#include "rdma_count.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_LOOK 6000000 /* microseconds: then idle arenas are looked for */
#define LINGER     100000  /* microseconds: to look for blocks on their way */
#define MOMENT     500000  /* microseconds: what a healthy client takes at most */
#define MESSAGES   3       /* of one id that may be queued at once */
#define QUANTUM    ((uint64_t)64 * 1024) /* bytes: less is no progress */

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
        set->arenas = rdma_arenas_create(conf->mem, rdma_conn_pd(c),
                                         conf->arena_max, conf->arenas_max,
                                         conf->arenas);
        if (!set->arenas) {
            free(set);
            return NULL;
        }
    }
    return set;
}

static void unlink_body(rdma_body *b)
{
    b->kind->give_back(b);
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
    rdma_body *b;
    rdma_body *next;

    for (b = set->bodies; b; b = next) {
        next = b->next;
        unlink_body(b);
    }
    rdma_arenas_destroy(set->arenas);
    free(set);
}

unsigned rdma_body_set_live(const rdma_body_set *set)
{
    return set->live;
}

rdma_conn_time rdma_body_set_ended(const rdma_body_set *set)
{
    return set->ended;
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

static void count(const rdma_body *b, rdma_count_id write, rdma_count_id read,
                  uint64_t n)
{
    rdma_count_add(b->kind == &rdma_body_write_kind ? write : read, n);
}

/* From our last word to the client's, what it may read is a lease. */
static void count_lease(rdma_body *b, body_state to)
{
    if (to == SAID && b->nparts > 0 && !b->aborted) {
        b->leased = 1;
        rdma_count_add(RDMA_COUNT_LeasesGranted, 1);
        rdma_count_add(RDMA_COUNT_LeasesOpen, 1);
    }
    else if (to == CLOSED && b->leased) {
        b->leased = 0;
        rdma_count_sub(RDMA_COUNT_LeasesOpen, 1);
        rdma_count_add(b->revoked ? RDMA_COUNT_LeasesExpired
                       : b->taken ? RDMA_COUNT_LeasesDone
                                  : RDMA_COUNT_LeasesAborted,
                       1);
    }
}

void rdma_body_transit(rdma_body *b, body_state to, const char *why)
{
    static const char *const names[] = {"RESERVED", "ACTIVE", "SAID", "CLOSED"};

    say_line(b, 7, "%s -- %s --> %s", names[b->state], why, names[to]);
    if (to == CLOSED && b->state != CLOSED) {
        b->set->live--;
        b->set->ended = rdma_conn_now();
    }
    count_lease(b, to);
    b->spoken_of |= to == ACTIVE || to == SAID;
    b->state = to;
}

/* Free a body that nobody needs any more: closed, without a worker, and
 * nothing of it in the device's hands. An arena part of a connection that is
 * CLOSED stays where it is until the QP is gone (rdma_body_set_destroy). */
void rdma_body_settle(rdma_body *b)
{
    rdma_body_set *set = b->set;

    if (b->state != CLOSED || b->worker || b->flying) {
        return;
    }
    if (b->nparts > 0 && rdma_conn_state_get(set->conn) == RDMA_CONN_CLOSED) {
        return;
    }
    unlink_body(b);
    if (set->arenas) { /* what is idle now will have to be given back */
        set->conf.remind(set->conf.baton, rdma_conn_now() + ARENA_LOOK);
    }
}

void rdma_body_said(rdma_body *b, const char *why)
{
    rdma_body_transit(b, SAID, why);
    b->revoked = b->aborted; /* then it has been asked for its last word */
    b->renewed = b->consumed;
    b->deadline = b->aborted ? rdma_body_progress_deadline(b)
                             : rdma_conn_now() + b->set->conf.lease_timeout;
    b->set->conf.remind(b->set->conf.baton, b->deadline);
    if (b->peer_said) {
        rdma_body_transit(b, CLOSED, "both last words");
    }
}

static void say_abort(rdma_body *b, rdma_hdr_abort reason)
{
    rdma_hdr_msg m = {
        .type = RDMA_HDR_ABORT, .id = b->id, .len = (uint32_t)reason};

    b->spoken_of = 1;
    b->behind = rdma_conn_posted(b->set->conn);
    b->moved = rdma_conn_moved(b->set->conn);
    rdma_conn_say(b->set->conn, &m, NULL);
}

/* ---- the worker -------------------------------------------------------- */

/* All of it, or nothing. */
static rdma_hdr_declined reserve(rdma_body *b, const rdma_hdr_request *req)
{
    rdma_body_set *set = b->set;
    rdma_hdr_declined why = RDMA_HDR_CONNECT;

    rdma_conn_lock(set->conn);
    if (rdma_conn_state_get(set->conn) == RDMA_CONN_OPEN) {
        why = rdma_conn_queue_room(set->conn) < MESSAGES * (set->live + 1)
                  ? RDMA_HDR_BUSY
                  : b->kind->reserve(b, req);
    }
    if (why == RDMA_HDR_NOT_DECLINED) {
        b->next = set->bodies;
        if (b->next) {
            b->next->prev = b;
        }
        set->bodies = b;
        set->live++;
    }
    rdma_conn_unlock(set->conn);
    return why;
}

rdma_hdr_declined rdma_body_open(rdma_body_set *set,
                                 const rdma_hdr_request *req, uint64_t total,
                                 int stream, rdma_body **out)
{
    rdma_hdr_declined why;
    rdma_body *b = calloc(1, sizeof(*b));

    *out = NULL;
    if (!b) {
        return RDMA_HDR_MEMORY;
    }
    b->set = set;
    b->kind = rdma_conn_kind(set->conn) == RDMA_HDR_WRITE
                  ? &rdma_body_write_kind
                  : &rdma_body_read_kind;
    b->id = req->id;
    b->total = total;
    b->streamed = stream;
    b->worker = 1;
    why = reserve(b, req);
    if (why == RDMA_HDR_MEMORY && set->conf.reclaim) {
        set->conf.reclaim(set->conf.baton);
        b->thrifty = 1;
        why = reserve(b, req);
    }
    if (why == RDMA_HDR_NOT_DECLINED) {
        *out = b;
    }
    else {
        free(b);
    }
    return why;
}

void rdma_body_reclaim(rdma_body_set *set)
{
    if (set->arenas) {
        rdma_arenas_drop_idle(set->arenas);
    }
}

int rdma_body_alive(const rdma_body *b)
{
    return b->state == RESERVED || b->state == ACTIVE;
}

rdma_conn_time rdma_body_progress_deadline(const rdma_body *b)
{
    return rdma_conn_now() + b->set->conf.timeout;
}

/* What is waited for may stand behind the WRITEs of all other ids: it is not late
 * as long as these get on. */
static int wait_moving(rdma_body *b, int (*test)(void *arg), void *arg)
{
    rdma_conn *c = b->set->conn;
    uint64_t moved;
    int rc;

    do {
        moved = rdma_conn_moved(c);
        rc = rdma_conn_wait(c, test, arg, rdma_body_progress_deadline(b));
    } while (rc == ETIMEDOUT && rdma_conn_moved(c) - moved >= QUANTUM);
    return rc;
}

int rdma_body_wait(rdma_body *b, int (*test)(void *arg), void *arg)
{
    const rdma_body_conf *conf = &b->set->conf;
    rdma_conn *c = b->set->conn;
    int rc;

    if (rdma_body_holds_worker(b)
        || conf->timeout <= MOMENT) { /* it is counted */
        return wait_moving(b, test, arg);
    }
    rc = rdma_conn_wait(c, test, arg, rdma_conn_now() + MOMENT);
    if (rc == ETIMEDOUT) {
        if (conf->hold(conf->baton)) {
            return EBUSY;
        }
        rc = wait_moving(b, test, arg);
        conf->unhold(conf->baton);
    }
    return rc;
}

typedef struct consuming {
    const rdma_body *body;
    uint64_t target;
} consuming;

static int has_consumed(void *arg)
{
    const consuming *w = arg;

    return !rdma_body_alive(w->body) || w->body->consumed >= w->target;
}

int rdma_body_await_consumed(rdma_body *b, uint64_t bytes)
{
    while (rdma_body_alive(b) && b->consumed < bytes) {
        consuming w = {b, bytes};

        /* Progress counts in steps: a client that takes a byte now and then
         * would hold a worker for ever. */
        if (bytes - b->consumed > QUANTUM) {
            w.target = b->consumed + QUANTUM;
        }
        if (rdma_conn_wait(b->set->conn, has_consumed, &w,
                           rdma_body_progress_deadline(b))) {
            return -1;
        }
    }
    return rdma_body_alive(b) ? 0 : -1;
}

char *rdma_body_space(rdma_body *b, size_t *room)
{
    uint64_t left = b->total - b->committed;
    char *at = left > 0 ? b->kind->space(b, room) : NULL;

    if (at && *room > left) {
        *room = (size_t)left;
    }
    if (at) {
        b->lent = b->filled + *room;
    }
    return at;
}

int rdma_body_commit(rdma_body *b, size_t n)
{
    if (n > b->total - b->committed) {
        return -1;
    }
    b->committed += n;
    b->filled += n;
    if (b->head_out) {
        count(b, RDMA_COUNT_BytesWriteStreamed, RDMA_COUNT_BytesReadStreamed,
              n);
    }
    return b->kind->commit(b);
}

int rdma_body_flush(rdma_body *b)
{
    int rc = 0;

    if (b->streamed) {
        rdma_conn_lock(b->set->conn);
        rc = rdma_body_alive(b) ? b->kind->flush(b) : -1;
        rdma_conn_unlock(b->set->conn);
    }
    return rc;
}

static void describe(const rdma_body *b, rdma_hdr_response *head)
{
    memset(head, 0, sizeof(*head));
    head->id = b->id;
    head->conn = rdma_conn_number(b->set->conn);
    head->kind = rdma_conn_kind(b->set->conn);
    b->kind->describe(b, head);
}

int rdma_body_streamed(const rdma_body *b)
{
    return b->streamed;
}

int rdma_body_holds_worker(const rdma_body *b)
{
    return b->streamed || b->kind->holds_worker(b);
}

int rdma_body_stream(rdma_body *b)
{
    int rc;

    rdma_conn_lock(b->set->conn);
    rc = rdma_body_alive(b) ? b->kind->stream(b) : -1;
    b->streamed = b->streamed || rc == 0;
    rdma_conn_unlock(b->set->conn);
    return rc;
}

int rdma_body_head(rdma_body *b, rdma_hdr_response *head)
{
    int due = 0;

    rdma_conn_lock(b->set->conn);
    if (b->head_due && rdma_body_alive(b)) {
        due = 1;
        if (b->state == RESERVED) {
            rdma_body_transit(b, ACTIVE, "head");
        }
        describe(b, head);
        b->head_due = 0;
        b->head_out = 1;
        b->kind->head_out(b);
        count(b, RDMA_COUNT_RequestsWriteStreamed,
              RDMA_COUNT_RequestsReadStreamed, 1);
        count(b, RDMA_COUNT_BytesWriteStreamed, RDMA_COUNT_BytesReadStreamed,
              b->committed);
    }
    rdma_conn_unlock(b->set->conn);
    return due;
}

/* [locked] The worker leaves. Blocks that are not on their way go back at once:
 * a slow client pins none. A scan skips bodies that have a worker, so what the
 * progress thread has to look at from now on, it is told now. */
static void let_go(rdma_body *b)
{
    const rdma_body_conf *conf = &b->set->conf;

    b->worker = 0;
    if (b->nblocks > 0) { /* parts are the client's still */
        b->kind->give_back(b);
    }
    if (b->state == SAID) {
        conf->remind(conf->baton, b->deadline);
    }
    if (b->flying) {
        conf->remind(conf->baton, rdma_conn_now() + LINGER);
    }
    rdma_body_settle(b);
}

int rdma_body_finish(rdma_body *b, rdma_hdr_response *head)
{
    rdma_conn *c = b->set->conn;
    int rc = -1;

    rdma_conn_lock(c);
    if (rdma_body_alive(b)
        && (b->total == RDMA_BODY_UNKNOWN || b->committed == b->total)) {
        rc = b->kind->finish(b);
    }
    if (rc == 0 && !b->head_out) {
        count(b, RDMA_COUNT_RequestsWrite, RDMA_COUNT_RequestsRead, 1);
        count(b, RDMA_COUNT_BytesWrite, RDMA_COUNT_BytesRead, b->committed);
    }
    if (rc == 0) {
        describe(b, head);
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
    /* The client may have ended an id for which nothing was written: it has got
     * our ABORT, so the head must name the connection all the same. */
    posted = b->spoken_of ? rdma_conn_number(c) : 0;
    rdma_count_add(RDMA_COUNT_StreamsCut, b->head_out != 0);
    if (b->state == RESERVED) {
        rdma_body_transit(b, CLOSED, "nothing was posted");
    }
    else if (b->state == ACTIVE) {
        b->aborted = 1;
        say_abort(b, why);
        /* Saying it may have closed the connection, and us. */
        if (b->state == ACTIVE) {
            rdma_body_said(b, "ABORT");
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
        rdma_body_transit(b, CLOSED, what);
    }
    else { /* an ABORT, to be answered with our own last word */
        b->aborted = 1;
        say_abort(b, RDMA_HDR_ABORT_ANSWER);
        if (b->state != CLOSED) {
            rdma_body_transit(b, CLOSED, what);
        }
    }
    rdma_conn_wake(b->set->conn);
    rdma_body_settle(b);
}

/* Progress counts in steps here, too: one byte now and then holds no lease. */
static void renew_lease(rdma_body *b)
{
    if (b->state == SAID && !b->revoked
        && (b->consumed - b->renewed >= QUANTUM
            || b->consumed == b->announced)) {
        b->renewed = b->consumed;
        b->deadline = rdma_conn_now() + b->set->conf.lease_timeout;
    }
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
    /* What can be consumed has been announced. */
    if (m->bytes < b->consumed || m->bytes > b->announced
        || (fin && (b->state != SAID || m->bytes != b->announced))) {
        return -1;
    }
    if (m->bytes > b->consumed) {
        b->consumed = m->bytes;
        renew_lease(b);
        rdma_conn_wake(b->set->conn); /* a stream may wait for room */
    }
    if (fin) {
        b->taken = 1;
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
            rdma_body_transit(b, CLOSED, "connection closed");
        }
        rdma_body_settle(b);
    }
    rdma_conn_wake(set->conn);
}

/* Our ABORT stood behind WRITEs when the deadline was set, and these have got on
 * since: it is not the client that is late. It is so for what had been posted
 * before the ABORT, no longer. */
static int was_behind(rdma_body *b)
{
    uint64_t moved = rdma_conn_moved(b->set->conn);
    int late = b->moved < b->behind
               && (moved >= b->behind || moved - b->moved >= QUANTUM);

    b->moved = moved;
    return late;
}

rdma_conn_time rdma_body_expire(rdma_body_set *set, rdma_conn_time now,
                                unsigned *trims)
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
        if (now >= b->deadline && b->revoked && was_behind(b)) {
            b->deadline = now + set->conf.timeout;
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
    trim = set->arenas ? rdma_arenas_trim(set->arenas, now, trims)
                       : RDMA_CONN_NEVER;
    return trim < next ? trim : next;
}
