/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "loop.h"

/* The low bits of a work request's id say what it was. */
enum { WORK_RECEIVE = 1, WORK_SEND = 2, WORK_MOVE = 0, WORK_MASK = 3 };

static struct rdma_event_channel *events;

enum { DEVICES = 8, FLOOD_MS = 5 };
static struct {
    struct ibv_context *verbs;
    struct ibv_comp_channel *channel;
    struct ibv_cq *guard; /* for as long as the process lives */
} devices[DEVICES];

static void nonblocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void on_cm_event(void *arg, unsigned ready)
{
    struct rdma_cm_event *event;
    (void)arg;
    (void)ready;
    while (rdma_get_cm_event(events, &event) == 0) {
        struct cm_event e = {.type = event->event,
                             .status = event->status,
                             .id = event->id,
                             .param = event->param.conn};
        struct cm_owner *owner = event->id->context;
        if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST) {
            owner = event->listen_id->context;
        }
        if (e.param.private_data != NULL) {
            e.data_len = e.param.private_data_len;
            memcpy(e.data, e.param.private_data, e.data_len);
        }
        e.param.private_data = NULL;
        /* Before anything that may destroy the id. */
        rdma_ack_cm_event(event);
        owner->event(owner, &e);
    }
}

struct rdma_cm_id *cm_new(struct cm_owner *owner)
{
    struct rdma_cm_id *id;
    if (events == NULL) {
        events = need(rdma_create_event_channel());
        nonblocking(events->fd);
        loop_watch(events->fd, EPOLLIN, on_cm_event, NULL);
    }
    return rdma_create_id(events, &id, owner, RDMA_PS_TCP) == 0 ? id : NULL;
}

static void on_completion(void *arg, unsigned ready)
{
    struct ibv_cq *cq;
    void *user;
    (void)ready;
    while (ibv_get_cq_event(arg, &cq, &user) == 0) {
        struct conn *c = user;
        ibv_ack_cq_events(cq, 1);
        if (!c->held && !c->gone) {
            ibv_req_notify_cq(cq, 0);
            conn_poll(c);
        }
    }
}

/* libsiw takes the mapping offset 0x90000 for "none": a large CQ lies across it,
 * or a process could not have more than some 18 connections. */
static struct ibv_cq *guard(struct ibv_context *verbs)
{
    struct ibv_device_attr attr;

    if (ibv_query_device(verbs, &attr) != 0 || attr.vendor_id != 0x626d74) {
        return NULL;
    }
    return need(ibv_create_cq(verbs, 20000, NULL, NULL, 0));
}

static struct ibv_comp_channel *channel_of(struct ibv_context *verbs)
{
    int i = 0;
    while (i < DEVICES - 1 && devices[i].verbs != NULL
           && devices[i].verbs != verbs) {
        i++;
    }
    if (devices[i].verbs != verbs) {
        devices[i].verbs = verbs;
        devices[i].channel = need(ibv_create_comp_channel(verbs));
        devices[i].guard = guard(verbs);
        nonblocking(devices[i].channel->fd);
        loop_watch(devices[i].channel->fd, EPOLLIN, on_completion,
                   devices[i].channel);
    }
    return devices[i].channel;
}

static void on_event(struct cm_owner *owner, const struct cm_event *e)
{
    struct conn *c = (struct conn *)owner;
    if (!c->gone) {
        c->ops->event(c, e);
    }
}

static bool post_receive(struct conn *c, unsigned slot)
{
    struct ibv_sge sge = {
        .addr = (uintptr_t)(c->receives + (size_t)slot * RECEIVE_SIZE),
        .length = RECEIVE_SIZE,
        .lkey = c->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = (uint64_t)slot << 2 | WORK_RECEIVE,
                             .sg_list = &sge,
                             .num_sge = 1};
    struct ibv_recv_wr *bad;
    return ibv_post_recv(c->id->qp, &wr, &bad) == 0;
}

struct conn *conn_new(struct rdma_cm_id *id, struct ibv_pd *pd, uint8_t kind,
                      uint8_t depth, unsigned moves, const struct conn_ops *ops,
                      void *user)
{
    struct conn *c = need(calloc(1, sizeof *c));
    struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC};
    size_t size = ((size_t)depth + 1) * RECEIVE_SIZE; /* one to send from */
    c->owner.event = on_event;
    c->ops = ops;
    c->user = user;
    c->id = id;
    c->kind = kind;
    c->depth = depth;
    c->moves_max = moves;
    c->sends_max = 256;
    c->last_in = loop_now();
    c->receives = need(aligned_alloc(4096, (size + 4095) & ~(size_t)4095));
    c->cq = ibv_create_cq(id->verbs, (int)(depth + c->sends_max + moves + 8), c,
                          channel_of(id->verbs), 0);
    c->mr = ibv_reg_mr(pd, c->receives, size, IBV_ACCESS_LOCAL_WRITE);
    attr.send_cq = attr.recv_cq = c->cq;
    attr.cap.max_send_wr = c->sends_max + moves + 4;
    attr.cap.max_recv_wr = (uint32_t)depth + 1;
    attr.cap.max_send_sge = attr.cap.max_recv_sge = 1;
    attr.cap.max_inline_data = RECEIVE_SIZE;
    if (c->cq == NULL || c->mr == NULL || rdma_create_qp(id, pd, &attr) != 0) {
        goto fail;
    }
    for (unsigned i = 0; i < depth; i++) {
        if (!post_receive(c, i)) {
            rdma_destroy_qp(id);
            goto fail;
        }
    }
    ibv_req_notify_cq(c->cq, 0);
    id->context = c;
    return c;
fail:
    if (c->cq != NULL) {
        ibv_destroy_cq(c->cq);
    }
    if (c->mr != NULL) {
        ibv_dereg_mr(c->mr);
    }
    free(c->receives);
    free(c);
    return NULL;
}

void conn_peer(struct conn *c, uint8_t depth)
{
    c->peer = depth;
    c->avail = depth;
}

bool conn_post_raw(struct conn *c, const uint8_t *data, size_t len)
{
    struct ibv_sge sge = {.addr = (uintptr_t)data, .length = (uint32_t)len};
    struct ibv_send_wr *bad,
        wr = {.wr_id = WORK_SEND,
              .sg_list = &sge,
              .num_sge = 1,
              .opcode = IBV_WR_SEND,
              .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE};
    if (c->gone || ibv_post_send(c->id->qp, &wr, &bad) != 0) {
        return false;
    }
    c->sends++;
    return true;
}

/* siw takes no inline data here, and its library the tag from where a WRITE has
 * it. */
bool conn_invalidate(struct conn *c, uint32_t stag)
{
    uint8_t *data = c->receives + (size_t)c->depth * RECEIVE_SIZE;
    struct ibv_sge sge = {
        .addr = (uintptr_t)data, .length = MESSAGE_SIZE, .lkey = c->mr->lkey};
    struct ibv_send_wr *bad, wr = {.wr_id = WORK_SEND,
                                   .sg_list = &sge,
                                   .num_sge = 1,
                                   .opcode = IBV_WR_SEND_WITH_INV,
                                   .send_flags = IBV_SEND_SIGNALED};
    wire_put(data, &(struct message){.type = PING});
    wr.invalidate_rkey = wr.wr.rdma.rkey = stag;
    if (c->gone || ibv_post_send(c->id->qp, &wr, &bad) != 0) {
        return false;
    }
    c->sends++;
    c->avail -= c->avail > 0;
    return true;
}

/* One at a time: whose receives ran out would be ended by its device, and not
 * because it counts. */
static void flood_on(void *arg)
{
    struct conn *c = arg;
    uint8_t data[MESSAGE_SIZE];
    wire_put(data, &(struct message){.type = PING});
    if (c->sends < c->sends_max) {
        conn_post_raw(c, data, sizeof data);
    }
    loop_timer(FLOOD_MS, flood_on, c);
}

void conn_flood(struct conn *c)
{
    c->floods = true;
    flood_on(c);
}

static bool post(struct conn *c, struct message m)
{
    uint8_t data[MESSAGE_SIZE];
    m.credits = (uint16_t)c->owed;
    c->owed = 0;
    c->avail--;
    c->out[m.type < MESSAGE_TYPES ? m.type : 0]++;
    wire_put(data, &m);
    if (c->ops->posted != NULL) {
        c->ops->posted(c, &m);
    }
    return conn_post_raw(c, data, sizeof data);
}

static bool may_go(const struct conn *c)
{
    return c->open && !c->gone && c->sends < c->sends_max
           && (c->avail >= 2 || (c->avail == 1 && c->owed >= 1));
}

void conn_flush(struct conn *c)
{
    while (c->queue != NULL && may_go(c)) {
        struct waiting *w = c->queue;
        struct message m = w->m;
        c->queue = w->next;
        free(w);
        if (!post(c, m)) {
            conn_destroy(c, "a SEND was refused");
            return;
        }
    }
    if (c->queue == NULL && c->owed >= c->depth / 2u && may_go(c)) {
        struct message pong = {.type = PONG};
        if (!post(c, pong)) {
            conn_destroy(c, "a SEND was refused");
        }
    }
}

bool conn_fin_queued(const struct conn *c, uint32_t id)
{
    for (const struct waiting *w = c->queue; w != NULL; w = w->next) {
        if (w->m.id == id && (w->m.flags & FLAG_FIN) != 0) {
            return true;
        }
    }
    return false;
}

void conn_say(struct conn *c, const struct message *m)
{
    struct waiting **place = &c->queue;
    if (c->gone) {
        return;
    }
    while (*place != NULL) {
        struct message *old = &(*place)->m;
        bool fin = (old->flags & FLAG_FIN) != 0;
        bool cumulative = m->type == CONSUMED || m->type == WRITTEN;
        if (m->id != 0 && old->id == m->id && !fin
            && (m->type == ABORT || (cumulative && old->type == m->type))) {
            *old = *m;
            conn_flush(c);
            return;
        }
        place = &(*place)->next;
    }
    *place = need(malloc(sizeof **place));
    (*place)->next = NULL;
    (*place)->m = *m;
    conn_flush(c);
}

bool conn_move(struct conn *c, enum ibv_wr_opcode opcode, void *local,
               const struct ibv_mr *mr, uint32_t len, uint32_t stag,
               uint64_t to, void *cookie, bool signaled)
{
    struct ibv_sge sge = {
        .addr = (uintptr_t)local, .length = len, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.wr_id = (uintptr_t)cookie,
                                   .sg_list = &sge,
                                   .num_sge = 1,
                                   .opcode = opcode};
    wr.send_flags = signaled ? (unsigned)IBV_SEND_SIGNALED : 0;
    wr.wr.rdma.remote_addr = to;
    wr.wr.rdma.rkey = stag;
    if (c->gone || ibv_post_send(c->id->qp, &wr, &bad) != 0) {
        return false;
    }
    c->moves += signaled;
    return true;
}

static void received(struct conn *c, const struct ibv_wc *wc)
{
    unsigned slot = (unsigned)(wc->wr_id >> 2);
    struct message m;
    if (wc->byte_len != MESSAGE_SIZE) {
        conn_destroy(c, "protocol: a message that is not 32 bytes long");
        return;
    }
    wire_get(c->receives + (size_t)slot * RECEIVE_SIZE, &m);
    c->in[m.type < MESSAGE_TYPES ? m.type : 0]++;
    c->last_in = loop_now();
    c->pinged = 0;
    c->avail += m.credits;
    if (c->avail > c->peer && !c->floods) {
        conn_destroy(c, "protocol: credits beyond the depth");
        return;
    }
    if (!c->gone && !post_receive(c, slot)) {
        conn_destroy(c, "a receive was refused");
        return;
    }
    c->owed += !c->floods;
    c->ops->message(c, &m);
}

/* One completion; false when there is none. */
static bool poll_one(struct conn *c)
{
    struct ibv_wc wc;
    if (c->id->qp == NULL || ibv_poll_cq(c->cq, 1, &wc) <= 0) {
        return false;
    }
    bool fine = wc.status == IBV_WC_SUCCESS;
    switch (wc.wr_id & WORK_MASK) {
    case WORK_RECEIVE:
        if (fine) {
            received(c, &wc);
        }
        break;
    case WORK_SEND:
        c->sends--;
        break;
    default:
        c->moves--;
        c->ops->moved(c, (void *)(uintptr_t)wc.wr_id, fine);
    }
    if (!fine && !c->gone) {
        char why[80];
        snprintf(why, sizeof why, "%s: %s",
                 (wc.wr_id & WORK_MASK) == WORK_RECEIVE ? "receive"
                 : (wc.wr_id & WORK_MASK) == WORK_SEND  ? "send"
                                                        : "move",
                 ibv_wc_status_str(wc.status));
        conn_destroy(c, why);
    }
    return true;
}

void conn_poll(struct conn *c)
{
    while (!c->gone && !c->held && poll_one(c)) {
        conn_flush(c);
    }
    if (!c->gone && !c->held) {
        conn_flush(c);
    }
}

void conn_hold(struct conn *c, bool held)
{
    c->held = held;
    if (!held && !c->gone) {
        ibv_req_notify_cq(c->cq, 0);
        conn_poll(c);
    }
}

void conn_destroy(struct conn *c, const char *why)
{
    if (c->gone) {
        return;
    }
    c->gone = true;
    loop_cancel(flood_on, c);
    while (poll_one(c)) {
    }
    if (!c->disconnect_off) {
        rdma_disconnect(c->id);
    }
    rdma_destroy_qp(c->id);
    c->ops->lost(c, why);
    rdma_destroy_id(c->id);
    ibv_destroy_cq(c->cq);
    ibv_dereg_mr(c->mr);
    while (c->queue != NULL) {
        struct waiting *w = c->queue;
        c->queue = w->next;
        free(w);
    }
    loop_free(c->receives);
    loop_free(c);
}
