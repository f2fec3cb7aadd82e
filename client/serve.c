/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "endpoint_private.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS    250 /* how often deadlines are looked at */
#define ROUND      64  /* events of a channel before others get their turn */
#define HELLO_WAIT ((rdma_conn_time)10 * 1000000)
#define SILENCE    ((rdma_conn_time)5 * 1000000)  /* then a PING */
#define PONG_WAIT  ((rdma_conn_time)15 * 1000000) /* at most */

/* ---- what a connection tells ------------------------------------------- */

static int on_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    rdmahttp_peer *peer = baton;
    rdmahttp_endpoint *ep = peer->ep;
    rdmahttp_transfer *t;
    int rc = 0;

    (void)c;
    rdmahttp_endpoint_lock(ep);
    if (m->id >= ep->next_id) {
        rc = -1; /* never issued */
    }
    for (t = ep->transfers; t && rc == 0; t = t->next) {
        if (t->id == m->id) {
            rc = rdmahttp_transfer_message(t, peer, m);
            rdmahttp_endpoint_moved(t);
            break;
        }
    }
    rdmahttp_endpoint_unlock(ep);
    return rc;
}

static void on_opened(void *baton, rdma_conn *c)
{
    rdmahttp_peer *peer = baton;

    (void)c;
    rdmahttp_endpoint_lock(peer->ep);
    peer->open = 1;
    rdmahttp_endpoint_unlock(peer->ep);
}

static void on_closed(void *baton, rdma_conn *c)
{
    rdmahttp_peer *peer = baton;
    int wrong = rdma_conn_cause_get(c) == RDMA_CONN_CAUSE_PROTOCOL;
    rdmahttp_transfer *t;

    rdmahttp_log(peer->ep->conf, RDMAHTTP_LOG_INFO,
                 "RDMA connection %u ended: %s", peer->number,
                 rdma_conn_cause_name(rdma_conn_cause_get(c)));
    rdmahttp_endpoint_lock(peer->ep);
    peer->closed = 1;
    for (t = peer->ep->transfers; t; t = t->next) {
        if (t->peer == peer) {
            t->wrong |= wrong;
            rdmahttp_transfer_lost(t);
            rdmahttp_endpoint_moved(t);
        }
    }
    rdmahttp_endpoint_unlock(peer->ep);
}

static void on_log(void *baton, rdma_conn *c, int level, const char *line)
{
    const rdmahttp_peer *peer = baton;

    (void)c;
    if (level <= RDMAHTTP_LOG_DEBUG) {
        rdmahttp_log(peer->ep->conf, level, "%s", line);
    }
}

static const rdma_conn_handler handler = {.message = on_message,
                                          .opened = on_opened,
                                          .closed = on_closed,
                                          .log = on_log};

static void read_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdmahttp_read *r = (rdmahttp_read *)wr; /* wr is its first member */
    rdmahttp_transfer *t = r->t;
    rdmahttp_endpoint *ep = t->ep;

    (void)c;
    rdmahttp_endpoint_lock(ep);
    if (t->peer) {
        t->peer->stalled = 0;
    }
    rdmahttp_transfer_read_done(t, r, ok);
    rdmahttp_endpoint_moved(t);
    rdmahttp_endpoint_unlock(ep);
}

static void word_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdmahttp_word *word = (rdmahttp_word *)wr; /* wr is its first member */
    rdmahttp_endpoint *ep = word->t->ep;

    (void)c;
    (void)ok;
    rdmahttp_endpoint_lock(ep);
    word->busy = 0;
    rdmahttp_endpoint_unlock(ep);
}

/* ---- accepting --------------------------------------------------------- */

static struct ibv_pd *domain(void *baton, struct rdma_cm_id *id)
{
    const rdmahttp_peer *peer = baton;

    return id->verbs == peer->ep->pd->context ? peer->ep->pd : NULL;
}

static struct ibv_comp_channel *channel(void *baton, struct rdma_cm_id *id)
{
    const rdmahttp_peer *peer = baton;

    (void)id;
    return peer->ep->channel;
}

typedef struct request {
    struct rdma_cm_id *id;
    uint8_t data[256];
    size_t n;
    unsigned reads; /* READs that the server can answer at a time */
} request;

/* No more connections are let in. */
static int is_crowded(const rdmahttp_endpoint *ep)
{
    const rdmahttp_peer *p;
    unsigned n = 0;

    for (p = ep->peers; p; p = p->next) { /* this thread alone changes it */
        n++;
    }
    return n >= ep->conf->connections;
}

/* In the order of PROTOCOL.md, 5.4. */
static rdma_hdr_reject judge(rdmahttp_endpoint *ep, const request *rq,
                             rdma_hdr_connect *req)
{
    rdma_hdr_reject why = rdma_hdr_get_connect(rq->data, rq->n, req);
    const struct sockaddr *from = rdma_get_peer_addr(rq->id);
    unsigned i;
    int known = ep->conf->any_peer;

    if (why != RDMA_HDR_REJECT_NONE) {
        return why;
    }
    if ((req->kind == RDMA_HDR_READ
         && (rq->reads == 0 || ep->conf->mode == RDMAHTTP_WRITE))
        || (req->kind == RDMA_HDR_WRITE && ep->conf->mode == RDMAHTTP_READ)) {
        return RDMA_HDR_REJECT_KIND;
    }
    if (!rdma_hdr_token_equal(req->token, ep->token)) {
        return RDMA_HDR_REJECT_TOKEN;
    }
    rdmahttp_endpoint_lock(ep);
    for (i = 0; i < ep->nexpected && !known; i++) {
        known = rdmahttp_endpoint_same(
            from, (const struct sockaddr *)&ep->expected[i]);
    }
    rdmahttp_endpoint_unlock(ep);
    if (!known) {
        return RDMA_HDR_REJECT_ADDRESS;
    }
    return is_crowded(ep) || ep->removed || ep->next_number == 0
               ? RDMA_HDR_REJECT_BUSY
               : RDMA_HDR_REJECT_NONE;
}

/* The peer has no QP any more: its transfers are told, and no head can name it
 * from now on, in one step. Only its memory is left. */
static void forget(void *arg)
{
    rdmahttp_peer *peer = arg, **link = &peer->ep->peers;
    rdmahttp_transfer *t;

    rdmahttp_endpoint_lock(peer->ep);
    for (t = peer->ep->transfers; t; t = t->next) {
        if (t->peer == peer) {
            rdmahttp_transfer_qp_gone(t);
            rdmahttp_endpoint_moved(t);
        }
    }
    while (*link != peer) {
        link = &(*link)->next;
    }
    *link = peer->next;
    rdmahttp_endpoint_unlock(peer->ep);
}

static rdma_hdr_reject admit(rdmahttp_endpoint *ep, const request *rq,
                             const rdma_hdr_connect *req, const char *from)
{
    rdma_conn_conf conf = {.kind = req->kind,
                           .mem = ep->mem,
                           .domain = domain,
                           .channel = channel,
                           .handler = &handler};
    rdma_conn_failure why;
    rdmahttp_peer *peer = calloc(1, sizeof(*peer));

    if (!peer) {
        return RDMA_HDR_REJECT_BUSY;
    }
    conf.baton = peer;
    conf.reads = rq->reads < RDMA_CONN_READS ? rq->reads : RDMA_CONN_READS;
    peer->ep = ep;
    peer->kind = req->kind;
    peer->opened = rdma_conn_now();
    /* In the list first: a head that names it may overtake rdma_accept(). */
    rdmahttp_endpoint_lock(ep);
    peer->number = ep->next_number++;
    peer->next = ep->peers;
    ep->peers = peer;
    rdmahttp_endpoint_unlock(ep);
    if (rdma_conn_accept(&conf, rq->id, req, peer->number, &peer->conn, &why)) {
        rdmahttp_log(ep->conf, RDMAHTTP_LOG_WARNING,
                     "RDMA connection from %s: %s: %s", from, why.step,
                     strerror(why.error));
        forget(peer);
        free(peer);
        return RDMA_HDR_REJECT_BUSY;
    }
    rdmahttp_log(ep->conf, RDMAHTTP_LOG_INFO,
                 "accepted RDMA connection %u, kind %s, from %s", peer->number,
                 rdma_hdr_kind_name(peer->kind), from);
    return RDMA_HDR_REJECT_NONE;
}

static void on_request(rdmahttp_endpoint *ep, const request *rq)
{
    char from[INET6_ADDRSTRLEN];
    uint8_t reason[RDMA_HDR_REJECT_LEN];
    rdma_hdr_connect req;
    rdma_hdr_reject why = judge(ep, rq, &req);

    rdmahttp_endpoint_text(rdma_get_peer_addr(rq->id), from, sizeof(from));
    if (why == RDMA_HDR_REJECT_NONE) {
        why = admit(ep, rq, &req, from);
    }
    if (why != RDMA_HDR_REJECT_NONE) {
        rdmahttp_log(ep->conf, RDMAHTTP_LOG_INFO,
                     "rejected an RDMA connection from %s: %s", from,
                     rdma_hdr_reject_name(why));
        rdma_hdr_put_reject(why, reason);
        rdma_reject(rq->id, reason, sizeof(reason));
        rdma_destroy_id(rq->id);
    }
}

/* The device waits for us to let go of it. */
static void on_removal(rdmahttp_endpoint *ep)
{
    rdmahttp_log(ep->conf, RDMAHTTP_LOG_INFO,
                 "the RDMA device of %s is leaving", ep->address);
    rdmahttp_endpoint_lock(ep);
    ep->removed = 1;
    rdmahttp_endpoint_unlock(ep);
}

/* One event of the CM channel, if there is one. Returns 0, or -1: none. */
static int cm_event(rdmahttp_endpoint *ep)
{
    struct rdma_cm_event *ev;
    enum rdma_cm_event_type type;
    request rq;
    rdmahttp_peer *p;
    int status;

    if (rdma_get_cm_event(ep->events, &ev)) {
        return -1;
    }
    type = ev->event;
    status = ev->status;
    rq.id = ev->id;
    rq.n = 0;
    rq.reads = ev->param.conn.initiator_depth;
    if (type == RDMA_CM_EVENT_CONNECT_REQUEST && ev->param.conn.private_data) {
        rq.n = ev->param.conn.private_data_len;
        memcpy(rq.data, ev->param.conn.private_data, rq.n);
    }
    rdma_ack_cm_event(ev); /* before anything that may destroy the id */
    if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        on_request(ep, &rq);
        return 0;
    }
    if (type == RDMA_CM_EVENT_DEVICE_REMOVAL && rq.id == ep->listener) {
        on_removal(ep);
        return 0;
    }
    for (p = ep->peers; p; p = p->next) { /* this thread alone changes it */
        if (p->conn && rdma_conn_id(p->conn) == rq.id) {
            rdma_conn_event(p->conn, type, status);
            break;
        }
    }
    return 0;
}

/* ---- what is due ------------------------------------------------------- */

static void end_peer(rdmahttp_peer *peer)
{
    rdma_conn_destroy(peer->conn, forget, peer);
    free(peer);
}

/* Say one word that is due. 1: said, look again; 0: none is. */
static int speak(rdmahttp_endpoint *ep)
{
    rdmahttp_transfer *t;
    rdma_conn *c = NULL;
    rdma_hdr_msg m;
    int last = 0;

    rdmahttp_endpoint_lock(ep);
    for (t = ep->transfers; t; t = t->next) {
        if (rdmahttp_transfer_next_word(t, &m, &last)) {
            c = t->peer->conn;
            t->word.busy = last;
            t->word.wr.done = word_done;
            break;
        }
    }
    rdmahttp_endpoint_unlock(ep);
    if (!c) {
        return 0;
    }
    rdma_conn_lock(c);
    if (rdma_conn_say(c, &m, last ? &t->word.wr : NULL) && last) {
        word_done(&t->word.wr, c, 0); /* it is closed, or is being closed */
    }
    rdma_conn_unlock(c);
    return 1;
}

/* Post one READ that is due. 1: posted, look again; 0: none is. */
static int read_more(rdmahttp_endpoint *ep)
{
    rdmahttp_transfer *t;
    rdmahttp_read *r = NULL;
    rdma_conn *c = NULL;
    uint64_t at = 0, to = 0;
    uint32_t stag = 0, lkey = 0;
    char *base = NULL;
    int rc;

    rdmahttp_endpoint_lock(ep);
    for (t = ep->transfers; t; t = t->next) {
        r = rdmahttp_transfer_next_read(t, &at, &to, &stag);
        if (r) {
            r->wr.done = read_done;
            c = t->peer->conn;
            base = t->base;
            lkey = ep->window[t->window].region.mr->lkey;
            break;
        }
    }
    rdmahttp_endpoint_unlock(ep);
    if (!r) {
        return 0;
    }
    rdma_conn_lock(c);
    rc = rdma_conn_read(c, &r->wr, base + at, lkey, r->len, to, stag);
    rdma_conn_unlock(c);
    if (rc) {
        rdmahttp_endpoint_lock(ep);
        if (t->peer) {
            t->peer->stalled = 1;
        }
        rdmahttp_transfer_read_undo(t, r);
        rdmahttp_endpoint_unlock(ep);
    }
    return 1;
}

/* Give windows back, forget transfers that are over, look at deadlines. Returns
 * a connection that has to go, or NULL. */
static rdmahttp_peer *sweep(rdmahttp_endpoint *ep)
{
    rdmahttp_transfer **link = &ep->transfers;
    rdma_conn_time now = rdma_conn_now();
    rdmahttp_peer *p;

    rdmahttp_endpoint_lock(ep);
    while (*link) {
        rdmahttp_transfer *t = *link;

        if (t->state == RDMAHTTP_WAIT_LAST && t->peer && now >= t->deadline) {
            t->peer->doomed = 1;
        }
        if (rdmahttp_transfer_over(t)) {
            if (t->has_window) {
                ep->window[t->window].taken = 0;
            }
            *link = t->next;
            free(t);
        }
        else {
            link = &t->next;
        }
    }
    for (p = ep->peers; p; p = p->next) {
        if (p->closed || p->doomed || ep->removed
            || (!p->open && now - p->opened >= HELLO_WAIT)) {
            break;
        }
    }
    rdmahttp_endpoint_unlock(ep);
    return p;
}

/* Does the body of some id have to come by it? */
static int is_awaited(rdmahttp_endpoint *ep, const rdmahttp_peer *peer)
{
    const rdmahttp_transfer *t;
    int any = 0;

    rdmahttp_endpoint_lock(ep);
    for (t = ep->transfers; t && !any; t = t->next) {
        any = t->peer == peer && t->state == RDMAHTTP_TAKING && t->stream
              && (!t->fin || t->reads > 0);
    }
    rdmahttp_endpoint_unlock(ep);
    return any;
}

/* A source may be silent for as long as it likes; a connection may not, if a
 * body has to come by it, or others are in want of its place. */
static void probe(rdmahttp_endpoint *ep, rdmahttp_peer *peer, int crowded,
                  rdma_conn_time now)
{
    rdma_conn_time wait = (rdma_conn_time)ep->conf->timeout_ms * 1000;
    rdma_conn_time heard;

    if (!crowded && !is_awaited(ep, peer)) {
        peer->asked = 0;
        return;
    }
    rdma_conn_lock(peer->conn);
    heard = rdma_conn_heard(peer->conn);
    if (heard >= peer->asked) {
        peer->asked = 0;
    }
    if (peer->asked
        && now - peer->asked >= (wait < PONG_WAIT ? wait : PONG_WAIT)) {
        rdma_conn_close(peer->conn, RDMA_CONN_CAUSE_TIMEOUT);
    }
    else if (!peer->asked && now - heard >= SILENCE) {
        peer->asked = now;
        rdma_conn_ping(peer->conn);
    }
    rdma_conn_unlock(peer->conn);
}

static void probe_all(rdmahttp_endpoint *ep)
{
    rdma_conn_time now = rdma_conn_now();
    rdmahttp_peer *p;
    int crowded;

    if (now - ep->probed < TICK_MS * 1000) {
        return;
    }
    ep->probed = now;
    crowded = is_crowded(ep);
    for (p = ep->peers; p; p = p->next) { /* this thread alone changes it */
        if (p->open && !p->closed) {
            probe(ep, p, crowded, now);
        }
    }
}

static void chores(rdmahttp_endpoint *ep)
{
    rdmahttp_peer *p;

    while (speak(ep) || read_more(ep)) {
    }
    probe_all(ep);
    while ((p = sweep(ep)) != NULL) {
        end_peer(p);
    }
}

static int has_deadlines(rdmahttp_endpoint *ep)
{
    const rdmahttp_peer *p;
    int any;

    rdmahttp_endpoint_lock(ep);
    any = ep->transfers != NULL || is_crowded(ep);
    for (p = ep->peers; p; p = p->next) {
        any |= !p->open;
    }
    rdmahttp_endpoint_unlock(ep);
    return any;
}

static int stopping(rdmahttp_endpoint *ep)
{
    int stop;

    rdmahttp_endpoint_lock(ep);
    stop = ep->stop;
    rdmahttp_endpoint_unlock(ep);
    return stop;
}

/* Once the device is leaving: is it let go of? */
static int has_let_go(rdmahttp_endpoint *ep)
{
    const rdmahttp_transfer *t;
    int used;

    rdmahttp_endpoint_lock(ep);
    used = !ep->removed || ep->peers != NULL;
    for (t = ep->transfers; t && !used; t = t->next) {
        used = !t->released; /* the application looks at its window */
    }
    rdmahttp_endpoint_unlock(ep);
    if (!used) {
        rdmahttp_endpoint_let_go(ep);
    }
    return !used;
}

void *rdmahttp_serve(void *arg)
{
    rdmahttp_endpoint *ep = arg;
    struct pollfd fds[3] = {{ep->events->fd, POLLIN, 0},
                            {ep->channel->fd, POLLIN, 0},
                            {ep->wake_fd, POLLIN, 0}};
    struct ibv_cq *cq;
    void *c;
    uint64_t count;
    int i;

    while (!stopping(ep) && !has_let_go(ep)) {
        poll(fds, 3, has_deadlines(ep) ? TICK_MS : -1);
        if (fds[2].revents && read(ep->wake_fd, &count, sizeof(count)) < 0) {
            continue; /* a wake that has been read already */
        }
        for (i = 0; i < ROUND && cm_event(ep) == 0; i++) {
        }
        for (i = 0; i < ROUND && ibv_get_cq_event(ep->channel, &cq, &c) == 0;
             i++) {
            rdma_conn_receive(c);
            ibv_ack_cq_events(cq, 1); /* destroying it would wait for this */
        }
        chores(ep);
    }
    return NULL;
}

void rdmahttp_serve_end(rdmahttp_endpoint *ep)
{
    rdmahttp_peer *p, *later;

    rdmahttp_endpoint_deaf(ep); /* then the events have an end */
    while (cm_event(ep) == 0) { /* no id may be left unseen */
    }
    for (p = ep->peers; p; p = later) {
        later = p->next;
        end_peer(p);
    }
}
