/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "kit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../rdma_conn_private.h"

#define PIECE  ((size_t)100000) /* bytes of a READ */
#define PIECES 4
#define RAW    128 /* bytes of a raw SEND, at most */
#define RAWS   64  /* of them in flight */

static void wake(const kit_client *c)
{
    uint64_t one = 1;

    ck_assert(write(c->wake_fd, &one, sizeof(one)) == sizeof(one));
}

/* ---- what connections tell it (their lock is held) --------------------- */

kit_heard *kit_entry(kit_client *c, uint32_t id)
{
    unsigned i = 0;

    while (i < c->nheard && c->heard[i].id != id) {
        i++;
    }
    if (i == c->nheard) {
        ck_assert_uint_lt(i, KIT_BODIES);
        c->heard[c->nheard++].id = id;
    }
    return &c->heard[i];
}

static int client_message(void *baton, rdma_conn *conn, const rdma_hdr_msg *m)
{
    kit_conn *k = baton;
    kit_client *c = k->client;
    rdma_hdr_msg answer = {.id = m->id};
    kit_heard *h;
    int mute;

    pthread_mutex_lock(&c->lock);
    h = kit_entry(c, m->id);
    mute = c->mute;
    if (m->type == RDMA_HDR_WRITTEN) {
        h->written = m->bytes;
        h->fin = (m->flags & RDMA_HDR_FIN) != 0;
        if (h->fin) {
            answer.type = RDMA_HDR_CONSUMED;
            answer.flags = RDMA_HDR_FIN;
            answer.bytes = m->bytes;
        }
    }
    else if (m->type == RDMA_HDR_OFFER) {
        kit_lend(c, m->id, m->bytes, m->stag, m->to, m->len);
        h->fin = (m->flags & RDMA_HDR_FIN) != 0;
        h->offers[h->noffers++ % KIT_OFFERS] = (kit_offer){
            m->bytes, m->to, m->stag, m->len, h->fin};
    }
    else if (m->type == RDMA_HDR_ABORT) {
        h->aborted++;
        h->reason = m->len;
        if (m->len != RDMA_HDR_ABORT_ANSWER) {
            answer.type = RDMA_HDR_ABORT;
            answer.len = RDMA_HDR_ABORT_ANSWER;
        }
    }
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (!mute && answer.type) {
        kit_returned(c, m->id, 0, 1);
        rdma_conn_say(conn, &answer, NULL);
    }
    return 0;
}

static void client_opened(void *baton, rdma_conn *conn)
{
    kit_conn *k = baton;

    pthread_mutex_lock(&k->client->lock);
    k->conn = conn;
    k->open = 1;
    k->client->nopen++;
    pthread_cond_broadcast(&k->client->changed);
    pthread_mutex_unlock(&k->client->lock);
}

static void client_closed(void *baton, rdma_conn *conn)
{
    kit_conn *k = baton;

    pthread_mutex_lock(&k->client->lock);
    k->closed = 1;
    k->cause = rdma_conn_cause_get(conn);
    k->client->nopen -= k->open != 0;
    pthread_cond_broadcast(&k->client->changed);
    pthread_mutex_unlock(&k->client->lock);
}

static const rdma_conn_handler handler = {.message = client_message,
                                          .opened = client_opened,
                                          .closed = client_closed};

static struct ibv_pd *client_domain(void *baton, struct rdma_cm_id *id)
{
    (void)id;
    return ((kit_conn *)baton)->client->pd;
}

static struct ibv_comp_channel *client_channel(void *baton,
                                               struct rdma_cm_id *id)
{
    (void)id;
    return ((kit_conn *)baton)->client->channel;
}

/* ---- its thread -------------------------------------------------------- */

static void reject(struct rdma_cm_id *id, rdma_hdr_reject why)
{
    uint8_t data[RDMA_HDR_REJECT_LEN];

    rdma_hdr_put_reject(why, data);
    rdma_reject(id, data, sizeof(data));
    rdma_destroy_id(id);
}

static void accept_request(kit_client *c, struct rdma_cm_id *id,
                           const rdma_hdr_connect *req, kit_manner manner)
{
    rdma_conn_conf conf = {.kind = req->kind,
                           .depth = c->depth,
                           .mem = c->mem,
                           .domain = client_domain,
                           .channel = client_channel,
                           .reads = PIECES,
                           .handler = &handler};
    rdma_conn_failure why;
    rdma_conn *conn;
    kit_conn *k;

    pthread_mutex_lock(&c->lock);
    ck_assert_uint_lt(c->nconns, KIT_CONNS);
    k = &c->conns[c->nconns];
    k->client = c;
    k->number = c->nconns + 1;
    pthread_mutex_unlock(&c->lock);
    conf.baton = k;
    if (rdma_conn_accept(&conf, id, req,
                         manner == KIT_BAD_ACCEPT ? 0 : k->number, &conn,
                         &why)) {
        reject(id, RDMA_HDR_REJECT_BUSY);
        return;
    }
    pthread_mutex_lock(&c->lock);
    k->conn = conn;
    c->nconns++;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (manner == KIT_SPEAK_FIRST) {
        rdma_hdr_msg ping = {.type = RDMA_HDR_PING};
        uint8_t bytes[RDMA_HDR_MSG_LEN];

        rdma_hdr_put_msg(&ping, bytes);
        kit_send_raw(k, bytes, sizeof(bytes));
    }
    if (manner == KIT_LEAVE) {
        kit_disconnect(k);
    }
}

static void judge(kit_client *c, struct rdma_cm_id *id,
                  const rdma_hdr_connect *req)
{
    kit_manner manner;

    pthread_mutex_lock(&c->lock);
    manner = c->manner;
    if (manner == KIT_HOLD) {
        ck_assert_uint_lt(c->nheld, 8);
        c->held[c->nheld] = id;
        c->held_req[c->nheld++] = *req;
    }
    pthread_mutex_unlock(&c->lock);
    if (manner == KIT_REJECT) {
        reject(id, RDMA_HDR_REJECT_BUSY);
    }
    else if (manner != KIT_HOLD) {
        accept_request(c, id, req, manner);
    }
}

static void take_event(kit_client *c, struct rdma_cm_event *event)
{
    struct rdma_cm_id *id = event->id;
    enum rdma_cm_event_type type = event->event;
    int status = event->status;
    rdma_hdr_connect req = {0};
    rdma_hdr_reject why = RDMA_HDR_REJECT_NONE;
    unsigned reads = event->param.conn.initiator_depth;

    if (type != RDMA_CM_EVENT_CONNECT_REQUEST) {
        rdma_ack_cm_event(event);
        if (id->context != c) {
            rdma_conn_event(id->context, type, status);
        }
        return;
    }
    why = rdma_hdr_get_connect(event->param.conn.private_data,
                               event->param.conn.private_data_len, &req);
    rdma_ack_cm_event(event);
    pthread_mutex_lock(&c->lock);
    c->nreqs++;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (!why && !rdma_hdr_token_equal(req.token, c->token)) {
        why = RDMA_HDR_REJECT_TOKEN;
    }
    if (!why && req.kind == RDMA_HDR_READ && reads < PIECES) {
        why = RDMA_HDR_REJECT_KIND;
    }
    if (why) {
        reject(id, why);
    }
    else {
        judge(c, id, &req);
    }
}

static void judge_held(kit_client *c)
{
    struct rdma_cm_id *ids[8];
    rdma_hdr_connect reqs[8];
    unsigned i;
    unsigned n = 0;

    pthread_mutex_lock(&c->lock);
    if (c->manner != KIT_HOLD || c->quit) {
        n = c->nheld;
        memcpy(ids, c->held, sizeof(ids));
        memcpy(reqs, c->held_req, sizeof(reqs));
        c->nheld = 0;
    }
    pthread_mutex_unlock(&c->lock);
    for (i = 0; i < n; i++) {
        judge(c, ids[i], &reqs[i]);
    }
}

static void *client_main(void *arg)
{
    kit_client *c = arg;
    struct pollfd fds[3] = {{c->events->fd, POLLIN, 0},
                            {c->channel->fd, POLLIN, 0},
                            {c->wake_fd, POLLIN, 0}};
    int quit = 0;

    fake_spare_this_thread(1);
    while (!quit) {
        struct rdma_cm_event *event;
        struct ibv_cq *cq;
        void *conn;
        uint64_t n;

        poll(fds, 3, -1);
        pthread_mutex_lock(&c->gate);
        if (fds[2].revents && read(c->wake_fd, &n, sizeof(n)) < 0) {
            n = 0;
        }
        judge_held(c);
        /* Messages first: a DISCONNECTED would take them another way. */
        while (ibv_get_cq_event(c->channel, &cq, &conn) == 0) {
            rdma_conn_receive(conn);
            ibv_ack_cq_events(cq, 1);
        }
        while (rdma_get_cm_event(c->events, &event) == 0) {
            take_event(c, event);
        }
        pthread_mutex_lock(&c->lock);
        quit = c->quit;
        pthread_mutex_unlock(&c->lock);
        pthread_mutex_unlock(&c->gate);
    }
    return NULL;
}

/* ---- making and ending ------------------------------------------------- */

kit_client *kit_client_make(const char *addr)
{
    kit_client *c = calloc(1, sizeof(*c));
    static uint8_t next = 1;
    pthread_condattr_t attr;

    ck_assert_ptr_nonnull(c);
    fake_spare_this_thread(1);
    pthread_mutex_init(&c->gate, NULL);
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &attr);
    pthread_condattr_destroy(&attr);
    memset(c->token, next++, sizeof(c->token));
    c->addr.sin_family = AF_INET;
    ck_assert_int_eq(inet_pton(AF_INET, addr, &c->addr.sin_addr), 1);
    c->mem = rdma_mem_create((size_t)1 << 30);
    c->events = rdma_create_event_channel();
    c->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ck_assert_int_eq(fcntl(c->events->fd, F_SETFL, O_NONBLOCK), 0);
    ck_assert_int_eq(rdma_create_id(c->events, &c->listener, c, RDMA_PS_TCP),
                     0);
    ck_assert_int_eq(rdma_bind_addr(c->listener, (struct sockaddr *)&c->addr),
                     0);
    ck_assert_int_eq(rdma_listen(c->listener, 8), 0);
    c->addr.sin_port = rdma_get_src_port(c->listener);
    c->pd = ibv_alloc_pd(c->listener->verbs);
    c->channel = ibv_create_comp_channel(c->listener->verbs);
    ck_assert_int_eq(fcntl(c->channel->fd, F_SETFL, O_NONBLOCK), 0);
    ck_assert_int_eq(
        rdma_mem_map(c->mem, c->pd, KIT_WINDOW,
                     IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
                     &c->window),
        0);
    ck_assert_int_eq(rdma_mem_map(c->mem, c->pd, KIT_WINDOW,
                                  IBV_ACCESS_LOCAL_WRITE, &c->sink),
                     0);
    ck_assert_int_eq(rdma_mem_map(c->mem, c->pd, RAW * RAWS, 0, &c->page), 0);
    ck_assert_int_eq(pthread_create(&c->thread, NULL, client_main, c), 0);
    return c;
}

void kit_client_free(kit_client *c)
{
    unsigned i;
    rdma_mem_usage usage;

    pthread_mutex_lock(&c->lock);
    c->quit = 1;
    c->manner = KIT_REJECT;
    pthread_mutex_unlock(&c->lock);
    wake(c);
    pthread_join(c->thread, NULL);
    judge_held(c);
    for (i = 0; i < c->nconns; i++) {
        rdma_conn_destroy(c->conns[i].conn, NULL, NULL);
    }
    rdma_destroy_id(c->listener);
    rdma_mem_unmap(c->mem, &c->window);
    rdma_mem_unmap(c->mem, &c->sink);
    rdma_mem_unmap(c->mem, &c->page);
    ibv_dealloc_pd(c->pd);
    ibv_destroy_comp_channel(c->channel);
    rdma_destroy_event_channel(c->events);
    close(c->wake_fd);
    rdma_mem_usage_get(c->mem, &usage);
    ck_assert_uint_eq(usage.used, 0);
    rdma_mem_destroy(c->mem);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->gate);
    free(c);
}

uint16_t kit_client_port(const kit_client *c)
{
    return ntohs(c->addr.sin_port);
}

void kit_client_manner(kit_client *c, kit_manner manner)
{
    pthread_mutex_lock(&c->lock);
    c->manner = manner;
    pthread_mutex_unlock(&c->lock);
    wake(c);
}

void kit_client_mute(kit_client *c, int mute)
{
    pthread_mutex_lock(&c->lock);
    c->mute = mute;
    pthread_mutex_unlock(&c->lock);
}

void kit_client_pause(kit_client *c, int on)
{
    if (on) {
        pthread_mutex_lock(&c->gate);
    }
    else {
        pthread_mutex_unlock(&c->gate);
    }
}

/* ---- waiting for it ---------------------------------------------------- */

/* [kit locked] Sleep for a change. */
static void sleep_on(kit_client *c, rdma_conn_time until, const char *what)
{
    struct timespec ts = {(time_t)(until / 1000000),
                          (long)(until % 1000000) * 1000};

    ck_assert_msg(pthread_cond_timedwait(&c->changed, &c->lock, &ts) == 0,
                  "the client waits in vain for %s", what);
}

void kit_sleep_on(kit_client *c, const char *what)
{
    sleep_on(c, rdma_conn_now() + KIT_PATIENT, what);
}

kit_conn *kit_client_conn(kit_client *c, unsigned n)
{
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;

    pthread_mutex_lock(&c->lock);
    /* One that is lost at once may be over without having been open here. */
    while (n >= c->nconns || !(c->conns[n].open || c->conns[n].closed)) {
        sleep_on(c, until, "a connection");
    }
    pthread_mutex_unlock(&c->lock);
    return &c->conns[n];
}

kit_heard kit_heard_of(kit_client *c, uint32_t id)
{
    kit_heard h;

    pthread_mutex_lock(&c->lock);
    h = *kit_entry(c, id);
    pthread_mutex_unlock(&c->lock);
    return h;
}

kit_heard kit_await_fin(kit_client *c, uint32_t id)
{
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;
    kit_heard h;

    pthread_mutex_lock(&c->lock);
    while (!kit_entry(c, id)->fin) {
        sleep_on(c, until, "WRITTEN(fin)");
    }
    h = *kit_entry(c, id);
    pthread_mutex_unlock(&c->lock);
    return h;
}

kit_heard kit_await_abort(kit_client *c, uint32_t id)
{
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;
    kit_heard h;

    pthread_mutex_lock(&c->lock);
    while (!kit_entry(c, id)->aborted) {
        sleep_on(c, until, "ABORT");
    }
    h = *kit_entry(c, id);
    pthread_mutex_unlock(&c->lock);
    return h;
}

void kit_await_closed(kit_client *c, unsigned n)
{
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;

    pthread_mutex_lock(&c->lock);
    while (n >= c->nconns || !c->conns[n].closed) {
        sleep_on(c, until, "the end of a connection");
    }
    pthread_mutex_unlock(&c->lock);
}

void kit_await_requests(kit_client *c, unsigned n)
{
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;

    pthread_mutex_lock(&c->lock);
    while (c->nreqs < n) {
        sleep_on(c, until, "a connect request");
    }
    pthread_mutex_unlock(&c->lock);
}

void kit_await_stuck(kit_client *c, unsigned n, unsigned stuck)
{
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;

    while (fake_stuck(rdma_conn_id(kit_client_conn(c, n)->conn)) < stuck) {
        ck_assert_msg(rdma_conn_now() < until, "the server is not stuck");
        usleep(1000);
    }
}

/* ---- what it does ------------------------------------------------------ */

void kit_say(kit_conn *k, rdma_hdr_type type, uint32_t id, uint64_t bytes,
             unsigned flags)
{
    rdma_hdr_msg m = {.type = (uint8_t)type,
                      .flags = (uint8_t)flags,
                      .id = id,
                      .bytes = bytes,
                      .len = type == RDMA_HDR_OFFER ? (uint32_t)bytes : 0};

    if (type == RDMA_HDR_CONSUMED || type == RDMA_HDR_ABORT) {
        kit_returned(k->client, id, bytes,
                     type == RDMA_HDR_ABORT || (flags & RDMA_HDR_FIN));
    }
    rdma_conn_lock(k->conn);
    rdma_conn_say(k->conn, &m, NULL);
    rdma_conn_unlock(k->conn);
}

void kit_send_raw(kit_conn *k, const void *bytes, size_t len)
{
    const rdma_mem_region *page = &k->client->page;
    char *at = page->base + k->client->nraw++ % RAWS * RAW;

    (void)common_send_raw(k->conn, at, page->mr->lkey, bytes, len);
}

void kit_disconnect(kit_conn *k)
{
    rdma_conn_lock(k->conn);
    rdma_conn_close(k->conn, RDMA_CONN_CAUSE_LOCAL);
    rdma_conn_unlock(k->conn);
}

typedef struct piece {
    rdma_conn_wr wr;
    struct reading *reading;
    int busy;
} piece;

/* Lives until its last READ is done, which may be after kit_read(). */
typedef struct reading {
    piece pieces[PIECES];
    int busy, failed, left;
} reading;

static void piece_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    piece *p = (piece *)wr;
    reading *r = p->reading;

    (void)c;
    p->busy = 0;
    r->busy--;
    r->failed |= !ok;
    if (r->left && r->busy == 0) {
        free(r);
    }
}

static int one_free(void *arg)
{
    return ((reading *)arg)->busy < PIECES;
}

static int all_free(void *arg)
{
    return ((reading *)arg)->busy == 0;
}

/* [locked] */
static int post_piece(rdma_conn *c, reading *r, char *local, uint32_t lkey,
                      uint32_t len, const rdma_hdr_response *head,
                      uint64_t done)
{
    piece *p = r->pieces;
    int rc;

    while (p->busy) {
        p++;
    }
    p->reading = r;
    p->wr.done = piece_done;
    rc = rdma_conn_read(c, &p->wr, local, lkey, len, head->to + done,
                        head->stag);
    p->busy = rc == 0;
    r->busy += p->busy;
    return rc;
}

int kit_read(kit_conn *k, const rdma_hdr_response *head, size_t at)
{
    rdma_conn *c = k->conn;
    const rdma_mem_region *sink = &k->client->sink;
    reading *r = calloc(1, sizeof(*r));
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;
    uint64_t done = 0;
    int rc = 0;

    ck_assert_ptr_nonnull(r);
    rdma_conn_lock(c);
    while (rc == 0 && done < head->len) {
        size_t n =
            head->len - done < PIECE ? (size_t)(head->len - done) : PIECE;

        rc = rdma_conn_wait(c, one_free, r, until);
        if (rc == 0) {
            rc = post_piece(c, r, sink->base + at + done, sink->mr->lkey,
                            (uint32_t)n, head, done);
        }
        done += n;
    }
    if (rdma_conn_wait(c, all_free, r, until)) {
        rc = -1;
    }
    rc = rc || r->failed ? -1 : 0;
    r->left = r->busy;
    if (!r->busy) {
        free(r);
    }
    rdma_conn_unlock(c);
    return rc;
}
