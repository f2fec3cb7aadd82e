/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The wire: one thread that does, again and again, one of the things that could
 * happen next, chosen by the seed, and is late about it.
 */
#include "fake_private.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LATE 200 /* microseconds */

static fake_qp *qp_of(const fake_id *id)
{
    return id ? (fake_qp *)id->id.qp : NULL;
}

/* ---- receiving --------------------------------------------------------- */

/* A SEND arrives. IBV_WC_SUCCESS, or what the sender is told. */
static enum ibv_wc_status land_send(fake_qp *to, const fake_wr *w)
{
    fake_receive *r = &to->recv[to->rhead];
    struct ibv_wc wc = {.qp_num = to->qp.qp_num, .opcode = IBV_WC_RECV};

    if (to->nrecv == 0) {
        return IBV_WC_RNR_RETRY_EXC_ERR;
    }
    if (w->len > r->len
        || !fake_find_mr(to->qp.pd, r->lkey, (uintptr_t)r->base, r->len,
                         IBV_ACCESS_LOCAL_WRITE)) {
        return IBV_WC_REM_INV_REQ_ERR;
    }
    memcpy(r->base, w->copy, w->len);
    wc.wr_id = r->wr_id;
    wc.byte_len = w->len;
    to->rhead = (to->rhead + 1) % to->max_recv;
    to->nrecv--;
    fake_complete(to->qp.recv_cq, &wc);
    return IBV_WC_SUCCESS;
}

static enum ibv_wc_status land(fake_qp *from, fake_qp *to, fake_wr *w)
{
    char *remote = (char *)(uintptr_t)w->to;

    switch (w->opcode) {
    case IBV_WR_SEND:
        return land_send(to, w);
    case IBV_WR_RDMA_WRITE:
        if (!fake_find_mr(to->qp.pd, w->rkey, w->to, w->len,
                          IBV_ACCESS_REMOTE_WRITE)) {
            return IBV_WC_REM_ACCESS_ERR;
        }
        memcpy(remote, w->copy, w->len);
        return IBV_WC_SUCCESS;
    case IBV_WR_RDMA_READ:
        if (!fake_find_mr(to->qp.pd, w->rkey, w->to, w->len,
                          IBV_ACCESS_REMOTE_READ)) {
            return IBV_WC_REM_ACCESS_ERR;
        }
        if (!fake_find_mr(from->qp.pd, w->lkey, (uintptr_t)w->local, w->len,
                          IBV_ACCESS_LOCAL_WRITE)) {
            return IBV_WC_LOC_PROT_ERR;
        }
        memcpy(w->local, remote, w->len);
        return IBV_WC_SUCCESS;
    default:
        fake_fault("opcode %d", (int)w->opcode);
    }
}

/* ---- one work request, step by step ------------------------------------ */

static fake_wr *next_to_send(const fake_qp *q)
{
    fake_wr *w;
    unsigned on_wire = 0;
    unsigned reads = 0;

    for (w = q->first; w && w->sent; w = w->next) {
        on_wire += !w->landed;
        reads += w->opcode == IBV_WR_RDMA_READ && !w->landed;
    }
    if (!w || w->refused || on_wire >= FAKE_WIRE) {
        return NULL;
    }
    if (w->opcode == IBV_WR_RDMA_READ && reads >= q->id->reads) {
        fake_fault("more than %u READs are in flight", q->id->reads);
    }
    return w;
}

static int takes(const fake_id *id)
{
    return !id->frozen || id->lands > 0;
}

static fake_wr *next_to_land(const fake_qp *q)
{
    fake_wr *w = q->first;

    while (w && w->landed) {
        w = w->next;
    }
    return w && w->sent ? w : NULL;
}

static fake_wr *next_to_complete(const fake_qp *q)
{
    fake_wr *w = q->first;

    while (w && w->completed) {
        w = w->next;
    }
    return w && (w->done || q->qp.state == IBV_QPS_ERR) ? w : NULL;
}

static void forget_finished(fake_qp *q)
{
    while (q->first && q->first->landed && q->first->completed) {
        fake_wr *w = q->first;

        q->first = w->next;
        free(w->copy);
        free(w);
    }
}

/* It goes: from here on its source is no longer looked at (but a READ's). */
static void do_send(fake_qp *q, fake_wr *w)
{
    if (w->opcode != IBV_WR_RDMA_READ) {
        w->copy = malloc(w->len ? w->len : 1);
        if (!w->copy
            || !fake_find_mr(q->qp.pd, w->lkey, (uintptr_t)w->local, w->len,
                             0)) {
            w->sent = w->landed = w->done = 1;
            w->status = IBV_WC_LOC_PROT_ERR;
            fake_cut(q->id, 1, 1);
            return;
        }
        memcpy(w->copy, w->local, w->len);
        w->done = !fake.like_rxe;
    }
    w->sent = 1;
}

static void do_land(fake_qp *q, fake_wr *w)
{
    enum ibv_wc_status status = land(q, qp_of(q->id->peer), w);

    q->id->peer->lands -= q->id->peer->lands > 0;
    w->landed = 1;
    if (!w->done || !w->completed) {
        w->status = status;
    }
    w->done = 1;
    if (status != IBV_WC_SUCCESS) {
        fake_cut(q->id, 1, 1);
    }
    forget_finished(q);
}

static void do_complete(fake_qp *q, fake_wr *w)
{
    struct ibv_wc wc = {.wr_id = w->wr_id, .qp_num = q->qp.qp_num};

    if (!w->done) {
        w->status = IBV_WC_WR_FLUSH_ERR;
        w->done = w->sent = w->landed = 1;
    }
    if (q->qp.state == IBV_QPS_ERR) {
        w->landed = 1; /* what should land has landed */
    }
    wc.status = w->status;
    if (w->status == IBV_WC_SUCCESS) {
        wc.opcode = w->opcode == IBV_WR_SEND        ? IBV_WC_SEND
                    : w->opcode == IBV_WR_RDMA_READ ? IBV_WC_RDMA_READ
                                                    : IBV_WC_RDMA_WRITE;
    }
    else { /* trust wr_id and status only */
        wc.opcode = fake_random(2) ? IBV_WC_RECV : IBV_WC_RDMA_READ;
        wc.byte_len = fake_random(1 << 20);
    }
    w->completed = 1;
    q->nsend--;
    if (w->signaled || w->status != IBV_WC_SUCCESS) {
        fake_complete(q->qp.send_cq, &wc);
    }
    if (w->opcode == IBV_WR_RDMA_READ && w->status == IBV_WC_REM_ACCESS_ERR
        && !fake.like_rxe) { /* when its response has begun to come, siw does */
        wc.status = IBV_WC_WR_FLUSH_ERR;
        fake_complete(q->qp.send_cq, &wc);
    }
    forget_finished(q);
}

static void flush_receive(fake_qp *q)
{
    struct ibv_wc wc = {.wr_id = q->recv[q->rhead].wr_id,
                        .status = IBV_WC_WR_FLUSH_ERR,
                        .opcode = IBV_WC_RDMA_WRITE,
                        .byte_len = fake_random(100),
                        .qp_num = q->qp.qp_num};

    q->rhead = (q->rhead + 1) % q->max_recv;
    q->nrecv--;
    fake_complete(q->qp.recv_cq, &wc);
}

void fake_land_all(fake_qp *q)
{
    fake_wr *w;
    fake_qp *to = qp_of(q->id->peer);

    while (to && to->qp.state == IBV_QPS_RTS && !q->id->peer->frozen
           && (w = next_to_land(q)) != NULL
           && land(q, to, w) == IBV_WC_SUCCESS) {
        w->landed = w->done = 1;
    }
    forget_finished(q);
}

/* All that q can send, at once. */
static void hurry(fake_qp *q)
{
    fake_qp *to = qp_of(q->id->peer);
    fake_wr *w;

    while (to && to->qp.state == IBV_QPS_RTS && q->qp.state == IBV_QPS_RTS) {
        w = takes(q->id->peer) ? next_to_land(q) : NULL;
        if (w) {
            do_land(q, w);
            continue;
        }
        w = q->id->frozen ? NULL : next_to_send(q);
        if (!w) {
            return;
        }
        do_send(q, w);
    }
}

void fake_hurry(const struct ibv_cq *cq)
{
    fake_qp *q;
    fake_qp *peer;
    fake_wr *w;

    for (q = fake.qps; q; q = q->next) {
        peer = qp_of(q->id->peer);
        if (q->qp.recv_cq == cq && peer) {
            hurry(peer);
        }
        if (q->qp.send_cq == cq) {
            hurry(q);
            while ((w = next_to_complete(q)) != NULL) {
                do_complete(q, w);
            }
        }
    }
}

void fake_thaw(const struct ibv_cq *cq)
{
    const fake_qp *q;

    for (q = fake.qps; q; q = q->next) {
        fake_id *peer = q->id->peer;

        if (q->qp.send_cq == cq && peer && peer->thaw_at_arm) {
            peer->thaw_at_arm = peer->frozen = 0;
            fake_hurry(cq);
        }
    }
}

/* ---- what could happen next -------------------------------------------- */

typedef enum deed { NOTHING, SENDS, LANDS, COMPLETES, FLUSHES, TELLS } deed;

typedef struct choice {
    unsigned n; /* possible so far */
    deed deed;
    fake_qp *q;
    fake_wr *w;
    fake_event *e;
} choice;

static void could(choice *c, deed d, fake_qp *q, fake_wr *w, fake_event *e)
{
    if (fake_random(++c->n) == 0) {
        c->deed = d;
        c->q = q;
        c->w = w;
        c->e = e;
    }
}

static void could_qp(choice *c, fake_qp *q)
{
    fake_qp *to = qp_of(q->id->peer);
    fake_wr *w;

    if (q->qp.state == IBV_QPS_RTS && to && to->qp.state == IBV_QPS_RTS) {
        w = q->id->frozen ? NULL : next_to_send(q);
        if (w) {
            could(c, SENDS, q, w, NULL);
        }
        w = takes(q->id->peer) ? next_to_land(q) : NULL;
        if (w) {
            could(c, LANDS, q, w, NULL);
        }
    }
    w = next_to_complete(q);
    if (w) {
        could(c, COMPLETES, q, w, NULL);
    }
    if (q->qp.state == IBV_QPS_ERR && q->nrecv > 0) {
        could(c, FLUSHES, q, NULL, NULL);
    }
}

/* Events of one id come in their order. */
static void could_event(choice *c, fake_event *e)
{
    const fake_event *before = fake.coming;

    while (before != e && before->owner != e->owner) {
        before = before->next;
    }
    if (before == e) {
        could(c, TELLS, NULL, NULL, e);
    }
}

static void tell(fake_event *e)
{
    fake_event **link = &fake.coming;

    while (*link != e) {
        link = &(*link)->next;
    }
    *link = e->next;
    e->next = NULL;
    fake_event_deliver(e);
}

/* 1: something has happened. */
static int step(void)
{
    choice c = {0};
    fake_qp *q;
    fake_event *e;

    for (q = fake.qps; q; q = q->next) {
        could_qp(&c, q);
    }
    for (e = fake.coming; e; e = e->next) {
        could_event(&c, e);
    }
    switch (c.deed) {
    case NOTHING:
        return 0;
    case SENDS:
        do_send(c.q, c.w);
        break;
    case LANDS:
        do_land(c.q, c.w);
        break;
    case COMPLETES:
        do_complete(c.q, c.w);
        break;
    case FLUSHES:
        flush_receive(c.q);
        break;
    case TELLS:
        tell(c.e);
        break;
    }
    return 1;
}

void *fake_wire_main(void *arg)
{
    fake_lock();
    while (!fake.quit) {
        unsigned late;

        if (!step()) {
            fake.idle = 1;
            pthread_cond_broadcast(&fake.settled);
            pthread_cond_wait(&fake.work, &fake.lock);
            continue;
        }
        late = fake_random(8) ? 0 : fake_random(LATE);
        fake_unlock();
        if (late) {
            usleep(late);
        }
        fake_lock();
    }
    fake_unlock();
    return arg;
}
