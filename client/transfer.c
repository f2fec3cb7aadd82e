/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "transfer.h"

#include <stdio.h>
#include <string.h>

/* One READ: large enough to hide the round trip, small enough that several are
 * in flight in a window. */
#define READ_SIZE  ((uint64_t)256 * 1024)
#define READ_LEAST ((uint64_t)4 * 1024)
/* To the sink at a time, as long as the server waits for what is taken. */
#define BITE ((uint64_t)128 * 1024)

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

/* The response has failed because the server contradicts itself. */
static void contradicted(rdmahttp_transfer *t, const char *why)
{
    t->wrong = 1;
    rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT, why);
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

/* What has been announced against what the head said, if it did. */
static int fits_total(const rdmahttp_transfer *t)
{
    return !t->has_total
           || (t->fin ? t->announced == t->total : t->announced <= t->total);
}

static int on_written(rdmahttp_transfer *t, const rdma_hdr_msg *m)
{
    if (m->bytes < t->announced || m->bytes - t->reported > t->len) {
        return -1;
    }
    if (t->fin && m->bytes > t->announced) {
        contradicted(t, "WRITTEN after the end");
        return 0;
    }
    t->announced = t->arrived = m->bytes;
    if (m->flags & RDMA_HDR_FIN) {
        t->fin = 1;
        t->they_said = 1;
    }
    if (!fits_total(t)) {
        contradicted(t, "WRITTEN contradicts the answer");
    }
    return 0;
}

/* It may overtake the head: then the head's part, which comes before it, is
 * outstanding too. */
static int on_offer(rdmahttp_transfer *t, const rdma_hdr_msg *m)
{
    uint64_t from = m->bytes - m->len;
    rdmahttp_part *part = &t->part[t->parts];

    if (from != t->announced && (t->head || t->parts > 0 || t->announced > 0)) {
        return -1;
    }
    if (from == 0) {
        return -1; /* a head's part has 1 byte and more */
    }
    if (m->len > 0) {
        if (t->parts + (t->head ? 0 : 1) >= RDMAHTTP_PARTS) {
            return -1;
        }
        part->from = from;
        part->end = m->bytes;
        part->stag = m->stag;
        part->to = m->to;
        t->parts++;
    }
    if (t->fin) {
        contradicted(t, "OFFER after the end");
        return 0;
    }
    t->announced = m->bytes;
    if (m->flags & RDMA_HDR_FIN) {
        t->fin = 1;
        t->they_said = 1;
    }
    if (!fits_total(t)) {
        contradicted(t, "OFFER contradicts the answer");
    }
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
                contradicted(t, "a mode that was not offered");
            }
        }
    }
    if (t->conn != peer->number) {
        if (ended(t)) {
            return 0;
        }
        contradicted(t, "messages on two connections");
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

/* The whole body, or its first part, lies at the server. 0 or -1. */
static int first_part(rdmahttp_transfer *t, const rdma_hdr_response *resp,
                      rdmahttp_peer *peer)
{
    if (t->announced > 0 || t->parts > 0) { /* an OFFER has overtaken it */
        uint64_t from = t->parts > 0 ? t->part[0].from : t->announced;

        if (resp->fin) {
            contradicted(t, "the answer contradicts OFFER");
            return -1;
        }
        if (from != resp->len) {
            contradicted(t, "OFFER does not continue the answer");
            if (peer) {
                peer->doomed = 1; /* PROTOCOL.md, 11 */
            }
            return -1;
        }
        t->part[1] = t->part[0];
    }
    else {
        t->announced = resp->len;
        t->fin = t->they_said = resp->fin;
    }
    t->part[0].from = 0;
    t->part[0].end = resp->len;
    t->part[0].stag = resp->stag;
    t->part[0].to = resp->to;
    t->parts++;
    return 0;
}

int rdmahttp_transfer_head(rdmahttp_transfer *t, const rdma_hdr_response *resp,
                           int stream, rdmahttp_peer *peer)
{
    int gone = !peer || peer->closed;

    t->head = 1;
    if (t->conn != resp->conn) {
        return head_fails(t, "the answer names another connection");
    }
    if (t->broken || t->state != RDMAHTTP_BOUND) {
        return head_fails(t, t->why);
    }
    if (gone && !t->fin) {
        return head_fails(t, "the RDMA connection was lost");
    }
    if (t->kind != resp->kind) {
        return head_fails(t, "the connection is of the other kind");
    }
    if (resp->kind == RDMA_HDR_READ && first_part(t, resp, peer)) {
        return -1;
    }
    t->stream = stream;
    t->reported_at = rdma_conn_now();
    t->has_total = resp->has_total;
    t->total = resp->total;
    if (!fits_total(t)) {
        contradicted(t, "the answer contradicts what came by RDMA");
        return -1;
    }
    if (!stream && resp->kind == RDMA_HDR_WRITE && t->total > t->len) {
        contradicted(t, "the answer is larger than the window");
        return -1;
    }
    transit(t, RDMAHTTP_TAKING, "head");
    if (gone && !(t->fin && t->arrived == t->announced)) {
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
    rdmahttp_transfer_lost(t); /* it may have been bound after that was told */
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

static int can_speak(const rdmahttp_transfer *t)
{
    return t->peer && t->peer->open && !t->peer->closed && !t->we_said;
}

/* What the server may forget or overwrite. */
static uint64_t given_back(const rdmahttp_transfer *t)
{
    return t->kind == RDMA_HDR_READ ? t->arrived : t->consumed;
}

/* Must it hear of that now? PROTOCOL.md, 9.1 and 9.2. */
static int must_report(const rdmahttp_transfer *t)
{
    uint64_t out = given_back(t);

    if (out == t->reported) {
        return 0;
    }
    return out == t->announced || out - t->reported >= (t->len + 1) / 2
           || (t->parts > 0 && out >= t->part[0].end)
           || rdma_conn_now() - t->reported_at >= RDMAHTTP_TRANSFER_REPORT;
}

int rdmahttp_transfer_next_word(rdmahttp_transfer *t, rdma_hdr_msg *m,
                                int *last)
{
    if (!can_speak(t)) {
        return 0;
    }
    memset(m, 0, sizeof(*m));
    m->id = t->id;
    m->type = RDMA_HDR_CONSUMED;
    m->bytes = given_back(t);
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
    else if (must_report(t)) {
        *last = 0;
    }
    else {
        return 0;
    }
    t->we_said = *last;
    if (m->type == RDMA_HDR_CONSUMED) {
        t->reported = m->bytes;
        t->reported_at = rdma_conn_now();
        while (t->parts > 0 && t->part[0].end <= t->reported) {
            t->part[0] = t->part[1];
            t->parts--;
        }
    }
    return 1;
}

/* The length of the READ that could be posted now, and its part; 0: none. */
static uint64_t readable(const rdmahttp_transfer *t, const rdmahttp_part **part)
{
    uint64_t ring = t->len, unit = ring / RDMA_CONN_READS;
    uint64_t len, to_end;
    unsigned i;

    if (t->state != RDMAHTTP_TAKING || t->kind != RDMA_HDR_READ || t->abort
        || t->broken || !t->peer || !t->peer->open || t->peer->closed
        || t->peer->stalled || t->posted == t->announced) {
        return 0;
    }
    for (i = 0; i < t->parts && t->part[i].end <= t->posted; i++) {
    }
    if (i == t->parts || t->reads == RDMA_CONN_READS) {
        return 0;
    }
    *part = &t->part[i];
    unit = unit < READ_LEAST ? READ_LEAST : unit > READ_SIZE ? READ_SIZE : unit;
    to_end = ring - t->posted % ring; /* no READ crosses the end of the ring */
    len = t->part[i].end - t->posted;
    len = len < unit ? len : unit;
    len = len < to_end ? len : to_end;
    return t->posted + len - t->consumed > ring ? 0 : len; /* a slower sink */
}

int rdmahttp_transfer_due(const rdmahttp_transfer *t)
{
    const rdmahttp_part *part;

    return readable(t, &part) > 0
           || (can_speak(t)
               && (t->abort || must_report(t)
                   || (t->fin && t->arrived == t->announced)));
}

rdmahttp_read *rdmahttp_transfer_next_read(rdmahttp_transfer *t, uint64_t *at,
                                           uint64_t *to, uint32_t *stag)
{
    const rdmahttp_part *part;
    uint64_t len = readable(t, &part);
    rdmahttp_read *r = NULL;
    unsigned i;

    for (i = 0; len > 0 && i < RDMA_CONN_READS && !r; i++) {
        r = t->read[i].busy ? NULL : &t->read[i];
    }
    if (!r) {
        return NULL;
    }
    *at = t->posted % t->len;
    *to = part->to + (t->posted - part->from);
    *stag = part->stag;
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
    uint64_t n = t->arrived - t->consumed;
    uint64_t offset = t->consumed % t->len;

    if (t->state != RDMAHTTP_TAKING) {
        return 0;
    }
    *at = t->base + offset;
    n = n < t->len - offset ? n : t->len - offset;
    return (size_t)(t->we_said || n < BITE ? n : BITE);
}

int rdmahttp_transfer_quiet(const rdmahttp_transfer *t)
{
    return t->stream && t->state == RDMAHTTP_TAKING && !t->fin
           && t->consumed == t->announced;
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
