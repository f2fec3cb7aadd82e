/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Making a connection, at either end, and taking it apart.
 */
#include "rdma_conn_private.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SEND_TIMES    2 /* send slots per unit of depth: completions may lag */
#define PORT_TRIES    4
#define CONNECT_SLICE 100 /* ms: how long a cancelled connect may not notice */

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

/* Free everything that make() may have made, in an order that devices like. */
static void unmake(rdma_conn *c, void (*gone)(void *arg), void *arg)
{
    if (c->id && c->id->qp) {
        rdma_destroy_qp(c->id);
    }
    /* These two wait until the events that were fetched have been acked: from
     * here on the threads that read our owner's channels do not know us. */
    if (c->id) {
        rdma_destroy_id(c->id);
    }
    if (c->recv_cq) {
        ibv_destroy_cq(c->recv_cq);
    }
    if (c->send_cq) {
        ibv_destroy_cq(c->send_cq);
    }
    rdma_conn_lock(c);
    rdma_conn_drop_inflight(c);
    rdma_conn_unlock(c);
    if (gone) {
        gone(arg);
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
    rdma_conn_hang_up(c);
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
    c->reads = conf->kind == RDMA_HDR_READ ? conf->reads : 0;
    c->hang_up_later = conf->hang_up_later;
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

/* These errors are what one hears of a device that has just gone, the last one if
 * its descriptors refer to nothing already. */
static int resources(rdma_conn_failure *why, const char *step)
{
    return refuse(why,
                  errno == ENODEV || errno == EIO || errno == EBADF
                      ? RDMA_CONN_CAUSE_DEVICE
                      : RDMA_CONN_CAUSE_RESOURCES,
                  errno ? errno : ENOMEM, step);
}

static int make_slots(rdma_conn *c, rdma_conn_failure *why)
{
    size_t receives = (size_t)c->depth * RDMA_CONN_RECV_SLOT;
    unsigned i;
    int rc = rdma_mem_map(c->mem, c->pd,
                          receives + (size_t)c->nslots * RDMA_HDR_MSG_LEN,
                          IBV_ACCESS_LOCAL_WRITE, &c->region);

    if (rc == EDQUOT) { /* as when a body finds none: no error */
        return refuse(why, RDMA_CONN_CAUSE_RESOURCES, 0, "the memory budget");
    }
    if (rc) {
        errno = rc;
        return resources(why, "ibv_reg_mr");
    }
    c->slots = calloc(c->nslots, sizeof(*c->slots));
    if (!c->slots) {
        return resources(why, "calloc");
    }
    for (i = 0; i < c->nslots; i++) {
        c->slots[i].bytes = (unsigned char *)c->region.base + receives
                            + (size_t)i * RDMA_HDR_MSG_LEN;
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

    c->own_pd = !conf->domain;
    c->domain_took = rdma_conn_now();
    errno = 0;
    c->pd = conf->domain ? conf->domain(conf->baton, c->id)
                         : ibv_alloc_pd(c->id->verbs);
    c->domain_took = rdma_conn_now() - c->domain_took;
    if (!c->pd) {
        return resources(why, "ibv_alloc_pd");
    }
    channel = conf->channel(conf->baton, c->id);
    if (!channel) {
        return resources(why, "ibv_create_comp_channel");
    }
    c->recv_cq = ibv_create_cq(c->id->verbs, (int)c->depth, c, channel, 0);
    if (conf->own_send_channel) {
        c->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        c->send_channel = ibv_create_comp_channel(c->id->verbs);
        if (c->wake_fd < 0 || !c->send_channel
            || set_nonblocking(c->send_channel->fd)) {
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
        if (rdma_conn_post_receive(c, i)) {
            return resources(why, "ibv_post_recv");
        }
    }
    if (ibv_req_notify_cq(c->recv_cq, 0)
        || (!c->send_channel && ibv_req_notify_cq(c->send_cq, 0))) {
        return resources(why, "ibv_req_notify_cq");
    }
    return 0;
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
    rdma_credit_init(&c->credit, c->depth, req->depth);
    acc.depth = (uint8_t)c->depth;
    rdma_hdr_put_accept(&acc, data);
    param.initiator_depth = (uint8_t)c->reads;
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
    rdma_conn_time deadline;
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
    if (rdma_conn_now() >= a->deadline) {
        return refuse(a->why, RDMA_CONN_CAUSE_TIMEOUT, ETIMEDOUT, step);
    }
    return 0;
}

static int remaining_ms(const attempt *a)
{
    rdma_conn_time us = a->deadline - rdma_conn_now();

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
    else if (type == RDMA_CM_EVENT_DEVICE_REMOVAL
             || type == RDMA_CM_EVENT_ADDR_ERROR) {
        cause = RDMA_CONN_CAUSE_DEVICE;
        a->why->removed = type == RDMA_CM_EVENT_DEVICE_REMOVAL;
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
    if (event->param.conn.private_data
        && (type == RDMA_CM_EVENT_ESTABLISHED
            || type == RDMA_CM_EVENT_REJECTED)) {
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
    if (rdma_hdr_get_accept(a->data, a->data_len, &acc) != RDMA_HDR_REJECT_NONE
        || acc.kind != c->kind) {
        return refuse(a->why, RDMA_CONN_CAUSE_PROTOCOL, 0, "accept");
    }
    c->number = acc.conn;
    rdma_credit_init(&c->credit, c->depth, acc.depth);
    return 0;
}

static int connect_once(const rdma_conn_conf *conf, const rdma_conn_target *to,
                        struct rdma_event_channel *events, rdma_conn **out,
                        rdma_conn_failure *why)
{
    attempt a = {.to = to, .deadline = to->deadline, .why = why};
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
    if (!a.channel || set_nonblocking(a.channel->fd)
        || rdma_create_id(a.channel, &c->id, c, RDMA_PS_TCP)) {
        resources(why, "rdma_create_id");
        goto failed;
    }
    if (resolve(c, &a) || make(c, conf, why)) {
        goto failed;
    }
    a.deadline += c->domain_took; /* a slowness that is not the peer's */
    if (shake_hands(c, &a)) {
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
    rdma_conn_transit(c, RDMA_CONN_OPEN, RDMA_CONN_CAUSE_NONE);
    if (conf->handler->opened) {
        conf->handler->opened(conf->baton, c);
    }
    rdma_conn_say(c, &hello, NULL);
    rdma_conn_unlock(c);
    rdma_conn_receive(c); /* what came while it was CONNECTING; arms again */
    rdma_destroy_event_channel(a.channel);
    *out = c;
    return 0;
failed:
    rdma_conn_hang_up(c);
    unmake(c, NULL, NULL);
    if (a.channel) {
        rdma_destroy_event_channel(a.channel);
    }
    return -1;
}

/* The connection manager picks our port from a range of its own; siw binds a
 * TCP socket to it, which somebody else may have. That says nothing about the
 * client: try with another port. */
static int port_was_taken(const rdma_conn_failure *why)
{
    return why->error == EADDRINUSE || why->error == EADDRNOTAVAIL;
}

int rdma_conn_connect(const rdma_conn_conf *conf, const rdma_conn_target *to,
                      struct rdma_event_channel *events, rdma_conn **out,
                      rdma_conn_failure *why)
{
    int tries = PORT_TRIES;
    int rc;

    do {
        rc = connect_once(conf, to, events, out, why);
    } while (rc && port_was_taken(why) && --tries > 0
             && rdma_conn_now() < to->deadline);
    if (rc && port_was_taken(why)) {
        why->cause = RDMA_CONN_CAUSE_RESOURCES;
    }
    return rc;
}
