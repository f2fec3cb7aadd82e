/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * librdmacm: ids, their events, connecting.
 */
#include "fake_private.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes that rxe pads private data to. */
enum { PAD_REQUEST = 56, PAD_ACCEPT = 196, PAD_REJECT = 148 };

static int fail(int error)
{
    errno = error;
    return -1;
}

/* A step that is to fail; else 0. */
static int tripped(const char *function)
{
    int error = fake_trip(function);

    return error ? fail(error) : 0;
}

const char *rdma_event_str(enum rdma_cm_event_type type)
{
    static const char *const names[] = {
        [RDMA_CM_EVENT_ADDR_RESOLVED] = "ADDR_RESOLVED",
        [RDMA_CM_EVENT_ROUTE_RESOLVED] = "ROUTE_RESOLVED",
        [RDMA_CM_EVENT_CONNECT_REQUEST] = "CONNECT_REQUEST",
        [RDMA_CM_EVENT_ESTABLISHED] = "ESTABLISHED",
        [RDMA_CM_EVENT_REJECTED] = "REJECTED",
        [RDMA_CM_EVENT_DISCONNECTED] = "DISCONNECTED",
        [RDMA_CM_EVENT_DEVICE_REMOVAL] = "DEVICE_REMOVAL"};

    return (size_t)type < sizeof(names) / sizeof(names[0]) && names[type]
               ? names[type]
               : "?";
}

static uint16_t port_of(const struct sockaddr *a)
{
    struct sockaddr_in in;
    struct sockaddr_in6 in6;

    if (a->sa_family == AF_INET6) {
        memcpy(&in6, a, sizeof(in6));
        return ntohs(in6.sin6_port);
    }
    memcpy(&in, a, sizeof(in));
    return ntohs(in.sin_port);
}

static void copy_addr(struct sockaddr_storage *to, const struct sockaddr *from)
{
    memcpy(to, from,
           from->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                       : sizeof(struct sockaddr_in));
}

/* 1: the address of no device. */
static int is_wildcard(const struct rdma_addr *a)
{
    return a->src_addr.sa_family == AF_INET
           && a->src_sin.sin_addr.s_addr == INADDR_ANY;
}

/* ---- event channels ---------------------------------------------------- */

struct rdma_event_channel *rdma_create_event_channel(void)
{
    fake_events *h;

    if (tripped("rdma_create_event_channel")) {
        return NULL;
    }
    h = calloc(1, sizeof(*h));
    if (!h) {
        return NULL;
    }
    h->channel.fd = fake_fd_make();
    if (h->channel.fd < 0) {
        free(h);
        return NULL;
    }
    fake_lock();
    fake.channels++;
    fake_unlock();
    return &h->channel;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
    fake_events *h = (fake_events *)channel;

    fake_lock();
    if (h->ids) {
        fake_fault("rdma_destroy_event_channel: %u ids use it", h->ids);
    }
    fake.channels--;
    fake_unlock();
    close(channel->fd);
    free(h);
}

/* [locked] */
static void enqueue(fake_event **link, fake_event *e)
{
    while (*link) {
        link = &(*link)->next;
    }
    e->next = NULL;
    *link = e;
}

/* [locked] Take an id's events off a list; what it takes goes to *taken. */
static void take_events(fake_event **list, const fake_id *id,
                        fake_event **taken)
{
    while (*list) {
        fake_event *e = *list;

        if (e->owner == id || e->event.id == &id->id) {
            *list = e->next;
            enqueue(taken, e);
        }
        else {
            list = &e->next;
        }
    }
}

void fake_event_for(fake_id *id, enum rdma_cm_event_type type, int status,
                    const void *data, size_t len, size_t padded)
{
    fake_event *e = calloc(1, sizeof(*e));

    if (!e) {
        fake_fault("no memory");
    }
    e->owner = id;
    e->event.id = &id->id;
    e->event.event = type;
    e->event.status = status;
    if (len) {
        memcpy(e->data, data, len);
        e->event.param.conn.private_data_len =
            (uint8_t)(fake.like_rxe && padded > len ? padded : len);
    }
    enqueue(&fake.coming, e);
    fake_work();
}

static fake_id *listener_at(const fake_id *id)
{
    uint16_t port = port_of(&id->id.route.addr.dst_addr);
    fake_id *l = fake.ids;

    while (l
           && (l->state != CM_LISTENING
               || port_of(&l->id.route.addr.src_addr) != port)) {
        l = l->next;
    }
    return l;
}

static fake_id *new_id(struct rdma_event_channel *channel, void *context)
{
    fake_id *id = calloc(1, sizeof(*id));

    if (!id) {
        fake_fault("no memory");
    }
    id->id.channel = channel;
    id->id.context = context;
    id->id.ps = RDMA_PS_TCP;
    id->next = fake.ids;
    fake.ids = id;
    fake.nids++;
    ((fake_events *)channel)->ids++;
    return id;
}

/* [locked] A connect arrives: a new id at the listener, or a refusal. */
static void connect_arrives(fake_event *e)
{
    fake_id *active = e->owner;
    fake_id *l = listener_at(active);
    fake_id *passive;

    if (!l) {
        e->is_connect = 0;
        e->event.event = RDMA_CM_EVENT_REJECTED;
        e->event.status = -ECONNREFUSED;
        e->event.param.conn.private_data_len = 0;
        active->state = CM_OVER;
        fake_event_deliver(e);
        return;
    }
    passive = new_id(l->id.channel, l->id.context);
    passive->state = CM_REQUESTED;
    passive->id.verbs = &fake_context;
    passive->id.route.addr.src_storage = active->id.route.addr.dst_storage;
    passive->id.route.addr.dst_storage = active->id.route.addr.src_storage;
    passive->peer = active;
    active->peer = passive;
    e->is_connect = 0;
    e->owner = l;
    e->event.id = &passive->id;
    e->event.listen_id = &l->id;
    e->event.event = RDMA_CM_EVENT_CONNECT_REQUEST;
    e->event.param.conn.initiator_depth = active->param.responder_resources;
    e->event.param.conn.responder_resources = active->param.initiator_depth;
    fake_event_deliver(e);
}

void fake_event_deliver(fake_event *e)
{
    fake_events *h;

    if (e->is_connect) {
        connect_arrives(e);
        return;
    }
    h = (fake_events *)e->owner->id.channel;
    enqueue(&h->first, e);
    fake_fd_set(h->channel.fd, 1);
}

int rdma_get_cm_event(struct rdma_event_channel *channel,
                      struct rdma_cm_event **event)
{
    fake_events *h = (fake_events *)channel;
    fake_event *e;

    if (tripped("rdma_get_cm_event")) {
        return -1;
    }
    fake_lock();
    while (!h->first) {
        fake_unlock();
        if (!fake_fd_wait(channel->fd)) {
            return fail(EAGAIN);
        }
        fake_lock();
    }
    e = h->first;
    h->first = e->next;
    fake_fd_set(channel->fd, h->first != NULL);
    e->owner->unacked++;
    if (e->event.event == RDMA_CM_EVENT_ADDR_RESOLVED) {
        e->event.id->verbs = &fake_context;
    }
    e->event.param.conn.private_data =
        e->event.param.conn.private_data_len ? e->data : NULL;
    fake_unlock();
    *event = &e->event;
    return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *event)
{
    fake_event *e = (fake_event *)event;

    fake_lock();
    e->owner->unacked--;
    pthread_cond_broadcast(&fake.acked);
    fake_unlock();
    free(e);
    return 0;
}

/* ---- ids --------------------------------------------------------------- */

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id,
                   void *context, enum rdma_port_space ps)
{
    if (tripped("rdma_create_id")) {
        return -1;
    }
    if (ps != RDMA_PS_TCP || !channel) {
        fake_fault("rdma_create_id: not RDMA_PS_TCP, or no channel");
    }
    fake_lock();
    *id = &new_id(channel, context)->id;
    fake_unlock();
    return 0;
}

/* [locked] */
static void free_id(fake_id *id)
{
    fake_id **link = &fake.ids;

    while (*link != id) {
        link = &(*link)->next;
    }
    *link = id->next;
    fake.nids--;
    ((fake_events *)id->id.channel)->ids--;
    free(id);
}

/* [locked] The other end of a connect that is not through yet hears of it. */
static void give_up(fake_id *id)
{
    fake_id *peer = id->peer;

    if (!peer) {
        return;
    }
    peer->peer = NULL;
    id->peer = NULL;
    if (peer->state == CM_CONNECTING) {
        peer->state = CM_OVER;
        fake_event_for(peer, RDMA_CM_EVENT_REJECTED, -ECONNRESET, NULL, 0, 0);
    }
}

/* [locked] Events that nobody has read are no more; a connect request that
 * nobody has seen ends with its listener. */
static void drop_events(fake_id *id)
{
    fake_events *h = (fake_events *)id->id.channel;
    fake_event *gone = NULL;

    take_events(&fake.coming, id, &gone);
    take_events(&h->first, id, &gone);
    fake_fd_set(h->channel.fd, h->first != NULL);
    while (gone) {
        fake_event *e = gone;

        gone = e->next;
        if (e->event.event == RDMA_CM_EVENT_CONNECT_REQUEST
            && e->event.id != &id->id) {
            give_up((fake_id *)e->event.id);
            free_id((fake_id *)e->event.id);
        }
        free(e);
    }
}

int rdma_destroy_id(struct rdma_cm_id *rid)
{
    fake_id *id = (fake_id *)rid;

    fake_trip("rdma_destroy_id"); /* it cannot fail */
    fake_lock();
    if (rid->qp) {
        fake_fault("rdma_destroy_id: it has a QP");
    }
    if (id->state == CM_CONNECTED) {
        fake_cut(id, 0, 1);
    }
    give_up(id);
    drop_events(id);
    while (id->unacked) {
        if (fake_wait_acked()) {
            fake_fault("rdma_destroy_id: %u events are not acked", id->unacked);
        }
    }
    free_id(id);
    fake_unlock();
    return 0;
}

int rdma_migrate_id(struct rdma_cm_id *rid, struct rdma_event_channel *channel)
{
    fake_id *id = (fake_id *)rid;
    fake_events *from;
    fake_event *moved = NULL;

    if (tripped("rdma_migrate_id")) {
        return -1;
    }
    fake_lock();
    from = (fake_events *)rid->channel;
    take_events(&from->first, id, &moved);
    fake_fd_set(from->channel.fd, from->first != NULL);
    while (id->unacked) {
        if (fake_wait_acked()) {
            fake_fault("rdma_migrate_id: %u events are not acked", id->unacked);
        }
    }
    from->ids--;
    rid->channel = channel;
    ((fake_events *)channel)->ids++;
    while (moved) {
        fake_event *e = moved;

        moved = e->next;
        fake_event_deliver(e);
    }
    fake_unlock();
    return 0;
}

int rdma_bind_addr(struct rdma_cm_id *rid, struct sockaddr *addr)
{
    if (tripped("rdma_bind_addr")) {
        return -1;
    }
    fake_lock();
    copy_addr(&rid->route.addr.src_storage, addr);
    if (port_of(addr) == 0) {
        struct sockaddr_in *in = &rid->route.addr.src_sin;

        in->sin_port = htons((uint16_t)(20000 + fake.port++));
    }
    rid->verbs = is_wildcard(&rid->route.addr) ? NULL : &fake_context;
    fake_unlock();
    return 0;
}

void fake_remove_device(void)
{
    fake_id *id;

    fake_lock();
    for (id = fake.ids; id; id = id->next) {
        if (id->id.verbs) {
            fake_event_for(id, RDMA_CM_EVENT_DEVICE_REMOVAL, 0, NULL, 0, 0);
        }
    }
    fake_unlock();
}

int rdma_listen(struct rdma_cm_id *rid, int backlog)
{
    (void)backlog;
    if (tripped("rdma_listen")) {
        return -1;
    }
    fake_lock();
    ((fake_id *)rid)->state = CM_LISTENING;
    fake_unlock();
    return 0;
}

__be16 rdma_get_src_port(struct rdma_cm_id *rid)
{
    return htons(port_of(&rid->route.addr.src_addr));
}

int rdma_create_qp(struct rdma_cm_id *rid, struct ibv_pd *pd,
                   struct ibv_qp_init_attr *attr)
{
    fake_qp *q;

    if (tripped("rdma_create_qp")) {
        return -1;
    }
    if (pd->context != rid->verbs || attr->qp_type != IBV_QPT_RC) {
        fake_fault("rdma_create_qp: not on this device, or not RC");
    }
    fake_lock();
    q = fake_qp_make((fake_id *)rid, pd, attr);
    rid->qp = q ? &q->qp : NULL;
    fake_unlock();
    return q ? 0 : fail(ENOMEM);
}

void rdma_destroy_qp(struct rdma_cm_id *rid)
{
    fake_id *id = (fake_id *)rid;

    fake_trip("rdma_destroy_qp"); /* it cannot fail */
    fake_lock();
    if (id->state == CM_CONNECTED) { /* an rxe peer hears nothing of it */
        fake_cut(id, 0, !fake.like_rxe);
    }
    fake_qp_free((fake_qp *)rid->qp);
    rid->qp = NULL;
    fake_unlock();
}

/* ---- connecting -------------------------------------------------------- */

int rdma_resolve_addr(struct rdma_cm_id *rid, struct sockaddr *src,
                      struct sockaddr *dst, int timeout_ms)
{
    fake_route route;

    (void)timeout_ms;
    if (tripped("rdma_resolve_addr")) {
        return -1;
    }
    fake_lock();
    route = fake_route_of(port_of(dst), 0);
    if (route != FAKE_NO_DEVICE) {
        if (src) {
            copy_addr(&rid->route.addr.src_storage, src);
        }
        if (is_wildcard(&rid->route.addr)) {
            rid->route.addr.src_sin.sin_addr.s_addr = htonl(FAKE_ADDR);
        }
        copy_addr(&rid->route.addr.dst_storage, dst);
        ((fake_id *)rid)->state = CM_RESOLVED;
        fake_event_for((fake_id *)rid, RDMA_CM_EVENT_ADDR_RESOLVED, 0, NULL, 0,
                       0);
    }
    fake_unlock();
    return route == FAKE_NO_DEVICE ? fail(ENOENT) : 0;
}

int rdma_resolve_route(struct rdma_cm_id *rid, int timeout_ms)
{
    (void)timeout_ms;
    if (tripped("rdma_resolve_route")) {
        return -1;
    }
    fake_lock();
    fake_event_for((fake_id *)rid, RDMA_CM_EVENT_ROUTE_RESOLVED, 0, NULL, 0, 0);
    fake_unlock();
    return 0;
}

int rdma_connect(struct rdma_cm_id *rid, struct rdma_conn_param *param)
{
    fake_id *id = (fake_id *)rid;
    fake_route route;

    if (tripped("rdma_connect")) {
        return -1;
    }
    fake_lock();
    route = fake_route_of(port_of(&rid->route.addr.dst_addr), 1);
    if (!rid->qp || id->state != CM_RESOLVED) {
        fake_fault("rdma_connect: no QP, or not resolved");
    }
    id->param = *param;
    id->reads = param->initiator_depth;
    if (route == FAKE_NORMAL || route == FAKE_SILENT) {
        id->state = CM_CONNECTING;
    }
    if (route == FAKE_NORMAL) {
        fake_event *e;

        fake_event_for(id, RDMA_CM_EVENT_CONNECT_REQUEST, 0,
                       param->private_data, param->private_data_len,
                       PAD_REQUEST);
        for (e = fake.coming; e->next; e = e->next) {
        }
        e->is_connect = 1;
    }
    fake_unlock();
    if (route == FAKE_BLOCKED) {
        poll(NULL, 0, -1);
        return fail(EINTR);
    }
    return 0;
}

int rdma_accept(struct rdma_cm_id *rid, struct rdma_conn_param *param)
{
    fake_id *id = (fake_id *)rid;
    fake_id *peer;

    if (tripped("rdma_accept")) {
        return -1;
    }
    fake_lock();
    peer = id->peer;
    if (!rid->qp || id->state != CM_REQUESTED) {
        fake_fault("rdma_accept: no QP, or no request");
    }
    if (!peer || peer->state != CM_CONNECTING || !peer->id.qp) {
        id->state = CM_OVER;
        fake_unlock();
        return fail(ECONNRESET);
    }
    id->reads = param->initiator_depth;
    id->state = peer->state = CM_CONNECTED;
    rid->qp->state = peer->id.qp->state = IBV_QPS_RTS;
    fake_event_for(peer, RDMA_CM_EVENT_ESTABLISHED, 0, param->private_data,
                   param->private_data_len, PAD_ACCEPT);
    fake_event_for(id, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, 0, 0);
    fake_unlock();
    return 0;
}

int rdma_reject(struct rdma_cm_id *rid, const void *data, uint8_t len)
{
    fake_id *id = (fake_id *)rid;
    fake_id *peer;

    if (tripped("rdma_reject")) {
        return -1;
    }
    fake_lock();
    peer = id->peer;
    id->state = CM_OVER;
    id->peer = NULL;
    if (peer) {
        peer->peer = NULL;
        peer->state = CM_OVER;
        fake_event_for(peer, RDMA_CM_EVENT_REJECTED,
                       fake.like_rxe ? 28 : -ECONNREFUSED, data, len,
                       PAD_REJECT);
    }
    fake_unlock();
    return 0;
}

/* ---- the end of a connection ------------------------------------------- */

static void fall(fake_id *id)
{
    id->state = CM_OVER;
    id->peer = NULL;
    if (id->id.qp) {
        id->id.qp->state = IBV_QPS_ERR;
        ((fake_qp *)id->id.qp)->dead_posts = (int)fake_random(4);
    }
}

void fake_cut(fake_id *from, int tell_from, int tell_peer)
{
    fake_id *peer = from->peer;

    if (from->state != CM_CONNECTED) {
        return;
    }
    from->state = CM_OVER; /* landing may fail, and would cut again */
    if (from->id.qp && fake_random(2)) {
        fake_land_all((fake_qp *)from->id.qp);
    }
    fall(from);
    if (tell_from) {
        fake_event_for(from, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0, 0);
    }
    if (peer && tell_peer) {
        fall(peer);
        fake_event_for(peer, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0, 0);
    }
    else if (peer) {
        peer->peer = NULL; /* goes on sending into the void */
    }
    fake_work();
}

int rdma_disconnect(struct rdma_cm_id *rid)
{
    fake_id *id = (fake_id *)rid;
    int connected;

    if (tripped("rdma_disconnect")) {
        return -1;
    }
    fake_lock();
    connected = id->state == CM_CONNECTED;
    fake_cut(id, 1, 1);
    fake_unlock();
    return connected ? 0 : fail(EINVAL);
}
