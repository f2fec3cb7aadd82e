/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "transfer.h"

#include <stdio.h>
#include <string.h>

/* One READ: large enough to hide the round trip, small enough that several are
 * in flight in a window. */
#define READ_SIZE ((uint64_t)256 * 1024)

const char *rdmahttp_state_name(rdmahttp_state state)
{
    static const char *const names[] = {"SENT",      "BOUND", "TAKING", "ASIDE",
                                        "WAIT_LAST", "DONE",  "FAILED"};

    return (size_t)state < sizeof(names) / sizeof(names[0]) ? names[state]
                                                            : "?";
}

/* The only place where a state changes. */
static void transit(rdmahttp_transfer *t, rdmahttp_state to, const char *why)
{
    rdmahttp_state before = t->state;

    if (before == to) {
        return;
    }
    t->state = to;
    if (to == RDMAHTTP_WAIT_LAST) {
        t->deadline = rdma_conn_now() + RDMAHTTP_TRANSFER_GRACE;
    }
    rdmahttp_endpoint_changed(t, before, why);
}

static int ended(const rdmahttp_transfer *t)
{
    return t->state == RDMAHTTP_DONE || t->state == RDMAHTTP_FAILED;
}

/* WAIT_LAST ends when the server cannot touch the window any more, and no READ
 * of ours will. */
static void settle(rdmahttp_transfer *t)
{
    if (t->state == RDMAHTTP_WAIT_LAST && t->reads == 0
        && (t->they_said || t->qp_gone)) {
        transit(t, t->by_tcp ? RDMAHTTP_DONE : RDMAHTTP_FAILED,
                t->they_said ? "last words" : "connection destroyed");
    }
}

static void bind_to(rdmahttp_transfer *t, uint32_t conn, rdmahttp_peer *peer)
{
    t->conn = conn;
    t->peer = peer;
    t->qp_gone = peer == NULL;
    t->kind = peer ? peer->kind : RDMA_HDR_NONE;
}

static int is_offered(const rdmahttp_transfer *t, rdma_hdr_kind kind)
{
    return t->offered[0] == kind || t->offered[1] == kind;
}

/* Queue an ABORT, unless our last word has been said or nobody would hear. */
static void abort_with(rdmahttp_transfer *t, uint32_t reason)
{
    if (!t->we_said && !t->abort) {
        t->abort = 1;
        t->reason = reason;
    }
}

static void broke(rdmahttp_transfer *t, const char *why)
{
    if (!t->broken) {
        t->broken = 1;
        snprintf(t->why, sizeof(t->why), "%s", why);
    }
}

void rdmahttp_transfer_give_up(rdmahttp_transfer *t, uint32_t reason,
                               const char *why)
{
    if (ended(t)) {
        return;
    }
    broke(t, why);
    if (t->state == RDMAHTTP_WAIT_LAST || t->state == RDMAHTTP_ASIDE) {
        return;
    }
    if (t->conn == 0) {
        transit(t, RDMAHTTP_ASIDE, why);
        return;
    }
    abort_with(t, reason);
    transit(t, RDMAHTTP_WAIT_LAST, why);
    settle(t);
}

/* ---- messages ---------------------------------------------------------- */

static int on_written(rdmahttp_transfer *t, const rdma_hdr_msg *m)
{
    if (m->bytes < t->announced || m->bytes - t->consumed > t->len) {
        return -1;
    }
    t->announced = t->arrived = m->bytes;
    if (m->flags & RDMA_HDR_FIN) {
        t->fin = 1;
        t->they_said = 1;
    }
    if (t->has_total
        && (t->fin ? t->announced != t->total : t->announced > t->total)) {
        rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT,
                                  "WRITTEN contradicts the answer");
    }
    return 0;
}

/* A stream in kind read: not yet known here, so the id is given up. */
static int on_offer(rdmahttp_transfer *t, const rdma_hdr_msg *m)
{
    if (t->head && m->bytes - m->len != t->announced) {
        return -1;
    }
    if (m->flags & RDMA_HDR_FIN) {
        t->they_said = 1;
    }
    rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT,
                              "the server streams, which we cannot take yet");
    return 0;
}

static void on_abort(rdmahttp_transfer *t)
{
    t->they_said = 1;
    if (t->we_said || ended(t)) {
        return;
    }
    abort_with(t, RDMA_HDR_ABORT_ANSWER);
    broke(t, "the server gave it up");
    if (t->state == RDMAHTTP_TAKING) {
        transit(t, RDMAHTTP_WAIT_LAST, "ABORT");
        settle(t);
    } /* BOUND: the head decides whether the TCP body is the answer */
}

int rdmahttp_transfer_message(rdmahttp_transfer *t, rdmahttp_peer *peer,
                              const rdma_hdr_msg *m)
{
    int rc = 0;

    if (t->we_said && t->they_said) {
        return 0; /* closed */
    }
    if (t->conn == 0 && !ended(t)) {
        bind_to(t, peer->number, peer);
        if (t->state == RDMAHTTP_ASIDE) {
            abort_with(t, RDMA_HDR_ABORT_UNKNOWN_ID);
            transit(t, RDMAHTTP_WAIT_LAST, "heard of at last");
        }
        else {
            transit(t, RDMAHTTP_BOUND, rdma_hdr_type_name(m->type));
            if (!is_offered(t, peer->kind)) {
                rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT,
                                          "a mode that was not offered");
            }
        }
    }
    if (t->conn != peer->number) {
        if (ended(t)) {
            return 0;
        }
        rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT,
                                  "messages on two connections");
        return -1;
    }
    if (m->type == RDMA_HDR_ABORT) {
        on_abort(t);
    }
    else if (m->type
             == (peer->kind == RDMA_HDR_WRITE ? RDMA_HDR_WRITTEN
                                              : RDMA_HDR_OFFER)) {
        if (t->we_said || t->state == RDMAHTTP_WAIT_LAST) {
            t->they_said |= (m->flags & RDMA_HDR_FIN) != 0;
        }
        else {
            rc =
                m->type == RDMA_HDR_WRITTEN ? on_written(t, m) : on_offer(t, m);
        }
    }
    else {
        rc = -1; /* no server says this, or not on this kind */
    }
    settle(t);
    return rc;
}

/* ---- the head ---------------------------------------------------------- */

static int head_fails(rdmahttp_transfer *t, const char *why)
{
    rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT, why);
    return -1;
}

void rdmahttp_transfer_bind(rdmahttp_transfer *t, uint32_t conn,
                            rdmahttp_peer *peer)
{
    if (t->conn == 0 && t->state == RDMAHTTP_SENT) {
        bind_to(t, conn, peer);
        transit(t, RDMAHTTP_BOUND, "head");
    }
    else if (t->conn != conn && peer) {
        peer->doomed = 1; /* it came second */
    }
}

int rdmahttp_transfer_head(rdmahttp_transfer *t, const rdma_hdr_response *resp,
                           rdmahttp_peer *peer)
{
    t->head = 1;
    if (t->conn != resp->conn) {
        return head_fails(t, "the answer names another connection");
    }
    if (t->broken || t->state != RDMAHTTP_BOUND) {
        return head_fails(t, t->why);
    }
    if (!peer && !t->fin) {
        return head_fails(t, "the RDMA connection was lost");
    }
    if (t->kind != resp->kind) {
        return head_fails(t, "the connection is of the other kind");
    }
    if (resp->kind == RDMA_HDR_WRITE) {
        if (resp->total > t->len
            || (t->fin ? t->announced != resp->total
                       : t->announced > resp->total)) {
            return head_fails(t, "the answer contradicts WRITTEN");
        }
        t->has_total = 1;
        t->total = resp->total;
    }
    else {
        t->has_total = 1;
        t->total = t->announced = resp->len;
        t->stag = resp->stag;
        t->to = resp->to;
        t->fin = 1;
        t->they_said = 1;
    }
    transit(t, RDMAHTTP_TAKING, "head");
    if (t->qp_gone && !(t->fin && t->arrived == t->total)) {
        return head_fails(t, "the RDMA connection was lost");
    }
    return 0;
}

void rdmahttp_transfer_declined(rdmahttp_transfer *t)
{
    t->head = 1;
    t->by_tcp = 1;
    if (ended(t)) {
        return;
    }
    if (t->conn == 0 || (t->we_said && t->they_said)) {
        transit(t, RDMAHTTP_DONE, "the body comes by TCP");
        return;
    }
    abort_with(t, RDMA_HDR_ABORT_ANSWER);
    transit(t, RDMAHTTP_WAIT_LAST, "the body comes by TCP");
    settle(t);
}

/* ---- connection and READs ---------------------------------------------- */

void rdmahttp_transfer_lost(rdmahttp_transfer *t)
{
    if (ended(t) || (t->fin && t->arrived == t->announced)
        || (t->they_said && t->state == RDMAHTTP_WAIT_LAST)) {
        return;
    }
    broke(t, "the RDMA connection was lost");
    if (t->state == RDMAHTTP_TAKING) {
        transit(t, RDMAHTTP_WAIT_LAST, "connection lost");
    }
}

void rdmahttp_transfer_qp_gone(rdmahttp_transfer *t)
{
    t->peer = NULL;
    t->qp_gone = 1;
    settle(t);
}

void rdmahttp_transfer_read_done(rdmahttp_transfer *t, rdmahttp_read *r, int ok)
{
    int again;
    unsigned i;

    r->done = 1;
    t->reads--;
    if (!ok) {
        r->busy = 0;
        broke(t, "an RDMA READ failed");
        if (t->state == RDMAHTTP_TAKING) {
            abort_with(t, RDMA_HDR_ABORT_CONTENT);
            transit(t, RDMAHTTP_WAIT_LAST, "READ failed");
        }
    }
    do { /* completions are in order on every device known; be sure */
        again = 0;
        for (i = 0; i < RDMA_CONN_READS; i++) {
            r = &t->read[i];
            if (r->busy && r->done && r->from == t->arrived) {
                t->arrived += r->len;
                r->busy = 0;
                again = 1;
            }
        }
    } while (again);
    settle(t);
}

void rdmahttp_transfer_read_undo(rdmahttp_transfer *t, rdmahttp_read *r)
{
    t->posted = r->from;
    t->reads--;
    r->busy = 0;
    settle(t);
}

void rdmahttp_transfer_consume(rdmahttp_transfer *t, uint64_t n)
{
    t->consumed += n;
    if (t->state == RDMAHTTP_TAKING && rdmahttp_transfer_complete(t)) {
        transit(t, RDMAHTTP_DONE, "complete");
    }
}

/* ---- what is due ------------------------------------------------------- */

int rdmahttp_transfer_next_word(rdmahttp_transfer *t, rdma_hdr_msg *m,
                                int *last)
{
    /* What the server may forget or overwrite. */
    uint64_t out = t->kind == RDMA_HDR_READ ? t->arrived : t->consumed;

    if (!t->peer || !t->peer->open || t->peer->closed || t->we_said) {
        return 0;
    }
    memset(m, 0, sizeof(*m));
    m->id = t->id;
    m->type = RDMA_HDR_CONSUMED;
    m->bytes = out;
    *last = 1;
    if (!t->abort && t->fin && t->arrived == t->announced) {
        /* In kind write before the application has looked: 8.1. */
        m->flags = RDMA_HDR_FIN;
        m->bytes = t->announced;
    }
    else if (t->abort) {
        if (t->reads > 0) {
            return 0;
        }
        m->type = RDMA_HDR_ABORT;
        m->len = t->reason;
        m->bytes = 0;
    }
    else if (out > t->reported
             && (out == t->announced || out - t->reported >= t->len / 2)) {
        *last = 0;
    }
    else {
        return 0;
    }
    t->we_said = *last;
    t->reported = m->bytes;
    return 1;
}

/* The ring that READs go into: whole READs, so that none crosses its end. */
static uint64_t ring_size(const rdmahttp_transfer *t)
{
    return t->len < READ_SIZE ? t->len : t->len - t->len % READ_SIZE;
}

rdmahttp_read *rdmahttp_transfer_next_read(rdmahttp_transfer *t, uint64_t *at,
                                           uint64_t *to)
{
    uint64_t ring = ring_size(t);
    uint64_t len = t->announced - t->posted;
    rdmahttp_read *r = NULL;
    unsigned i;

    if (t->state != RDMAHTTP_TAKING || t->kind != RDMA_HDR_READ || t->abort
        || t->broken || !t->peer || !t->peer->open || t->peer->closed
        || t->peer->stalled || len == 0) {
        return NULL;
    }
    if (len > READ_SIZE) {
        len = READ_SIZE;
    }
    if (len > ring) {
        len = ring;
    }
    if (t->posted + len - t->consumed > ring) {
        return NULL; /* the sink is slower */
    }
    for (i = 0; i < RDMA_CONN_READS && !r; i++) {
        r = t->read[i].busy ? NULL : &t->read[i];
    }
    if (!r) {
        return NULL;
    }
    *at = t->posted % ring;
    *to = t->to + t->posted;
    r->from = t->posted;
    r->len = (uint32_t)len;
    r->busy = 1;
    r->done = 0;
    t->posted += len;
    t->reads++;
    return r;
}

size_t rdmahttp_transfer_ready(const rdmahttp_transfer *t, const char **at)
{
    uint64_t ring = t->kind == RDMA_HDR_READ ? ring_size(t) : t->len;
    uint64_t n = t->arrived - t->consumed;
    uint64_t offset = t->consumed % ring;

    if (t->state != RDMAHTTP_TAKING) {
        return 0;
    }
    *at = t->base + offset;
    return (size_t)(n < ring - offset ? n : ring - offset);
}

int rdmahttp_transfer_complete(const rdmahttp_transfer *t)
{
    return t->head && t->fin && t->arrived == t->announced
           && t->consumed == t->announced
           && (!t->has_total || t->announced == t->total);
}

int rdmahttp_transfer_idle(const rdmahttp_transfer *t)
{
    return ended(t) && t->reads == 0;
}

int rdmahttp_transfer_over(const rdmahttp_transfer *t)
{
    return t->released && rdmahttp_transfer_idle(t) && !t->word.busy
           && (t->we_said || t->conn == 0 || !t->peer || t->peer->closed);
}
