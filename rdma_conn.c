/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_conn.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "rdma_credit.h"

#define RECV_SLOT     64 /* bytes: a longer SEND than a message shows its length */
#define QUEUE_MAX     256 /* messages; the owner's ids cannot cause that many */
#define SEND_TIMES    2 /* send slots per unit of depth: completions may lag */
#define CONNECT_SLICE 100 /* ms: how long a cancelled connect may not notice */

enum { LEVEL_ERR = 3, LEVEL_INFO = 6, LEVEL_DEBUG = 7, LEVEL_TRACE = 8 };

/* A message slot: its bytes lie in the registered page. */
typedef struct send_slot {
    rdma_conn_wr wr;
    rdma_conn_wr *sent; /* the caller's, or NULL */
    struct send_slot *next_free;
    unsigned char *bytes;
} send_slot;

typedef struct queued {
    rdma_hdr_msg msg;
    rdma_conn_wr *sent;
} queued;

struct rdma_conn {
    pthread_mutex_t lock;
    pthread_cond_t cond; /* followers in rdma_conn_wait */
    int leader;          /* somebody sleeps on send_channel */

    /* constant after making */
    rdma_hdr_kind kind;
    int active; /* we are the server */
    uint32_t number;
    rdma_mem *mem;
    const rdma_conn_handler *handler;
    void *baton;
    char name[80];
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    int own_pd;
    struct ibv_cq *recv_cq;
    struct ibv_cq *send_cq;
    struct ibv_comp_channel *send_channel; /* NULL: the owner's is shared */
    int wake_fd;
    unsigned depth;
    unsigned nslots;
    rdma_mem_region region;
    send_slot *slots;

    /* under the lock */
    rdma_conn_state state;
    rdma_conn_cause cause;
    int closing;
    int connected; /* accept or connect has gone out: say goodbye */
    rdma_credit credit;
    rdma_conn_time heard;
    send_slot *free_slots;
    unsigned ndata;
    unsigned nreads;
    rdma_conn_wr inflight; /* ring of what the device has */
    unsigned qhead, qlen;
    queued queue[QUEUE_MAX];
};

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
        "none",     "closed here", "closed by the peer", "protocol error",
        "timeout",  "no device",   "out of resources",   "unreachable",
        "rejected", "cancelled"};

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

/* The only place where the state changes. */
static void transit(rdma_conn *c, rdma_conn_state to, rdma_conn_cause why)
{
    say_line(c, LEVEL_DEBUG, "%s: %s -- %s --> %s", c->name,
             rdma_conn_state_name(c->state), rdma_conn_cause_name(why),
             rdma_conn_state_name(to));
    c->state = to;
    if (to == RDMA_CONN_CLOSED) {
        c->cause = why;
    }
}

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

static void set_name(rdma_conn *c, struct sockaddr *peer)
{
    char host[NI_MAXHOST] = "?";
    char port[NI_MAXSERV] = "?";
    socklen_t len = peer->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                : sizeof(struct sockaddr_in);

    getnameinfo(peer, len, host, sizeof(host), port, sizeof(port),
                NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(c->name, sizeof(c->name), "%.48s:%.5s #%u %s", host, port,
             c->number, rdma_hdr_kind_name(c->kind));
}

void rdma_conn_lock(rdma_conn *c) { pthread_mutex_lock(&c->lock); }

void rdma_conn_unlock(rdma_conn *c) { pthread_mutex_unlock(&c->lock); }

rdma_hdr_kind rdma_conn_kind(const rdma_conn *c) { return c->kind; }

uint32_t rdma_conn_number(const rdma_conn *c) { return c->number; }

struct ibv_pd *rdma_conn_pd(const rdma_conn *c) { return c->pd; }

struct rdma_cm_id *rdma_conn_id(const rdma_conn *c) { return c->id; }

void *rdma_conn_baton(const rdma_conn *c) { return c->baton; }

const char *rdma_conn_name(const rdma_conn *c) { return c->name; }

rdma_conn_state rdma_conn_state_get(const rdma_conn *c) { return c->state; }

rdma_conn_cause rdma_conn_cause_get(const rdma_conn *c) { return c->cause; }

rdma_conn_time rdma_conn_heard(const rdma_conn *c) { return c->heard; }

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

static void inflight_done(rdma_conn *c, rdma_conn_wr *wr, int ok)
{
    wr->prev->next = wr->next;
    wr->next->prev = wr->prev;
    wr->next = wr->prev = NULL;
    wr->done(wr, c, ok);
}

static void message_sent(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    send_slot *slot = (send_slot *)wr; /* wr is its first member */
    rdma_conn_wr *sent = slot->sent;

    slot->sent = NULL;
    slot->next_free = c->free_slots;
    c->free_slots = slot;
    if (sent) {
        sent->done(sent, c, ok);
    }
}

void rdma_conn_reap(rdma_conn *c)
{
    struct ibv_wc wc;
    int any = 0;

    while (ibv_poll_cq(c->send_cq, 1, &wc) == 1) {
        rdma_conn_wr *wr = (rdma_conn_wr *)(uintptr_t)wc.wr_id;
        int ok = wc.status == IBV_WC_SUCCESS;

        if (!ok && usable(c)) {
            say_line(c, LEVEL_INFO, "%s: a work request failed: %s", c->name,
                     ibv_wc_status_str(wc.status));
        }
        if (wr->done != message_sent) {
            c->ndata--;
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
    if (any) { /* they may have been somebody else's; a leader wakes itself */
        pthread_cond_broadcast(&c->cond);
    }
}

/* ---- messages out ------------------------------------------------------ */

static int post_receive(rdma_conn *c, unsigned i)
{
    struct ibv_sge sge = {(uintptr_t)c->region.base + (size_t)i * RECV_SLOT,
                          RECV_SLOT, c->region.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = i, .sg_list = &sge, .num_sge = 1};
    struct ibv_recv_wr *bad;

    return ibv_post_recv(c->id->qp, &wr, &bad);
}

static int post_message(rdma_conn *c, send_slot *slot)
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

/* Send what the credits allow; when nothing is queued, return credits. */
static void flush(rdma_conn *c)
{
    while (usable(c) && c->qlen > 0 && rdma_credit_may_send(&c->credit)) {
        queued *q = &c->queue[c->qhead];
        send_slot *slot;

        if (!c->free_slots) {
            rdma_conn_reap(c);
            if (!c->free_slots) {
                return; /* more peers' credits than completions: later */
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
        c->qhead = (c->qhead + 1) % QUEUE_MAX;
        c->qlen--;
        say_line(c, LEVEL_TRACE, "%s: > %s id %u bytes %llu%s", c->name,
                 rdma_hdr_type_name(q->msg.type), q->msg.id,
                 (unsigned long long)q->msg.bytes,
                 q->msg.flags & RDMA_HDR_FIN ? " fin" : "");
        if (post_message(c, slot)) {
            inflight_done(c, &slot->wr, 0);
            rdma_conn_close(c, RDMA_CONN_CAUSE_DEVICE);
        }
    }
    if (usable(c) && c->qlen == 0 && rdma_credit_wants_pong(&c->credit)) {
        rdma_hdr_msg pong = {.type = RDMA_HDR_PONG};

        rdma_conn_say(c, &pong, NULL);
    }
}

int rdma_conn_say(rdma_conn *c, const rdma_hdr_msg *m, rdma_conn_wr *sent)
{
    unsigned i;
    queued *q;

    if (!usable(c)) {
        return ENOTCONN;
    }
    if (m->type == RDMA_HDR_WRITTEN || m->type == RDMA_HDR_CONSUMED) {
        for (i = 0; i < c->qlen; i++) {
            q = &c->queue[(c->qhead + i) % QUEUE_MAX];
            if (q->msg.type == m->type && q->msg.id == m->id && !q->sent) {
                q->msg = *m;
                q->sent = sent;
                flush(c);
                return 0;
            }
        }
    }
    if (c->qlen == QUEUE_MAX) {
        say_line(c, LEVEL_ERR, "%s: %d messages queued", c->name, QUEUE_MAX);
        rdma_conn_close(c, RDMA_CONN_CAUSE_PROTOCOL);
        return ENOBUFS;
    }
    q = &c->queue[(c->qhead + c->qlen++) % QUEUE_MAX];
    q->msg = *m;
    q->sent = sent;
    flush(c);
    return 0;
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
    int rc;

    if (!usable(c)) {
        return ENOTCONN;
    }
    if (c->ndata == RDMA_CONN_DATA ||
        (opcode == IBV_WR_RDMA_READ && c->nreads == RDMA_CONN_READS)) {
        return EAGAIN;
    }
    swr.wr.rdma.remote_addr = to;
    swr.wr.rdma.rkey = stag;
    rc = ibv_post_send(c->id->qp, &swr, &bad);
    if (rc) {
        rdma_conn_close(c, RDMA_CONN_CAUSE_DEVICE);
        return rc;
    }
    inflight_add(c, wr);
    c->ndata++;
    c->nreads += opcode == IBV_WR_RDMA_READ;
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

    c->leader = 1;
    rdma_conn_unlock(c);
    ppoll(fds, 2, &ts, NULL);
    rdma_conn_lock(c);
    c->leader = 0;
    while (ibv_get_cq_event(c->send_channel, &cq, &context) == 0) {
        events++;
    }
    if (events) {
        ibv_ack_cq_events(c->send_cq, events);
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

        rdma_conn_reap(c);
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
        ibv_req_notify_cq(c->send_cq, 0);
        rdma_conn_reap(c); /* what came before the arming */
        if (!test(arg) && c->state != RDMA_CONN_CLOSED) {
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
    rdma_hdr_msg pong = {.type = RDMA_HDR_PONG};

    say_line(c, LEVEL_TRACE, "%s: < %s id %u bytes %llu%s", c->name,
             rdma_hdr_type_name(m->type), m->id, (unsigned long long)m->bytes,
             m->flags & RDMA_HDR_FIN ? " fin" : "");
    if (c->state == RDMA_CONN_CONNECTING) {
        if (c->active || m->type != RDMA_HDR_HELLO) {
            return -1;
        }
        transit(c, RDMA_CONN_OPEN, RDMA_CONN_CAUSE_NONE);
        if (c->handler->opened) {
            c->handler->opened(c->baton, c);
        }
        return 0;
    }
    switch (m->type) {
    case RDMA_HDR_HELLO:
        return -1;
    case RDMA_HDR_PING:
        /* One queued PONG answers any number of PINGs: the queue cannot be
         * filled by a peer that pings without returning credits. */
        if (c->qlen == 0 ||
            c->queue[(c->qhead + c->qlen - 1) % QUEUE_MAX].msg.type !=
                RDMA_HDR_PONG) {
            rdma_conn_say(c, &pong, NULL);
        }
        return 0;
    case RDMA_HDR_PONG:
        rdma_conn_wake(c); /* somebody may have asked */
        return 0;
    default:
        return c->handler->message(c->baton, c, m);
    }
}

/* One receive completion. Returns the cause to close for, or CAUSE_NONE. */
static rdma_conn_cause received(rdma_conn *c, const struct ibv_wc *wc)
{
    unsigned char bytes[RDMA_HDR_MSG_LEN];
    rdma_hdr_msg m;

    if (wc->status != IBV_WC_SUCCESS) {
        return RDMA_CONN_CAUSE_PEER; /* a flush: no cause can be read from it */
    }
    if (wc->byte_len == RDMA_HDR_MSG_LEN) {
        memcpy(bytes, c->region.base + wc->wr_id * RECV_SLOT, sizeof(bytes));
    }
    if (wc->byte_len != RDMA_HDR_MSG_LEN ||
        rdma_hdr_get_msg(bytes, sizeof(bytes), &m) != RDMA_HDR_OK) {
        say_line(c, LEVEL_INFO, "%s: a malformed message", c->name);
        return RDMA_CONN_CAUSE_PROTOCOL;
    }
    c->heard = rdma_conn_now();
    /* Before the message is acted on: processing never delays a credit. While
     * we are closing the QP takes no receives, and nobody needs them. */
    if (!c->closing && post_receive(c, (unsigned)wc->wr_id)) {
        return RDMA_CONN_CAUSE_DEVICE;
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

    while (why == RDMA_CONN_CAUSE_NONE && c->state != RDMA_CONN_CLOSED &&
           ibv_poll_cq(c->recv_cq, 1, &wc) == 1) {
        why = received(c, &wc);
    }
    return why;
}

void rdma_conn_receive(rdma_conn *c)
{
    rdma_conn_cause why;

    rdma_conn_lock(c);
    why = drain(c);
    if (why == RDMA_CONN_CAUSE_NONE && c->state != RDMA_CONN_CLOSED) {
        ibv_req_notify_cq(c->recv_cq, 0);
        why = drain(c); /* what came before the arming */
    }
    if (!c->send_channel) {
        if (c->state != RDMA_CONN_CLOSED) {
            ibv_req_notify_cq(c->send_cq, 0);
        }
        rdma_conn_reap(c);
    }
    if (why != RDMA_CONN_CAUSE_NONE) {
        rdma_conn_close(c, why);
    }
    else {
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

void rdma_conn_close(rdma_conn *c, rdma_conn_cause why)
{
    if (c->closing) {
        return;
    }
    c->closing = 1;
    if (c->connected) {
        rdma_disconnect(c->id);
    }
    drain(c); /* a fin that was received counts */
    transit(c, RDMA_CONN_CLOSED, why);
    while (c->qlen > 0) {
        queued *q = &c->queue[c->qhead];

        c->qhead = (c->qhead + 1) % QUEUE_MAX;
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

/* Free everything that make() may have made, in an order that devices like. */
static void unmake(rdma_conn *c, void (*gone)(void *arg), void *arg)
{
    if (c->id && c->id->qp) {
        rdma_destroy_qp(c->id);
    }
    rdma_conn_lock(c);
    while (c->inflight.next != &c->inflight) {
        inflight_done(c, c->inflight.next, 0);
    }
    rdma_conn_unlock(c);
    if (gone) {
        gone(arg);
    }
    if (c->id) {
        rdma_destroy_id(c->id);
    }
    if (c->send_cq) {
        ibv_destroy_cq(c->send_cq);
    }
    if (c->recv_cq) {
        ibv_destroy_cq(c->recv_cq);
    }
    rdma_mem_unmap(c->mem, &c->region);
    if (c->own_pd && c->pd) {
        ibv_dealloc_pd(c->pd);
    }
    if (c->send_channel) {
        ibv_destroy_comp_channel(c->send_channel);
    }
    if (c->wake_fd >= 0) {
        close(c->wake_fd);
    }
    free(c->slots);
    pthread_cond_destroy(&c->cond);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void rdma_conn_destroy(rdma_conn *c, void (*gone)(void *arg), void *arg)
{
    rdma_conn_lock(c);
    rdma_conn_close(c, RDMA_CONN_CAUSE_LOCAL);
    rdma_conn_unlock(c);
    unmake(c, gone, arg);
}

/* ---- making ------------------------------------------------------------ */

static rdma_conn *allocate(const rdma_conn_conf *conf)
{
    rdma_conn *c = calloc(1, sizeof(*c));
    pthread_condattr_t attr;

    if (!c) {
        return NULL;
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->cond, &attr);
    pthread_condattr_destroy(&attr);
    c->kind = conf->kind;
    c->mem = conf->mem;
    c->handler = conf->handler;
    c->baton = conf->baton;
    c->depth = conf->depth ? conf->depth : RDMA_CONN_DEPTH;
    c->nslots = c->depth * SEND_TIMES;
    c->wake_fd = -1;
    c->inflight.next = c->inflight.prev = &c->inflight;
    c->heard = rdma_conn_now();
    return c;
}

static int refuse(rdma_conn_failure *why, rdma_conn_cause cause, int error,
                  const char *step)
{
    why->cause = cause;
    why->error = error;
    why->step = step;
    return -1;
}

static int resources(rdma_conn_failure *why, const char *step)
{
    return refuse(why, RDMA_CONN_CAUSE_RESOURCES, errno ? errno : ENOMEM, step);
}

static int make_slots(rdma_conn *c, rdma_conn_failure *why)
{
    size_t receives = (size_t)c->depth * RECV_SLOT;
    unsigned i;
    int rc = rdma_mem_map(c->mem, c->pd,
                          receives + (size_t)c->nslots * RDMA_HDR_MSG_LEN,
                          IBV_ACCESS_LOCAL_WRITE, &c->region);

    if (rc) {
        return refuse(why, RDMA_CONN_CAUSE_RESOURCES, rc, "ibv_reg_mr");
    }
    c->slots = calloc(c->nslots, sizeof(*c->slots));
    if (!c->slots) {
        return resources(why, "calloc");
    }
    for (i = 0; i < c->nslots; i++) {
        c->slots[i].bytes = (unsigned char *)c->region.base + receives +
                            (size_t)i * RDMA_HDR_MSG_LEN;
        c->slots[i].next_free = c->free_slots;
        c->free_slots = &c->slots[i];
    }
    return 0;
}

/* Everything on the device that c->id has: domain, CQs, QP, slots; receives
 * are posted and the CQ is armed when this returns 0. */
static int make(rdma_conn *c, const rdma_conn_conf *conf,
                rdma_conn_failure *why)
{
    struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC};
    struct ibv_comp_channel *channel;
    unsigned i;

    errno = 0;
    c->own_pd = !conf->domain;
    c->pd = conf->domain ? conf->domain(conf->baton, c->id->verbs)
                         : ibv_alloc_pd(c->id->verbs);
    if (!c->pd) {
        return resources(why, "ibv_alloc_pd");
    }
    channel = conf->channel(conf->baton, c->id->verbs);
    if (!channel) {
        return resources(why, "ibv_create_comp_channel");
    }
    c->recv_cq = ibv_create_cq(c->id->verbs, (int)c->depth, c, channel, 0);
    if (conf->own_send_channel) {
        c->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        c->send_channel = ibv_create_comp_channel(c->id->verbs);
        if (c->wake_fd < 0 || !c->send_channel ||
            set_nonblocking(c->send_channel->fd)) {
            return resources(why, "ibv_create_comp_channel");
        }
        channel = c->send_channel;
    }
    c->send_cq = ibv_create_cq(c->id->verbs, (int)(c->nslots + RDMA_CONN_DATA),
                               c, channel, 0);
    if (!c->recv_cq || !c->send_cq) {
        return resources(why, "ibv_create_cq");
    }
    attr.send_cq = c->send_cq;
    attr.recv_cq = c->recv_cq;
    attr.cap.max_send_wr = c->nslots + RDMA_CONN_DATA;
    attr.cap.max_recv_wr = c->depth;
    attr.cap.max_send_sge = attr.cap.max_recv_sge = 1;
    if (rdma_create_qp(c->id, c->pd, &attr)) {
        return resources(why, "rdma_create_qp");
    }
    if (make_slots(c, why)) {
        return -1;
    }
    for (i = 0; i < c->depth; i++) {
        if (post_receive(c, i)) {
            return resources(why, "ibv_post_recv");
        }
    }
    if (ibv_req_notify_cq(c->recv_cq, 0) ||
        (!c->send_channel && ibv_req_notify_cq(c->send_cq, 0))) {
        return resources(why, "ibv_req_notify_cq");
    }
    return 0;
}

/* We never keep more messages outstanding than we have slots for, however deep
 * the peer is. */
static void start_credits(rdma_conn *c, unsigned peer_depth)
{
    rdma_credit_init(&c->credit, c->depth,
                     peer_depth < c->depth ? peer_depth : c->depth);
}

int rdma_conn_accept(const rdma_conn_conf *conf, struct rdma_cm_id *id,
                     const rdma_hdr_connect *req, uint32_t number,
                     rdma_conn **out, rdma_conn_failure *why)
{
    uint8_t data[RDMA_HDR_ACCEPT_LEN];
    rdma_hdr_accept acc = {.kind = conf->kind, .conn = number};
    struct rdma_conn_param param = {.private_data = data,
                                    .private_data_len = sizeof(data),
                                    .rnr_retry_count = 0};
    rdma_conn *c;

    *out = NULL;
    memset(why, 0, sizeof(*why));
    c = allocate(conf);
    if (!c) {
        return resources(why, "calloc");
    }
    c->number = number;
    c->id = id;
    set_name(c, rdma_get_peer_addr(id));
    if (make(c, conf, why)) {
        goto failed;
    }
    start_credits(c, req->depth);
    acc.depth = (uint8_t)c->depth;
    rdma_hdr_put_accept(&acc, data);
    param.initiator_depth = c->kind == RDMA_HDR_READ ? RDMA_CONN_READS : 0;
    id->context = c;
    rdma_conn_lock(c); /* HELLO may be there before rdma_accept returns */
    c->connected = 1;
    rdma_conn_unlock(c);
    if (rdma_accept(id, &param)) {
        refuse(why, RDMA_CONN_CAUSE_PEER, errno, "rdma_accept");
        goto failed;
    }
    *out = c;
    return 0;
failed:
    if (id->qp) {
        rdma_destroy_qp(id);
    }
    c->id = NULL; /* stays the caller's */
    unmake(c, NULL, NULL);
    return -1;
}

/* ---- connecting -------------------------------------------------------- */

typedef struct attempt {
    const rdma_conn_target *to;
    struct rdma_event_channel *channel;
    rdma_conn_failure *why;
    uint8_t data[RDMA_HDR_ACCEPT_LEN]; /* private data of the last event */
    size_t data_len;
} attempt;

/* 0, or -1 with *why: given up from outside, or too late. */
static int still_wanted(const attempt *a, const char *step)
{
    if (a->to->cancel && __atomic_load_n(a->to->cancel, __ATOMIC_RELAXED)) {
        return refuse(a->why, RDMA_CONN_CAUSE_CANCELLED, 0, step);
    }
    if (rdma_conn_now() >= a->to->deadline) {
        return refuse(a->why, RDMA_CONN_CAUSE_TIMEOUT, ETIMEDOUT, step);
    }
    return 0;
}

static int remaining_ms(const attempt *a)
{
    rdma_conn_time us = a->to->deadline - rdma_conn_now();

    return us <= 0 ? 1 : us > 3600000000LL ? 3600000 : (int)(us / 1000) + 1;
}

/* What an event other than the wanted one means. */
static int wrong_event(const attempt *a, enum rdma_cm_event_type type,
                       int status, const char *step)
{
    rdma_conn_cause cause = RDMA_CONN_CAUSE_UNREACHABLE;

    if (type == RDMA_CM_EVENT_REJECTED) {
        a->why->reject = rdma_hdr_get_reject(a->data, a->data_len);
        /* siw reports a port where nobody listens as REJECTED, -ECONNREFUSED */
        if (a->why->reject != RDMA_HDR_REJECT_NONE) {
            cause = RDMA_CONN_CAUSE_REJECTED;
        }
    }
    else if (type == RDMA_CM_EVENT_DEVICE_REMOVAL ||
             type == RDMA_CM_EVENT_ADDR_ERROR) {
        cause = RDMA_CONN_CAUSE_DEVICE;
    }
    return refuse(a->why, cause, status < 0 ? -status : status, step);
}

static int await(attempt *a, enum rdma_cm_event_type wanted, const char *step)
{
    struct pollfd fd = {a->channel->fd, POLLIN, 0};
    struct rdma_cm_event *event;
    enum rdma_cm_event_type type;
    int status;

    while (rdma_get_cm_event(a->channel, &event)) {
        int ms = remaining_ms(a);

        if (errno != EAGAIN && errno != EINTR) {
            return resources(a->why, "rdma_get_cm_event");
        }
        if (still_wanted(a, step)) {
            return -1;
        }
        poll(&fd, 1, ms < CONNECT_SLICE ? ms : CONNECT_SLICE);
    }
    type = event->event;
    status = event->status;
    a->data_len = 0;
    if (event->param.conn.private_data &&
        (type == RDMA_CM_EVENT_ESTABLISHED || type == RDMA_CM_EVENT_REJECTED)) {
        a->data_len = event->param.conn.private_data_len;
        if (a->data_len > sizeof(a->data)) {
            a->data_len = sizeof(a->data);
        }
        memcpy(a->data, event->param.conn.private_data, a->data_len);
    }
    rdma_ack_cm_event(event);
    return type == wanted ? 0 : wrong_event(a, type, status, step);
}

static int resolve(rdma_conn *c, attempt *a)
{
    struct sockaddr_storage local = a->to->local;
    struct sockaddr_storage remote = a->to->remote;

    if (rdma_resolve_addr(c->id, (struct sockaddr *)&local,
                          (struct sockaddr *)&remote, remaining_ms(a))) {
        return refuse(a->why, RDMA_CONN_CAUSE_DEVICE, errno,
                      "rdma_resolve_addr");
    }
    if (await(a, RDMA_CM_EVENT_ADDR_RESOLVED, "rdma_resolve_addr")) {
        return -1;
    }
    if (!c->id->verbs) {
        return refuse(a->why, RDMA_CONN_CAUSE_DEVICE, ENODEV,
                      "rdma_resolve_addr");
    }
    if (rdma_resolve_route(c->id, remaining_ms(a))) {
        return refuse(a->why, RDMA_CONN_CAUSE_UNREACHABLE, errno,
                      "rdma_resolve_route");
    }
    return await(a, RDMA_CM_EVENT_ROUTE_RESOLVED, "rdma_resolve_route");
}

static int shake_hands(rdma_conn *c, attempt *a)
{
    uint8_t data[RDMA_HDR_CONNECT_LEN];
    rdma_hdr_connect req = {.kind = c->kind, .depth = (uint8_t)c->depth};
    struct rdma_conn_param param = {.private_data = data,
                                    .private_data_len = sizeof(data),
                                    .retry_count = 7,
                                    .rnr_retry_count = 0};
    rdma_hdr_accept acc;

    memcpy(req.token, a->to->token, sizeof(req.token));
    rdma_hdr_put_connect(&req, data);
    /* The client reads, the server never does. */
    param.responder_resources = c->kind == RDMA_HDR_READ ? RDMA_CONN_READS : 0;
    if (still_wanted(a, "rdma_connect")) {
        return -1;
    }
    if (rdma_connect(c->id, &param)) {
        int error = errno;

        if (error == EINTR && still_wanted(a, "rdma_connect")) {
            return -1;
        }
        return refuse(a->why, RDMA_CONN_CAUSE_UNREACHABLE, error,
                      "rdma_connect");
    }
    if (await(a, RDMA_CM_EVENT_ESTABLISHED, "rdma_connect")) {
        return -1;
    }
    c->connected = 1;
    if (rdma_hdr_get_accept(a->data, a->data_len, &acc) !=
            RDMA_HDR_REJECT_NONE ||
        acc.kind != c->kind) {
        return refuse(a->why, RDMA_CONN_CAUSE_PROTOCOL, 0, "accept");
    }
    c->number = acc.conn;
    start_credits(c, acc.depth);
    return 0;
}

int rdma_conn_connect(const rdma_conn_conf *conf, const rdma_conn_target *to,
                      struct rdma_event_channel *events, rdma_conn **out,
                      rdma_conn_failure *why)
{
    attempt a = {.to = to, .why = why};
    rdma_hdr_msg hello = {.type = RDMA_HDR_HELLO};
    struct sockaddr_storage remote = to->remote;
    rdma_conn *c;

    *out = NULL;
    memset(why, 0, sizeof(*why));
    c = allocate(conf);
    if (!c) {
        return resources(why, "calloc");
    }
    c->active = 1;
    set_name(c, (struct sockaddr *)&remote);
    a.channel = rdma_create_event_channel();
    if (!a.channel || set_nonblocking(a.channel->fd) ||
        rdma_create_id(a.channel, &c->id, c, RDMA_PS_TCP)) {
        resources(why, "rdma_create_id");
        goto failed;
    }
    if (resolve(c, &a) || make(c, conf, why) || shake_hands(c, &a)) {
        goto failed;
    }
    set_name(c, (struct sockaddr *)&remote); /* now with its number */
    /* Held over the migration: the owner's thread may get an event at once. */
    rdma_conn_lock(c);
    if (rdma_migrate_id(c->id, events)) {
        rdma_conn_unlock(c);
        resources(why, "rdma_migrate_id");
        goto failed;
    }
    transit(c, RDMA_CONN_OPEN, RDMA_CONN_CAUSE_NONE);
    if (conf->handler->opened) {
        conf->handler->opened(conf->baton, c);
    }
    rdma_conn_say(c, &hello, NULL);
    rdma_conn_unlock(c);
    rdma_destroy_event_channel(a.channel);
    *out = c;
    return 0;
failed:
    if (c->connected) {
        rdma_disconnect(c->id);
    }
    unmake(c, NULL, NULL);
    if (a.channel) {
        rdma_destroy_event_channel(a.channel);
    }
    return -1;
}
