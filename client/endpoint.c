/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#define BACKLOG      64
#define PORT_TRIES   64 /* of any port: siw's may be taken by plain TCP */
#define ADDRESSES    8  /* of servers that we have had HTTP connections to */
#define WINDOW_LEAST ((size_t)64 * 1024)
#define CONN_MEMORY  ((size_t)64 * 1024) /* registered per connection, most */
#define TICK_MS      250 /* how often deadlines are looked at */
#define HELLO_WAIT   ((rdma_conn_time)10 * 1000000)
#define LINGER       ((rdma_conn_time)1 * 1000000)

typedef struct window {
    rdma_mem_region region;
    int taken;
} window;

struct rdmahttp_endpoint {
    const rdmahttp_conf *conf; /* constant from here on */
    char address[INET6_ADDRSTRLEN];
    uint16_t port;
    uint8_t token[RDMA_HDR_TOKEN_LEN];
    size_t window_len;
    unsigned windows;
    rdma_mem *mem;
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    int wake_fd;
    pthread_t thread;
    int has_thread;

    pthread_mutex_t lock; /* guards what follows, and all transfers */
    pthread_cond_t cond;  /* a transfer has moved */
    int stop;
    uint32_t next_id;
    uint32_t next_number;
    window *window;
    rdmahttp_transfer *transfers;
    rdmahttp_peer *peers;
    struct sockaddr_storage expected[ADDRESSES];
    unsigned nexpected;
};

/* ---- small things ------------------------------------------------------ */

void rdmahttp_log(const rdmahttp_conf *conf, int level, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    size_t i;

    if (!conf->log) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    for (i = 0; line[i]; i++) { /* a terminal would act on what a peer sends */
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f ||
            (unsigned char)line[i] >= 0x80) {
            line[i] = '?';
        }
    }
    conf->log(conf->log_baton, level, line);
}

void rdmahttp_endpoint_changed(const rdmahttp_transfer *t,
                               rdmahttp_state before, const char *why)
{
    rdmahttp_log(t->ep->conf, RDMAHTTP_LOG_DEBUG, "id %u: %s -- %s --> %s",
                 t->id, rdmahttp_state_name(before), why,
                 rdmahttp_state_name(t->state));
}

static void wake(rdmahttp_endpoint *ep)
{
    uint64_t one = 1;

    if (write(ep->wake_fd, &one, sizeof(one)) < 0) {
        return; /* EAGAIN: the counter is full of wakes already */
    }
}

static void lock(rdmahttp_endpoint *ep)
{
    pthread_mutex_lock(&ep->lock);
}

/* Whoever waits for a transfer looks again. */
static void unlock(rdmahttp_endpoint *ep)
{
    pthread_cond_broadcast(&ep->cond);
    pthread_mutex_unlock(&ep->lock);
}

/* 0, or ETIMEDOUT. */
static int wait_until(rdmahttp_endpoint *ep, rdma_conn_time deadline)
{
    struct timespec ts = {(time_t)(deadline / 1000000),
                          (long)(deadline % 1000000) * 1000};

    return pthread_cond_timedwait(&ep->cond, &ep->lock, &ts);
}

/* Same address, whatever the ports; IPv4-mapped counts as IPv4. */
static int same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    const struct sockaddr *in[2] = {a, b};
    uint8_t bytes[2][16];
    int i;

    memset(bytes, 0, sizeof(bytes));
    for (i = 0; i < 2; i++) {
        if (in[i]->sa_family == AF_INET) {
            const struct sockaddr_in *v4 = (const void *)in[i];

            bytes[i][10] = bytes[i][11] = 0xff;
            memcpy(bytes[i] + 12, &v4->sin_addr, 4);
        }
        else if (in[i]->sa_family == AF_INET6) {
            const struct sockaddr_in6 *v6 = (const void *)in[i];

            memcpy(bytes[i], &v6->sin6_addr, 16);
        }
        else {
            return 0;
        }
    }
    return memcmp(bytes[0], bytes[1], 16) == 0;
}

static const char *address_text(const struct sockaddr *sa, char *buf,
                                socklen_t size)
{
    const void *in = &((const struct sockaddr_in *)(const void *)sa)->sin_addr;

    if (sa->sa_family == AF_INET6) {
        in = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    }
    return inet_ntop(sa->sa_family, in, buf, size) ? buf : "?";
}

static rdmahttp_peer *peer_by_number(rdmahttp_endpoint *ep, uint32_t number)
{
    rdmahttp_peer *p = ep->peers;

    while (p && p->number != number) {
        p = p->next;
    }
    return p;
}

/* ---- what a connection tells ------------------------------------------- */

static int on_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    rdmahttp_peer *peer = baton;
    rdmahttp_endpoint *ep = peer->ep;
    rdmahttp_transfer *t;
    int rc = 0;

    (void)c;
    lock(ep);
    if (m->id >= ep->next_id) {
        rc = -1; /* never issued */
    }
    for (t = ep->transfers; t && rc == 0; t = t->next) {
        if (t->id == m->id) {
            rc = rdmahttp_transfer_message(t, peer, m);
            break;
        }
    }
    unlock(ep);
    return rc;
}

static void on_opened(void *baton, rdma_conn *c)
{
    rdmahttp_peer *peer = baton;

    (void)c;
    lock(peer->ep);
    peer->open = 1;
    unlock(peer->ep);
}

static void on_closed(void *baton, rdma_conn *c)
{
    rdmahttp_peer *peer = baton;
    rdmahttp_transfer *t;

    rdmahttp_log(peer->ep->conf, RDMAHTTP_LOG_INFO,
                 "RDMA connection %u ended: %s", peer->number,
                 rdma_conn_cause_name(rdma_conn_cause_get(c)));
    lock(peer->ep);
    peer->closed = 1;
    for (t = peer->ep->transfers; t; t = t->next) {
        if (t->peer == peer) {
            rdmahttp_transfer_lost(t);
        }
    }
    unlock(peer->ep);
}

static void on_log(void *baton, rdma_conn *c, int level, const char *line)
{
    const rdmahttp_peer *peer = baton;

    (void)c;
    if (level <= RDMAHTTP_LOG_DEBUG) {
        rdmahttp_log(peer->ep->conf, level, "%s", line);
    }
}

static const rdma_conn_handler handler = {on_message, on_opened, on_closed,
                                          on_log};

static void read_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdmahttp_read *r = (rdmahttp_read *)wr; /* wr is its first member */
    rdmahttp_transfer *t = r->t;
    rdmahttp_endpoint *ep = t->ep;

    (void)c;
    lock(ep);
    if (t->peer) {
        t->peer->stalled = 0;
    }
    rdmahttp_transfer_read_done(t, r, ok);
    unlock(ep);
}

static void word_done(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    rdmahttp_word *word = (rdmahttp_word *)wr; /* wr is its first member */
    rdmahttp_endpoint *ep = word->t->ep;

    (void)c;
    (void)ok;
    lock(ep);
    word->busy = 0;
    unlock(ep);
}

/* ---- accepting --------------------------------------------------------- */

static struct ibv_pd *domain(void *baton, struct ibv_context *device)
{
    const rdmahttp_peer *peer = baton;

    return device == peer->ep->pd->context ? peer->ep->pd : NULL;
}

static struct ibv_comp_channel *channel(void *baton, struct ibv_context *device)
{
    const rdmahttp_peer *peer = baton;

    (void)device;
    return peer->ep->channel;
}

typedef struct request {
    struct rdma_cm_id *id;
    uint8_t data[256];
    size_t n;
    unsigned reads; /* READs that the server can answer at a time */
} request;

/* In the order of PROTOCOL.md, 5.4. */
static rdma_hdr_reject judge(rdmahttp_endpoint *ep, const request *rq,
                             rdma_hdr_connect *req)
{
    rdma_hdr_reject why = rdma_hdr_get_connect(rq->data, rq->n, req);
    const struct sockaddr *from = rdma_get_peer_addr(rq->id);
    const rdmahttp_peer *p;
    unsigned i, n = 0;
    int known = ep->conf->any_peer;

    if (why != RDMA_HDR_REJECT_NONE) {
        return why;
    }
    if ((req->kind == RDMA_HDR_READ &&
         (rq->reads == 0 || ep->conf->mode == RDMAHTTP_WRITE)) ||
        (req->kind == RDMA_HDR_WRITE && ep->conf->mode == RDMAHTTP_READ)) {
        return RDMA_HDR_REJECT_KIND;
    }
    if (!rdma_hdr_token_equal(req->token, ep->token)) {
        return RDMA_HDR_REJECT_TOKEN;
    }
    lock(ep);
    for (i = 0; i < ep->nexpected && !known; i++) {
        known = same_address(from,
                             (const struct sockaddr *)&ep->expected[i]);
    }
    for (p = ep->peers; p; p = p->next) {
        n++;
    }
    unlock(ep);
    if (!known) {
        return RDMA_HDR_REJECT_ADDRESS;
    }
    return n >= ep->conf->connections || ep->next_number == 0
               ? RDMA_HDR_REJECT_BUSY
               : RDMA_HDR_REJECT_NONE;
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
    lock(ep);
    peer->number = ep->next_number++;
    peer->next = ep->peers;
    ep->peers = peer;
    unlock(ep);
    if (rdma_conn_accept(&conf, rq->id, req, peer->number, &peer->conn, &why)) {
        rdmahttp_log(ep->conf, RDMAHTTP_LOG_WARNING,
                     "RDMA connection from %s: %s: %s", from, why.step,
                     strerror(why.error));
        lock(ep);
        ep->peers = peer->next; /* nobody else adds */
        unlock(ep);
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

    address_text(rdma_get_peer_addr(rq->id), from, sizeof(from));
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
    for (p = ep->peers; p; p = p->next) { /* this thread alone changes it */
        if (p->conn && rdma_conn_id(p->conn) == rq.id) {
            rdma_conn_event(p->conn, type, status);
            break;
        }
    }
    return 0;
}

/* ---- what is due ------------------------------------------------------- */

static void qp_gone(void *arg)
{
    rdmahttp_peer *peer = arg;
    rdmahttp_transfer *t;

    lock(peer->ep);
    for (t = peer->ep->transfers; t; t = t->next) {
        if (t->peer == peer) {
            rdmahttp_transfer_qp_gone(t);
        }
    }
    unlock(peer->ep);
}

static void end_peer(rdmahttp_endpoint *ep, rdmahttp_peer *peer)
{
    rdmahttp_peer **link;

    rdma_conn_destroy(peer->conn, qp_gone, peer);
    lock(ep);
    for (link = &ep->peers; *link != peer; link = &(*link)->next) {
    }
    *link = peer->next;
    unlock(ep);
    free(peer);
}

/* Say one word that is due. 1: said, look again; 0: none is. */
static int speak(rdmahttp_endpoint *ep)
{
    rdmahttp_transfer *t;
    rdma_conn *c = NULL;
    rdma_hdr_msg m;
    int last = 0;

    lock(ep);
    for (t = ep->transfers; t; t = t->next) {
        if (rdmahttp_transfer_next_word(t, &m, &last)) {
            c = t->peer->conn;
            t->word.busy = last;
            break;
        }
    }
    unlock(ep);
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

    lock(ep);
    for (t = ep->transfers; t; t = t->next) {
        r = rdmahttp_transfer_next_read(t, &at, &to);
        if (r) {
            c = t->peer->conn;
            stag = t->stag;
            base = t->base;
            lkey = ep->window[t->window].region.mr->lkey;
            break;
        }
    }
    unlock(ep);
    if (!r) {
        return 0;
    }
    rdma_conn_lock(c);
    rc = rdma_conn_read(c, &r->wr, base + at, lkey, r->len, to, stag);
    rdma_conn_unlock(c);
    if (rc) {
        lock(ep);
        if (t->peer) {
            t->peer->stalled = 1;
        }
        rdmahttp_transfer_read_undo(t, r);
        unlock(ep);
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

    lock(ep);
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
        if (p->closed || p->doomed ||
            (!p->open && now - p->opened >= HELLO_WAIT)) {
            break;
        }
    }
    unlock(ep);
    return p;
}

static void chores(rdmahttp_endpoint *ep)
{
    rdmahttp_peer *p;

    while (speak(ep) || read_more(ep)) {
    }
    while ((p = sweep(ep)) != NULL) {
        end_peer(ep, p);
    }
}

static int has_deadlines(rdmahttp_endpoint *ep)
{
    const rdmahttp_peer *p;
    int any;

    lock(ep);
    any = ep->transfers != NULL;
    for (p = ep->peers; p; p = p->next) {
        any |= !p->open;
    }
    unlock(ep);
    return any;
}

static int stopping(rdmahttp_endpoint *ep)
{
    int stop;

    lock(ep);
    stop = ep->stop;
    unlock(ep);
    return stop;
}

static void *endpoint_main(void *arg)
{
    rdmahttp_endpoint *ep = arg;
    struct pollfd fds[3] = {{ep->events->fd, POLLIN, 0},
                            {ep->channel->fd, POLLIN, 0},
                            {ep->wake_fd, POLLIN, 0}};
    struct ibv_cq *cq;
    void *c;
    uint64_t count;

    while (!stopping(ep)) {
        poll(fds, 3, has_deadlines(ep) ? TICK_MS : -1);
        if (fds[2].revents && read(ep->wake_fd, &count, sizeof(count)) < 0) {
            continue; /* a wake that has been read already */
        }
        while (cm_event(ep) == 0) {
        }
        while (ibv_get_cq_event(ep->channel, &cq, &c) == 0) {
            rdma_conn_receive(c);
            ibv_ack_cq_events(cq, 1); /* destroying it would wait for this */
        }
        chores(ep);
    }
    return NULL;
}

/* ---- opening ----------------------------------------------------------- */

static int refuse(char *why, const char *what, int error)
{
    snprintf(why, RDMAHTTP_TEXT_MAX, "%s: %s", what, strerror(error));
    return -1;
}

static int non_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -1 : 0;
}

/* Listen on this port (0: any). 0 or an errno; the listener is ep's then. */
static int listen_on(rdmahttp_endpoint *ep,
                     const struct sockaddr_storage *local, uint16_t port)
{
    struct sockaddr_storage at = *local;
    struct rdma_cm_id *id;
    int error = 0;

    if (at.ss_family == AF_INET6) {
        ((struct sockaddr_in6 *)&at)->sin6_port = htons(port);
    }
    else {
        ((struct sockaddr_in *)&at)->sin_port = htons(port);
    }
    if (rdma_create_id(ep->events, &id, NULL, RDMA_PS_TCP)) {
        return errno;
    }
    if (rdma_bind_addr(id, (struct sockaddr *)&at)) {
        error = errno;
    }
    else if (!id->verbs) {
        error = ENODEV; /* an address that no RDMA device has */
    }
    else if (rdma_listen(id, BACKLOG)) {
        error = errno;
    }
    if (error) {
        rdma_destroy_id(id);
        return error;
    }
    ep->listener = id;
    ep->port = ntohs(rdma_get_src_port(id));
    return 0;
}

static int start_listening(rdmahttp_endpoint *ep,
                           const struct sockaddr_storage *local, char *why)
{
    unsigned first = ep->conf->port_min, last = ep->conf->port_max, i;
    unsigned tries = first ? last - first + 1 : PORT_TRIES;
    int error = EADDRINUSE;

    for (i = 0; i < tries && (error == EADDRINUSE || error == EADDRNOTAVAIL);
         i++) {
        error = listen_on(ep, local, (uint16_t)(first ? first + i : 0));
        if (!error && ep->port < RDMA_HDR_PORT_MIN) {
            rdma_destroy_id(ep->listener);
            ep->listener = NULL;
            error = EADDRINUSE;
        }
    }
    if (error == EADDRINUSE && first) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "no free port from %u to %u on %s",
                 first, last, ep->address);
        return -1;
    }
    if (error == ENODEV || error == EADDRNOTAVAIL) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "no RDMA device serves %s",
                 ep->address);
        return -1;
    }
    return error ? refuse(why, "cannot listen for RDMA connections", error)
                 : 0;
}

static int map_window(rdmahttp_endpoint *ep, window *w)
{
    return rdma_mem_map(ep->mem, ep->pd, ep->window_len,
                        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
                        &w->region);
}

/* The first window; smaller if RLIMIT_MEMLOCK wants it so. */
static int first_window(rdmahttp_endpoint *ep, char *why)
{
    size_t wanted = ep->window_len;
    int error;

    while ((error = map_window(ep, &ep->window[0])) == ENOMEM &&
           ep->window_len / 2 >= WINDOW_LEAST) {
        ep->window_len /= 2;
    }
    if (error) {
        return refuse(why, "cannot register a window (see ulimit -l)", error);
    }
    if (ep->window_len < wanted) {
        rdmahttp_log(ep->conf, RDMAHTTP_LOG_WARNING,
                     "a window of %zu bytes instead of %zu: see ulimit -l",
                     ep->window_len, wanted);
    }
    return 0;
}

static int start_thread(rdmahttp_endpoint *ep, char *why)
{
    sigset_t all, before;
    int error;

    sigfillset(&all); /* signals are the program's own threads' business */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&ep->thread, NULL, endpoint_main, ep);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    ep->has_thread = !error;
    return error ? refuse(why, "cannot start a thread", error) : 0;
}

static int set_up(rdmahttp_endpoint *ep, const struct sockaddr_storage *local,
                  char *why)
{
    size_t budget = ep->windows * (ep->window_len + CONN_MEMORY) +
                    ep->conf->connections * CONN_MEMORY;

    ep->mem = rdma_mem_create(budget);
    ep->window = calloc(ep->windows, sizeof(*ep->window));
    if (!ep->mem || !ep->window) {
        return refuse(why, "cannot open an RDMA endpoint", ENOMEM);
    }
    ep->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ep->wake_fd < 0 ||
        getrandom(ep->token, sizeof(ep->token), 0) != sizeof(ep->token)) {
        return refuse(why, "cannot open an RDMA endpoint", errno);
    }
    ep->events = rdma_create_event_channel();
    if (!ep->events) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "this machine has no RDMA device");
        return -1;
    }
    if (non_blocking(ep->events->fd) || start_listening(ep, local, why)) {
        return why[0] ? -1 : refuse(why, "cannot use the RDMA device", errno);
    }
    ep->pd = ibv_alloc_pd(ep->listener->verbs);
    ep->channel = ibv_create_comp_channel(ep->listener->verbs);
    if (!ep->pd || !ep->channel || non_blocking(ep->channel->fd)) {
        return refuse(why, "cannot use the RDMA device", errno);
    }
    return first_window(ep, why) || start_thread(ep, why) ? -1 : 0;
}

int rdmahttp_endpoint_open(const rdmahttp_conf *conf,
                           const struct sockaddr_storage *local,
                           rdmahttp_endpoint **out, char *why)
{
    rdmahttp_endpoint *ep = calloc(1, sizeof(*ep));
    pthread_condattr_t attr;

    *out = NULL;
    why[0] = '\0';
    if (!ep) {
        return refuse(why, "cannot open an RDMA endpoint", ENOMEM);
    }
    pthread_mutex_init(&ep->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&ep->cond, &attr);
    pthread_condattr_destroy(&attr);
    ep->conf = conf;
    ep->window_len = conf->window;
    ep->windows = conf->windows;
    ep->wake_fd = -1;
    ep->next_id = ep->next_number = 1;
    address_text((const struct sockaddr *)local, ep->address,
                 sizeof(ep->address));
    if (set_up(ep, local, why)) {
        rdmahttp_endpoint_close(ep);
        return -1;
    }
    rdmahttp_log(conf, RDMAHTTP_LOG_INFO, "RDMA endpoint on %s port %u, %s",
                 ep->address, ep->port,
                 ibv_get_device_name(ep->pd->context->device));
    *out = ep;
    return 0;
}

/* ---- closing ----------------------------------------------------------- */

static int words_under_way(const rdmahttp_endpoint *ep)
{
    const rdmahttp_transfer *t;

    for (t = ep->transfers; t; t = t->next) {
        if (t->word.busy ||
            (t->peer && t->peer->open && !t->peer->closed && !t->we_said)) {
            return 1;
        }
    }
    return 0;
}

static void stop_thread(rdmahttp_endpoint *ep)
{
    rdma_conn_time deadline = rdma_conn_now() + LINGER;

    lock(ep);
    while (words_under_way(ep) && wait_until(ep, deadline) == 0) {
    }
    ep->stop = 1;
    unlock(ep);
    wake(ep);
    pthread_join(ep->thread, NULL);
    while (cm_event(ep) == 0) { /* no id may be left unseen */
    }
}

void rdmahttp_endpoint_close(rdmahttp_endpoint *ep)
{
    unsigned i;

    if (ep->has_thread) {
        stop_thread(ep);
    }
    while (ep->peers) {
        end_peer(ep, ep->peers);
    }
    while (ep->transfers) {
        rdmahttp_transfer *t = ep->transfers;

        ep->transfers = t->next;
        free(t);
    }
    if (ep->listener) {
        rdma_destroy_id(ep->listener);
    }
    for (i = 0; ep->window && i < ep->windows; i++) {
        rdma_mem_unmap(ep->mem, &ep->window[i].region);
    }
    free(ep->window);
    if (ep->channel) {
        ibv_destroy_comp_channel(ep->channel);
    }
    if (ep->pd) {
        ibv_dealloc_pd(ep->pd);
    }
    if (ep->events) {
        rdma_destroy_event_channel(ep->events);
    }
    if (ep->mem) {
        rdma_mem_destroy(ep->mem);
    }
    if (ep->wake_fd >= 0) {
        close(ep->wake_fd);
    }
    pthread_cond_destroy(&ep->cond);
    pthread_mutex_destroy(&ep->lock);
    free(ep);
}

/* ---- for the application's threads ------------------------------------- */

const char *rdmahttp_endpoint_address(const rdmahttp_endpoint *ep)
{
    return ep->address;
}

void rdmahttp_endpoint_expect(rdmahttp_endpoint *ep, const char *address)
{
    struct sockaddr_storage sa;
    unsigned i;

    memset(&sa, 0, sizeof(sa));
    if (inet_pton(AF_INET, address, &((struct sockaddr_in *)&sa)->sin_addr) ==
        1) {
        sa.ss_family = AF_INET;
    }
    else if (inet_pton(AF_INET6, address,
                       &((struct sockaddr_in6 *)&sa)->sin6_addr) == 1) {
        sa.ss_family = AF_INET6;
    }
    else {
        return;
    }
    lock(ep);
    for (i = 0; i < ep->nexpected; i++) {
        if (same_address((struct sockaddr *)&sa,
                         (struct sockaddr *)&ep->expected[i])) {
            break;
        }
    }
    if (i == ep->nexpected) {
        if (ep->nexpected == ADDRESSES) { /* the oldest makes room */
            memmove(ep->expected, ep->expected + 1,
                    (ADDRESSES - 1) * sizeof(ep->expected[0]));
            ep->nexpected--;
        }
        ep->expected[ep->nexpected++] = sa;
    }
    unlock(ep);
}

static window *free_window(rdmahttp_endpoint *ep)
{
    unsigned i;

    for (i = 0; i < ep->windows; i++) {
        window *w = &ep->window[i];

        if (!w->taken && (w->region.base || map_window(ep, w) == 0)) {
            return w;
        }
    }
    return NULL;
}

rdmahttp_transfer *rdmahttp_endpoint_begin(rdmahttp_endpoint *ep)
{
    rdmahttp_transfer *t = calloc(1, sizeof(*t));
    window *w;
    unsigned i;

    if (!t) {
        return NULL;
    }
    lock(ep);
    w = ep->next_id <= RDMA_HDR_ID_MAX ? free_window(ep) : NULL;
    if (!w) {
        unlock(ep);
        free(t);
        return NULL;
    }
    w->taken = 1;
    t->ep = ep;
    t->id = ep->next_id++;
    t->window = (unsigned)(w - ep->window);
    t->has_window = 1;
    t->base = w->region.base;
    t->len = ep->window_len;
    i = 0;
    if (ep->conf->mode != RDMAHTTP_READ) {
        t->offered[i++] = RDMA_HDR_WRITE;
    }
    if (ep->conf->mode != RDMAHTTP_WRITE) {
        t->offered[i++] = RDMA_HDR_READ;
    }
    for (i = 0; i < RDMA_CONN_READS; i++) {
        t->read[i].t = t;
        t->read[i].wr.done = read_done;
    }
    t->word.t = t;
    t->word.wr.done = word_done;
    t->next = ep->transfers;
    ep->transfers = t;
    unlock(ep);
    return t;
}

void rdmahttp_endpoint_release(rdmahttp_endpoint *ep, rdmahttp_transfer *t)
{
    lock(ep);
    rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CANCELLED, "not wanted");
    t->released = 1;
    if (rdmahttp_transfer_idle(t) && t->has_window) {
        ep->window[t->window].taken = 0;
        t->has_window = 0;
    }
    unlock(ep);
    wake(ep);
}

/* Replace what stands between the quotes or colons that follow each key. */
static void mask(char *field)
{
    static const char *const keys[] = {"token=:", "stag=\"", "to=\""};
    size_t i;

    for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char *p = strstr(field, keys[i]);

        if (p) {
            p += strlen(keys[i]);
            while (*p && *p != ':' && *p != '"') {
                *p++ = '*';
            }
        }
    }
}

int rdmahttp_endpoint_field(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                            char *buf, char *masked)
{
    rdma_hdr_request req;

    memset(&req, 0, sizeof(req));
    req.port = ep->port;
    memcpy(req.token, ep->token, sizeof(req.token));
    req.id = t->id;
    req.prefer[0] = t->offered[0];
    req.prefer[1] = t->offered[1];
    req.stag = ep->window[t->window].region.mr->rkey;
    req.to = (uint64_t)(uintptr_t)t->base;
    req.len = t->len;
    if (rdma_hdr_format_request(&req, buf, RDMA_HDR_FORMAT_MAX) !=
        RDMA_HDR_OK) {
        return -1;
    }
    memcpy(masked, buf, strlen(buf) + 1);
    mask(masked);
    return 0;
}

int rdmahttp_endpoint_head(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           const rdma_hdr_response *resp)
{
    int rc;

    lock(ep);
    rc = rdmahttp_transfer_head(t, resp, peer_by_number(ep, resp->conn));
    unlock(ep);
    wake(ep);
    return rc;
}

int rdmahttp_endpoint_declined(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                               uint32_t conn)
{
    int rc = 0;

    lock(ep);
    if (conn >= ep->next_number) {
        rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CONTENT,
                                  "the answer names an unknown connection");
        rc = -1;
    }
    else {
        rdmahttp_transfer_declined(t, conn, peer_by_number(ep, conn));
    }
    unlock(ep);
    wake(ep);
    return rc;
}

void rdmahttp_endpoint_give_up(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                               uint32_t reason, const char *why)
{
    lock(ep);
    rdmahttp_transfer_give_up(t, reason, why);
    unlock(ep);
    wake(ep);
}

int rdmahttp_endpoint_take(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           int (*sink)(void *baton, const void *bytes,
                                       size_t n),
                           void *baton)
{
    rdma_conn_time patience = (rdma_conn_time)ep->conf->timeout_ms * 1000;
    rdma_conn_time deadline = rdma_conn_now() + patience;
    int rc = 0;

    lock(ep);
    while (rc == 0 && !rdmahttp_transfer_complete(t)) {
        const char *at;
        size_t n = rdmahttp_transfer_ready(t, &at);

        if (n > 0) {
            pthread_mutex_unlock(&ep->lock);
            if (sink(baton, at, n)) {
                rc = -2;
            }
            lock(ep);
            if (rc == 0) {
                rdmahttp_transfer_consume(t, n);
                deadline = rdma_conn_now() + patience;
                wake(ep); /* room for READs, or a CONSUMED */
            }
        }
        else if (t->broken || t->state != RDMAHTTP_TAKING) {
            rc = -1;
        }
        else if (wait_until(ep, deadline) == ETIMEDOUT) {
            rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_TIMEOUT,
                                      "no progress by RDMA in time");
        }
    }
    if (rc) {
        rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CANCELLED,
                                  "the application has left");
    }
    unlock(ep);
    if (rc) {
        wake(ep);
    }
    return rc;
}
