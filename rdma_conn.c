/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_conn_private.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LEVEL_ERR = 3, LEVEL_INFO = 6, LEVEL_DEBUG = 7, LEVEL_TRACE = 8 };

/* ---- small things ------------------------------------------------------ */

rdma_conn_time rdma_conn_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (rdma_conn_time)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

const char *rdma_conn_state_name(rdma_conn_state s)
{
    static const char *const names[] = {"CONNECTING", "OPEN", "CLOSED"};

    return (unsigned)s < sizeof(names) / sizeof(names[0]) ? names[s] : "?";
}

const char *rdma_conn_cause_name(rdma_conn_cause c)
{
    static const char *const names[] = {
        "none",     "closed here",  "closed by the peer", "protocol error",
        "timeout",  "device error", "out of resources",   "unreachable",
        "rejected", "cancelled",    "idle",               "evicted",
        "stopping"};

    return (unsigned)c < sizeof(names) / sizeof(names[0]) ? names[c] : "?";
}

__attribute__((format(printf, 3, 4))) static void
say_line(rdma_conn *c, int level, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (!c->handler->log) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    c->handler->log(c->baton, c, level, line);
}

/* A verbs call has failed, and the connection ends with it. */
static rdma_conn_cause device_failed(rdma_conn *c, const char *call)
{
    say_line(c, LEVEL_INFO, "%s: %s failed", c->name, call);
    return RDMA_CONN_CAUSE_DEVICE;
}

void rdma_conn_transit(rdma_conn *c, rdma_conn_state to, rdma_conn_cause why)
{
    say_line(c, LEVEL_DEBUG, "%s: %s -- %s --> %s", c->name,
             rdma_conn_state_name(c->state), rdma_conn_cause_name(why),
             rdma_conn_state_name(to));
    c->state = to;
    if (to == RDMA_CONN_CLOSED) {
        c->cause = why;
    }
}

void rdma_conn_lock(rdma_conn *c)
{
    pthread_mutex_lock(&c->lock);
}

void rdma_conn_unlock(rdma_conn *c)
{
    pthread_mutex_unlock(&c->lock);
}

rdma_hdr_kind rdma_conn_kind(const rdma_conn *c)
{
    return c->kind;
}

uint32_t rdma_conn_number(const rdma_conn *c)
{
    return c->number;
}

struct ibv_pd *rdma_conn_pd(const rdma_conn *c)
{
    return c->pd;
}

struct rdma_cm_id *rdma_conn_id(const rdma_conn *c)
{
    return c->id;
}

void *rdma_conn_baton(const rdma_conn *c)
{
    return c->baton;
}

const char *rdma_conn_name(const rdma_conn *c)
{
    return c->name;
}

rdma_conn_state rdma_conn_state_get(const rdma_conn *c)
{
    return c->state;
}

rdma_conn_cause rdma_conn_cause_get(const rdma_conn *c)
{
    return c->cause;
}

rdma_conn_time rdma_conn_heard(const rdma_conn *c)
{
    return c->heard;
}

uint64_t rdma_conn_posted(const rdma_conn *c)
{
    return c->posted;
}

uint64_t rdma_conn_moved(const rdma_conn *c)
{
    return c->moved;
}

int rdma_conn_has_spoken(const rdma_conn *c)
{
    return c->has_spoken;
}

static int usable(const rdma_conn *c)
{
    return c->state == RDMA_CONN_OPEN && !c->closing;
}

/* ---- work requests in flight ------------------------------------------- */

static void inflight_add(rdma_conn *c, rdma_conn_wr *wr)
{
    wr->prev = c->inflight.prev;
    wr->next = &c->inflight;
    c->inflight.prev->next = wr;
    c->inflight.prev = wr;
}

static int is_in_flight(const rdma_conn *c, const rdma_conn_wr *wr)
{
    const rdma_conn_wr *in = c->inflight.next;

    while (in != &c->inflight && in != wr) {
        in = in->next;
    }
    return in == wr;
}

static void inflight_done(rdma_conn *c, rdma_conn_wr *wr, int ok)
{
    wr->prev->next = wr->next;
    wr->next->prev = wr->prev;
    wr->next = wr->prev = NULL;
    wr->done(wr, c, ok);
}

void rdma_conn_drop_inflight(rdma_conn *c)
{
    while (c->inflight.next != &c->inflight) {
        inflight_done(c, c->inflight.next, 0);
    }
}

static void message_sent(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdma_conn_slot *slot = (rdma_conn_slot *)wr; /* wr is its first member */
    rdma_conn_wr *sent = slot->sent;

    slot->sent = NULL;
    slot->next_free = c->free_slots;
    c->free_slots = slot;
    if (sent) {
        sent->done(sent, c, ok);
    }
}

static void reap(rdma_conn *c)
{
    struct ibv_wc wc;
    int any = 0;
    int n;

    while ((n = ibv_poll_cq(c->send_cq, 1, &wc)) == 1) {
        rdma_conn_wr *wr = (rdma_conn_wr *)(uintptr_t)wc.wr_id;
        int ok = wc.status == IBV_WC_SUCCESS;

        if (!ok && usable(c)) {
            say_line(c, LEVEL_INFO, "%s: a work request failed: %s", c->name,
                     ibv_wc_status_str(wc.status));
        }
        if (!ok && !is_in_flight(c, wr)) {
            continue; /* siw may end a READ that fails twice: it is gone */
        }
        if (wr->done != message_sent) {
            c->ndata--;
            c->moved += wr->len;
            if (wc.status == IBV_WC_SUCCESS && wc.opcode == IBV_WC_RDMA_READ) {
                c->nreads--;
            }
        }
        any = 1;
        inflight_done(c, wr, ok);
        if (!ok) {
            rdma_conn_close(c, RDMA_CONN_CAUSE_PEER);
        }
    }
    if (n < 0) { /* what is in it would never be known */
        rdma_conn_close(c, device_failed(c, "ibv_poll_cq"));
    }
    if (any) { /* they may have been somebody else's; a leader wakes itself */
        pthread_cond_broadcast(&c->cond);
    }
}

/* ---- messages out ------------------------------------------------------ */

int rdma_conn_post_receive(rdma_conn *c, unsigned i)
{
    struct ibv_sge sge = {(uintptr_t)c->region.base
                              + (size_t)i * RDMA_CONN_RECV_SLOT,
                          RDMA_CONN_RECV_SLOT, c->region.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = i, .sg_list = &sge, .num_sge = 1};
    struct ibv_recv_wr *bad;

    return ibv_post_recv(c->id->qp, &wr, &bad);
}

static int post_message(rdma_conn *c, rdma_conn_slot *slot)
{
    struct ibv_sge sge = {(uintptr_t)slot->bytes, RDMA_HDR_MSG_LEN,
                          c->region.mr->lkey};
    struct ibv_send_wr wr = {.wr_id = (uintptr_t)&slot->wr,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .opcode = IBV_WR_SEND,
                             .send_flags = IBV_SEND_SIGNALED};
    struct ibv_send_wr *bad;

    return ibv_post_send(c->id->qp, &wr, &bad);
}

/* Send what the credits allow; when nothing is queued, return credits.
 *
 * A post that the device refuses may complete all the same, flushed: siw's
 * library has queued it before the doorbell fails. So it is in flight, until it
 * has completed or the QP is gone, on a connection that is lost. */
static void flush(rdma_conn *c)
{
    while (usable(c) && c->qlen > 0 && rdma_credit_may_send(&c->credit)) {
        rdma_conn_queued *q = &c->queue[c->qhead];
        rdma_conn_slot *slot;

        if (!c->free_slots) {
            reap(c);
            if (!c->free_slots) { /* the peer was faster than our device */
                if (usable(c) && c->handler->stalled) {
                    c->handler->stalled(c->baton, c);
                }
                return;
            }
            continue; /* the reaping may have closed us */
        }
        slot = c->free_slots;
        c->free_slots = slot->next_free;
        q->msg.credits = (uint16_t)rdma_credit_spend(&c->credit);
        rdma_hdr_put_msg(&q->msg, slot->bytes);
        slot->sent = q->sent;
        slot->wr.done = message_sent;
        inflight_add(c, &slot->wr);
        c->qhead = (c->qhead + 1) % RDMA_CONN_QUEUE;
        c->qlen--;
        say_line(c, LEVEL_TRACE, "%s: > %s id %u bytes %llu%s", c->name,
                 rdma_hdr_type_name(q->msg.type), q->msg.id,
                 (unsigned long long)q->msg.bytes,
                 q->msg.flags & RDMA_HDR_FIN ? " fin" : "");
        if (post_message(c, slot)) {
            rdma_conn_close(c, device_failed(c, "ibv_post_send"));
        }
    }
    if (usable(c) && c->qlen == 0 && rdma_credit_wants_pong(&c->credit)) {
        rdma_hdr_msg pong = {.type = RDMA_HDR_PONG};

        rdma_conn_say(c, &pong, NULL);
    }
}

void rdma_conn_reap(rdma_conn *c)
{
    reap(c);
    flush(c);
}

int rdma_conn_say(rdma_conn *c, const rdma_hdr_msg *m, rdma_conn_wr *sent)
{
    unsigned i;
    rdma_conn_queued *q;

    if (!usable(c)) {
        return ENOTCONN;
    }
    if (m->type == RDMA_HDR_WRITTEN || m->type == RDMA_HDR_CONSUMED) {
        for (i = 0; i < c->qlen; i++) {
            q = &c->queue[(c->qhead + i) % RDMA_CONN_QUEUE];
            if (q->msg.type == m->type && q->msg.id == m->id && !q->sent) {
                q->msg = *m;
                q->sent = sent;
                flush(c);
                return 0;
            }
        }
    }
    if (c->qlen == RDMA_CONN_QUEUE) {
        say_line(c, LEVEL_ERR, "%s: %d messages queued", c->name,
                 RDMA_CONN_QUEUE);
        rdma_conn_close(c, RDMA_CONN_CAUSE_PROTOCOL);
        return ENOBUFS;
    }
    q = &c->queue[(c->qhead + c->qlen++) % RDMA_CONN_QUEUE];
    q->msg = *m;
    q->sent = sent;
    flush(c);
    return 0;
}

unsigned rdma_conn_queue_room(const rdma_conn *c)
{
    unsigned most = RDMA_CONN_QUEUE - RDMA_CONN_CONTROL;

    return c->qlen < most ? most - c->qlen : 0;
}

int rdma_conn_ping(rdma_conn *c)
{
    rdma_hdr_msg ping = {.type = RDMA_HDR_PING};

    return rdma_conn_say(c, &ping, NULL);
}

/* ---- data -------------------------------------------------------------- */

static int post_data(rdma_conn *c, rdma_conn_wr *wr, enum ibv_wr_opcode opcode,
                     const void *local, uint32_t lkey, uint32_t len,
                     uint64_t to, uint32_t stag)
{
    struct ibv_sge sge = {(uintptr_t)local, len, lkey};
    struct ibv_send_wr swr = {.wr_id = (uintptr_t)wr,
                              .sg_list = &sge,
                              .num_sge = 1,
                              .opcode = opcode,
                              .send_flags = IBV_SEND_SIGNALED};
    struct ibv_send_wr *bad;

    if (!usable(c)) {
        return ENOTCONN;
    }
    if (c->ndata == RDMA_CONN_DATA
        || (opcode == IBV_WR_RDMA_READ && c->nreads == c->reads)) {
        return EAGAIN;
    }
    swr.wr.rdma.remote_addr = to;
    swr.wr.rdma.rkey = stag;
    inflight_add(c, wr);
    c->ndata++;
    wr->len = len;
    c->posted += len;
    c->nreads += opcode == IBV_WR_RDMA_READ;
    if (ibv_post_send(c->id->qp, &swr, &bad)) { /* as in flush() */
        rdma_conn_close(c, device_failed(c, "ibv_post_send"));
    }
    return 0;
}

int rdma_conn_write(rdma_conn *c, rdma_conn_wr *wr, const void *local,
                    uint32_t lkey, uint32_t len, uint64_t to, uint32_t stag)
{
    return post_data(c, wr, IBV_WR_RDMA_WRITE, local, lkey, len, to, stag);
}

int rdma_conn_read(rdma_conn *c, rdma_conn_wr *wr, void *local, uint32_t lkey,
                   uint32_t len, uint64_t to, uint32_t stag)
{
    return post_data(c, wr, IBV_WR_RDMA_READ, local, lkey, len, to, stag);
}

/* ---- waiting ----------------------------------------------------------- */

/* Sleep on our own channel until a completion, a wake or the deadline. */
static void lead(rdma_conn *c, rdma_conn_time wait)
{
    struct pollfd fds[2] = {{c->send_channel->fd, POLLIN, 0},
                            {c->wake_fd, POLLIN, 0}};
    struct timespec ts = {(time_t)(wait / 1000000),
                          (long)(wait % 1000000) * 1000};
    struct ibv_cq *cq;
    void *context;
    uint64_t count;
    unsigned events = 0;
    int broken;

    c->leader = 1;
    rdma_conn_unlock(c);
    ppoll(fds, 2, &ts, NULL);
    rdma_conn_lock(c);
    c->leader = 0;
    while (ibv_get_cq_event(c->send_channel, &cq, &context) == 0) {
        events++;
    }
    broken = errno != EAGAIN && errno != EINTR;
    if (events) {
        ibv_ack_cq_events(c->send_cq, events);
    }
    if (broken || (fds[0].revents & ~POLLIN)) { /* we would never sleep again */
        rdma_conn_close(c, device_failed(c, "ibv_get_cq_event"));
    }
    if (fds[1].revents && read(c->wake_fd, &count, sizeof(count)) < 0) {
        say_line(c, LEVEL_TRACE, "%s: an empty wake", c->name);
    }
    pthread_cond_broadcast(&c->cond); /* the next leader, and the results */
}

static void follow(rdma_conn *c, rdma_conn_time deadline)
{
    struct timespec ts = {(time_t)(deadline / 1000000),
                          (long)(deadline % 1000000) * 1000};

    pthread_cond_timedwait(&c->cond, &c->lock, &ts);
}

int rdma_conn_wait(rdma_conn *c, int (*test)(void *arg), void *arg,
                   rdma_conn_time deadline)
{
    for (;;) {
        rdma_conn_time now;

        reap(c);
        flush(c);
        if (test(arg)) {
            return 0;
        }
        if (c->state == RDMA_CONN_CLOSED) {
            return ECONNRESET;
        }
        now = rdma_conn_now();
        if (now >= deadline) {
            return ETIMEDOUT;
        }
        if (c->leader || !c->send_channel) {
            follow(c, deadline);
            continue;
        }
        if (ibv_req_notify_cq(c->send_cq, 0)) { /* nobody would wake us */
            rdma_conn_close(c, device_failed(c, "ibv_req_notify_cq"));
        }
        reap(c); /* what came before the arming */
        if (test(arg)) {   /* true once is enough: it may have posted */
            return 0;
        }
        if (c->state != RDMA_CONN_CLOSED) {
            lead(c, deadline - now);
        }
    }
}

void rdma_conn_wake(rdma_conn *c)
{
    uint64_t one = 1;

    pthread_cond_broadcast(&c->cond);
    if (c->leader && write(c->wake_fd, &one, sizeof(one)) < 0) {
        say_line(c, LEVEL_ERR, "%s: eventfd: %s", c->name, strerror(errno));
    }
}

/* ---- messages in ------------------------------------------------------- */

/* Returns 0, or -1 with *why: the peer broke the protocol. */
static int dispatch(rdma_conn *c, const rdma_hdr_msg *m)
{
    say_line(c, LEVEL_TRACE, "%s: < %s id %u bytes %llu%s", c->name,
             rdma_hdr_type_name(m->type), m->id, (unsigned long long)m->bytes,
             m->flags & RDMA_HDR_FIN ? " fin" : "");
    if (c->state == RDMA_CONN_CONNECTING) {
        if (m->type != RDMA_HDR_HELLO) {
            return -1;
        }
        rdma_conn_transit(c, RDMA_CONN_OPEN, RDMA_CONN_CAUSE_NONE);
        if (c->handler->opened) {
            c->handler->opened(c->baton, c);
        }
        return 0;
    }
    switch (m->type) {
    case RDMA_HDR_HELLO:
        return -1;
    case RDMA_HDR_PING:
        /* Later: the answer returns credits, and a peer that pings as fast as
         * we answer would keep us here. */
        c->pong_due = 1;
        return 0;
    case RDMA_HDR_PONG:
        rdma_conn_wake(c); /* somebody may have asked */
        return 0;
    default:
        return c->handler->message(c->baton, c, m);
    }
}

/* One queued PONG answers any number of PINGs: the queue cannot be filled by a
 * peer that pings without returning credits. */
static void answer_pings(rdma_conn *c)
{
    rdma_hdr_msg pong = {.type = RDMA_HDR_PONG};

    if (c->pong_due
        && (c->qlen == 0
            || c->queue[(c->qhead + c->qlen - 1) % RDMA_CONN_QUEUE].msg.type
                   != RDMA_HDR_PONG)) {
        rdma_conn_say(c, &pong, NULL);
    }
    c->pong_due = 0;
}

/* One receive completion. Returns the cause to close for, or CAUSE_NONE; *lost
 * if its receive could not be posted again, which the rest does not wait for:
 * what has been received counts. */
static rdma_conn_cause received(rdma_conn *c, const struct ibv_wc *wc,
                                int *lost)
{
    unsigned char bytes[RDMA_HDR_MSG_LEN];
    rdma_hdr_msg m;

    if (wc->status != IBV_WC_SUCCESS) {
        return RDMA_CONN_CAUSE_PEER; /* a flush: no cause can be read from it */
    }
    if (wc->byte_len == RDMA_HDR_MSG_LEN) {
        memcpy(bytes, c->region.base + wc->wr_id * RDMA_CONN_RECV_SLOT,
               sizeof(bytes));
    }
    if (wc->byte_len != RDMA_HDR_MSG_LEN
        || rdma_hdr_get_msg(bytes, sizeof(bytes), &m) != RDMA_HDR_OK) {
        say_line(c, LEVEL_INFO, "%s: a malformed message", c->name);
        return RDMA_CONN_CAUSE_PROTOCOL;
    }
    c->heard = rdma_conn_now();
    c->has_spoken = 1;
    /* Before the message is acted on: processing never delays a credit. While
     * we are closing the QP takes no receives, and nobody needs them. */
    if (!c->closing && rdma_conn_post_receive(c, (unsigned)wc->wr_id)) {
        *lost = 1;
    }
    if (rdma_credit_arrived(&c->credit, m.credits)) {
        say_line(c, LEVEL_INFO, "%s: credits beyond the depth", c->name);
        return RDMA_CONN_CAUSE_PROTOCOL;
    }
    if (dispatch(c, &m)) {
        say_line(c, LEVEL_INFO, "%s: %s for id %u breaks the protocol", c->name,
                 rdma_hdr_type_name(m.type), m.id);
        return RDMA_CONN_CAUSE_PROTOCOL;
    }
    return RDMA_CONN_CAUSE_NONE;
}

/* Deliver all that has been received. One completion at a time, so that a
 * handler may close, which drains the rest in order. */
static rdma_conn_cause drain(rdma_conn *c)
{
    rdma_conn_cause why = RDMA_CONN_CAUSE_NONE;
    struct ibv_wc wc;
    int lost = 0;
    int n = 0;

    while (why == RDMA_CONN_CAUSE_NONE && c->state != RDMA_CONN_CLOSED
           && (n = ibv_poll_cq(c->recv_cq, 1, &wc)) == 1) {
        why = received(c, &wc, &lost);
    }
    if (n < 0) { /* it would be deaf: better none */
        return device_failed(c, "ibv_poll_cq");
    }
    return why == RDMA_CONN_CAUSE_NONE && lost ? RDMA_CONN_CAUSE_PEER : why;
}

void rdma_conn_receive(rdma_conn *c)
{
    rdma_conn_cause why;

    rdma_conn_lock(c);
    /* CONNECTING: its connector will call when it is OPEN. CLOSED: another thread
     * may be destroying the queues. */
    if ((c->state == RDMA_CONN_CLOSED && c->hang_up_later)
        || (c->active && c->state == RDMA_CONN_CONNECTING)) {
        rdma_conn_unlock(c);
        return;
    }
    why = drain(c);
    if (why == RDMA_CONN_CAUSE_NONE && c->state != RDMA_CONN_CLOSED) {
        /* Not armed, it would be deaf: better none. */
        why = ibv_req_notify_cq(c->recv_cq, 0)
                  ? device_failed(c, "ibv_req_notify_cq")
                  : drain(c); /* came before */
    }
    if (!c->send_channel && c->state != RDMA_CONN_CLOSED
        && ibv_req_notify_cq(c->send_cq, 0) && why == RDMA_CONN_CAUSE_NONE) {
        why = device_failed(c, "ibv_req_notify_cq");
    }
    reap(c); /* also what nobody waits for: blocks given up */
    if (why != RDMA_CONN_CAUSE_NONE) {
        rdma_conn_close(c, why);
    }
    else {
        answer_pings(c);
        flush(c);
    }
    rdma_conn_unlock(c);
}

void rdma_conn_event(rdma_conn *c, enum rdma_cm_event_type type, int status)
{
    rdma_conn_lock(c);
    say_line(c, LEVEL_DEBUG, "%s: %s %d", c->name, rdma_event_str(type),
             status);
    switch (type) {
    case RDMA_CM_EVENT_DISCONNECTED:
    case RDMA_CM_EVENT_REJECTED:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
        rdma_conn_close(c, RDMA_CONN_CAUSE_PEER);
        break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        rdma_conn_close(c, RDMA_CONN_CAUSE_DEVICE);
        break;
    default: /* ESTABLISHED, TIMEWAIT_EXIT, ADDR_CHANGE: nothing to do */
        break;
    }
    rdma_conn_unlock(c);
}

/* ---- ending ------------------------------------------------------------ */

static void hang_up(rdma_conn *c)
{
    if (c->connected) {
        c->connected = 0;
        rdma_disconnect(c->id);
    }
}

void rdma_conn_hang_up(rdma_conn *c)
{
    hang_up(c);
}

void rdma_conn_close(rdma_conn *c, rdma_conn_cause why)
{
    if (c->closing) {
        return;
    }
    c->closing = 1;
    if (!c->hang_up_later) {
        hang_up(c);
    }
    drain(c); /* a fin that was received counts */
    rdma_conn_transit(c, RDMA_CONN_CLOSED, why);
    while (c->qlen > 0) {
        rdma_conn_queued *q = &c->queue[c->qhead];

        c->qhead = (c->qhead + 1) % RDMA_CONN_QUEUE;
        c->qlen--;
        if (q->sent) {
            q->sent->done(q->sent, c, 0);
        }
    }
    if (c->handler->closed) {
        c->handler->closed(c->baton, c);
    }
    rdma_conn_wake(c);
}
