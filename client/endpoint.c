/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "endpoint_private.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../rdma_siw.h"

#define BACKLOG      64
#define PORT_TRIES   64 /* of any port: siw's may be taken by plain TCP */
#define WINDOW_LEAST ((size_t)64 * 1024)
#define CONN_MEMORY  ((size_t)64 * 1024)  /* registered per connection, most */
#define CONN_RESERVE ((size_t)256 * 1024) /* of memlock, for connections */
#define LINGER       ((rdma_conn_time)1 * 1000000)

/* ---- small things ------------------------------------------------------ */

void rdmahttp_endpoint_changed(const rdmahttp_transfer *t,
                               rdmahttp_state before, const char *why)
{
    rdmahttp_log(t->ep->conf, RDMAHTTP_LOG_DEBUG, "id %u: %s -- %s --> %s",
                 t->id, rdmahttp_state_name(before), why,
                 rdmahttp_state_name(t->state));
}

void rdmahttp_endpoint_wake(rdmahttp_endpoint *ep)
{
    uint64_t one = 1;

    if (write(ep->wake_fd, &one, sizeof(one)) < 0) {
        return; /* EAGAIN: the counter is full of wakes already */
    }
}

void rdmahttp_endpoint_lock(rdmahttp_endpoint *ep)
{
    pthread_mutex_lock(&ep->lock);
}

void rdmahttp_endpoint_unlock(rdmahttp_endpoint *ep)
{
    pthread_cond_broadcast(&ep->cond);
    pthread_mutex_unlock(&ep->lock);
}

void rdmahttp_endpoint_moved(rdmahttp_transfer *t)
{
    if (t->waiting && t->waker) {
        t->waiting = 0;
        t->waker(t->waker_baton);
    }
}

/* 0, or ETIMEDOUT. */
static int wait_until(rdmahttp_endpoint *ep, rdma_conn_time deadline)
{
    struct timespec ts = {(time_t)(deadline / 1000000),
                          (long)(deadline % 1000000) * 1000};

    return pthread_cond_timedwait(&ep->cond, &ep->lock, &ts);
}

int rdmahttp_endpoint_same(const struct sockaddr *a, const struct sockaddr *b)
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

const char *rdmahttp_endpoint_text(const struct sockaddr *sa, char *buf,
                                   socklen_t size)
{
    const void *in = &((const struct sockaddr_in *)(const void *)sa)->sin_addr;

    if (sa->sa_family == AF_INET6) {
        in = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    }
    return inet_ntop(sa->sa_family, in, buf, size) ? buf : "?";
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
    return error ? refuse(why, "cannot listen for RDMA connections", error) : 0;
}

static int map_window(rdmahttp_endpoint *ep, rdmahttp_window *w)
{
    return rdma_mem_map(ep->mem, ep->pd, ep->window_len,
                        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
                        &w->region);
}

/* What RLIMIT_MEMLOCK allows a window to be when connections need some too: a
 * device may count every page, whoever we are. */
static size_t most_of_memlock(size_t wanted)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_cur == RLIM_INFINITY
        || limit.rlim_cur >= wanted + CONN_RESERVE) {
        return wanted;
    }
    return limit.rlim_cur < WINDOW_LEAST + CONN_RESERVE
               ? WINDOW_LEAST
               : (size_t)limit.rlim_cur - CONN_RESERVE;
}

/* The first window, if connections can then be had too: another endpoint may
 * have most of what can be locked. 0 or an errno. */
static int map_with_room(rdmahttp_endpoint *ep)
{
    rdma_mem_region room;
    int error = map_window(ep, &ep->window[0]);

    if (!error) {
        error = rdma_mem_map(ep->mem, ep->pd, CONN_RESERVE,
                             IBV_ACCESS_LOCAL_WRITE, &room);
        rdma_mem_unmap(ep->mem, error ? &ep->window[0].region : &room);
    }
    return error;
}

/* The first window; smaller if RLIMIT_MEMLOCK wants it so. */
static int first_window(rdmahttp_endpoint *ep, char *why)
{
    size_t wanted = ep->window_len;
    int error;

    if (wanted > WINDOW_LEAST) {
        ep->window_len = most_of_memlock(wanted);
    }
    while ((error = map_with_room(ep)) == ENOMEM
           && ep->window_len / 2 >= WINDOW_LEAST) {
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
    error = pthread_create(&ep->thread, NULL, rdmahttp_serve, ep);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    ep->has_thread = !error;
    return error ? refuse(why, "cannot start a thread", error) : 0;
}

static int set_up(rdmahttp_endpoint *ep, const struct sockaddr_storage *local,
                  char *why)
{
    size_t budget = ep->windows * (ep->window_len + CONN_MEMORY)
                    + ep->conf->connections * CONN_MEMORY + CONN_RESERVE;

    ep->mem = rdma_mem_create(budget);
    ep->window = calloc(ep->windows, sizeof(*ep->window));
    if (!ep->mem || !ep->window) {
        return refuse(why, "cannot open an RDMA endpoint", ENOMEM);
    }
    ep->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ep->wake_fd < 0
        || getrandom(ep->token, sizeof(ep->token), 0) != sizeof(ep->token)) {
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
    ep->guard = rdma_siw_guard(ep->listener->verbs);
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
    rdmahttp_endpoint_text((const struct sockaddr *)local, ep->address,
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

/* Ours that have not gone, or answers to our ABORT that have not come. */
static int words_under_way(const rdmahttp_endpoint *ep)
{
    const rdmahttp_transfer *t;

    for (t = ep->transfers; t; t = t->next) {
        if (t->word.busy
            || (t->peer && t->peer->open && !t->peer->closed
                && (!t->we_said || t->state == RDMAHTTP_WAIT_LAST))) {
            return 1;
        }
    }
    return 0;
}

static void stop_thread(rdmahttp_endpoint *ep)
{
    rdma_conn_time deadline = rdma_conn_now() + LINGER;

    rdmahttp_endpoint_lock(ep);
    while (words_under_way(ep) && wait_until(ep, deadline) == 0) {
    }
    ep->stop = 1;
    rdmahttp_endpoint_unlock(ep);
    rdmahttp_endpoint_wake(ep);
    pthread_join(ep->thread, NULL);
    rdmahttp_serve_end(ep);
}

void rdmahttp_endpoint_deaf(rdmahttp_endpoint *ep)
{
    if (ep->listener) {
        rdma_destroy_id(ep->listener);
        ep->listener = NULL;
    }
}

void rdmahttp_endpoint_let_go(rdmahttp_endpoint *ep)
{
    unsigned i;

    rdmahttp_endpoint_deaf(ep);
    for (i = 0; ep->window && i < ep->windows; i++) {
        rdma_mem_unmap(ep->mem, &ep->window[i].region);
    }
    if (ep->channel) {
        ibv_destroy_comp_channel(ep->channel);
        ep->channel = NULL;
    }
    if (ep->guard) {
        ibv_destroy_cq(ep->guard);
        ep->guard = NULL;
    }
    if (ep->pd) {
        ibv_dealloc_pd(ep->pd);
        ep->pd = NULL;
    }
}

void rdmahttp_endpoint_close(rdmahttp_endpoint *ep)
{
    if (ep->has_thread) {
        stop_thread(ep);
    }
    while (ep->transfers) {
        rdmahttp_transfer *t = ep->transfers;

        ep->transfers = t->next;
        free(t);
    }
    rdmahttp_endpoint_let_go(ep);
    free(ep->window);
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

static rdmahttp_peer *peer_by_number(rdmahttp_endpoint *ep, uint32_t number)
{
    rdmahttp_peer *p = ep->peers;

    while (p && p->number != number) {
        p = p->next;
    }
    return p;
}

const char *rdmahttp_endpoint_address(const rdmahttp_endpoint *ep)
{
    return ep->address;
}

void rdmahttp_endpoint_expect(rdmahttp_endpoint *ep, const char *address)
{
    struct sockaddr_storage sa;
    unsigned i;

    memset(&sa, 0, sizeof(sa));
    if (inet_pton(AF_INET, address, &((struct sockaddr_in *)&sa)->sin_addr)
        == 1) {
        sa.ss_family = AF_INET;
    }
    else if (inet_pton(AF_INET6, address,
                       &((struct sockaddr_in6 *)&sa)->sin6_addr)
             == 1) {
        sa.ss_family = AF_INET6;
    }
    else {
        return;
    }
    rdmahttp_endpoint_lock(ep);
    for (i = 0; i < ep->nexpected; i++) {
        if (rdmahttp_endpoint_same((struct sockaddr *)&sa,
                                   (struct sockaddr *)&ep->expected[i])) {
            break;
        }
    }
    if (i == ep->nexpected) {
        if (ep->nexpected == RDMAHTTP_ADDRESSES) { /* the oldest makes room */
            memmove(ep->expected, ep->expected + 1,
                    (RDMAHTTP_ADDRESSES - 1) * sizeof(ep->expected[0]));
            ep->nexpected--;
        }
        ep->expected[ep->nexpected++] = sa;
    }
    rdmahttp_endpoint_unlock(ep);
}

static rdmahttp_window *free_window(rdmahttp_endpoint *ep)
{
    unsigned i;

    for (i = 0; i < ep->windows; i++) {
        rdmahttp_window *w = &ep->window[i];

        if (!w->taken && (w->region.base || map_window(ep, w) == 0)) {
            return w;
        }
    }
    return NULL;
}

rdmahttp_transfer *rdmahttp_endpoint_begin(rdmahttp_endpoint *ep)
{
    rdmahttp_transfer *t = calloc(1, sizeof(*t));
    rdmahttp_window *w;
    unsigned i;

    if (!t) {
        return NULL;
    }
    rdmahttp_endpoint_lock(ep);
    w = !ep->removed && ep->next_id <= RDMA_HDR_ID_MAX ? free_window(ep) : NULL;
    if (!w) {
        rdmahttp_endpoint_unlock(ep);
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
    }
    t->word.t = t;
    t->next = ep->transfers;
    ep->transfers = t;
    rdmahttp_endpoint_unlock(ep);
    return t;
}

void rdmahttp_endpoint_release(rdmahttp_endpoint *ep, rdmahttp_transfer *t)
{
    rdmahttp_endpoint_lock(ep);
    rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CANCELLED, "not wanted");
    t->released = 1;
    t->waker = NULL;
    if (rdmahttp_transfer_idle(t) && t->has_window) {
        ep->window[t->window].taken = 0;
        t->has_window = 0;
    }
    rdmahttp_endpoint_unlock(ep);
    rdmahttp_endpoint_wake(ep);
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
    if (rdma_hdr_format_request(&req, buf, RDMA_HDR_FORMAT_MAX)
        != RDMA_HDR_OK) {
        return -1;
    }
    memcpy(masked, buf, strlen(buf) + 1);
    rdmahttp_log_mask(masked);
    return 0;
}

int rdmahttp_endpoint_bind(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           uint32_t conn)
{
    int rc = 0;

    rdmahttp_endpoint_lock(ep);
    if (conn >= ep->next_number) {
        rc = -1;
    }
    else {
        rdmahttp_transfer_bind(t, conn, peer_by_number(ep, conn));
    }
    rdmahttp_endpoint_unlock(ep);
    return rc;
}

int rdmahttp_endpoint_head(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                           const rdma_hdr_response *resp, int stream)
{
    int rc;

    rdmahttp_endpoint_lock(ep);
    rc =
        rdmahttp_transfer_head(t, resp, stream, peer_by_number(ep, resp->conn));
    rdmahttp_endpoint_unlock(ep);
    rdmahttp_endpoint_wake(ep);
    return rc;
}

void rdmahttp_endpoint_declined(rdmahttp_endpoint *ep, rdmahttp_transfer *t)
{
    rdmahttp_endpoint_lock(ep);
    rdmahttp_transfer_declined(t);
    rdmahttp_endpoint_unlock(ep);
    rdmahttp_endpoint_wake(ep);
}

void rdmahttp_endpoint_give_up(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                               uint32_t reason, const char *why)
{
    rdmahttp_endpoint_lock(ep);
    rdmahttp_transfer_give_up(t, reason, why);
    rdmahttp_endpoint_unlock(ep);
    rdmahttp_endpoint_wake(ep);
}

uint64_t rdmahttp_endpoint_announced(rdmahttp_endpoint *ep,
                                     const rdmahttp_transfer *t)
{
    uint64_t n;

    rdmahttp_endpoint_lock(ep);
    n = t->announced;
    rdmahttp_endpoint_unlock(ep);
    return n;
}

void rdmahttp_endpoint_watch(rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                             void (*waker)(void *baton), void *baton)
{
    rdmahttp_endpoint_lock(ep);
    t->waker = waker;
    t->waker_baton = baton;
    rdmahttp_endpoint_unlock(ep);
}

/* [locked] Nothing can be taken now. */
static rdmahttp_taken nothing(const rdmahttp_endpoint *ep, rdmahttp_transfer *t,
                              int closing, rdma_conn_time *deadline)
{
    rdma_conn_time now = rdma_conn_now();

    if (t->broken || t->state != RDMAHTTP_TAKING) {
        return t->wrong ? RDMAHTTP_TAKE_WRONG : RDMAHTTP_TAKE_FAILED;
    }
    if (*deadline == 0 || (!closing && rdmahttp_transfer_quiet(t))) {
        *deadline = now + (rdma_conn_time)ep->conf->timeout_ms * 1000;
    }
    if (now >= *deadline) {
        rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_TIMEOUT,
                                  "no progress by RDMA in time");
        return RDMAHTTP_TAKE_FAILED;
    }
    t->waiting = 1;
    return RDMAHTTP_TAKE_WAIT;
}

rdmahttp_taken
rdmahttp_endpoint_take(rdmahttp_endpoint *ep, rdmahttp_transfer *t, int closing,
                       rdma_conn_time *deadline,
                       int (*sink)(void *baton, const void *bytes, size_t n),
                       void *baton)
{
    rdmahttp_taken rc = RDMAHTTP_TAKE_MORE;
    const char *at;
    size_t n;
    int due;

    rdmahttp_endpoint_lock(ep);
    n = rdmahttp_transfer_ready(t, &at);
    if (n > 0) {
        rdmahttp_endpoint_unlock(ep);
        if (sink(baton, at, n)) {
            rc = RDMAHTTP_TAKE_LEFT;
        }
        rdmahttp_endpoint_lock(ep);
        *deadline = 0;
    }
    if (rc == RDMAHTTP_TAKE_LEFT) {
        rdmahttp_transfer_give_up(t, RDMA_HDR_ABORT_CANCELLED,
                                  "the application has left");
    }
    else {
        rdmahttp_transfer_consume(t, n);
        rc = t->state == RDMAHTTP_DONE ? RDMAHTTP_TAKE_ALL
             : n > 0                   ? RDMAHTTP_TAKE_MORE
                                       : nothing(ep, t, closing, deadline);
    }
    due = rdmahttp_transfer_due(t);
    rdmahttp_endpoint_unlock(ep);
    if (due) {
        rdmahttp_endpoint_wake(ep); /* room for READs, or a CONSUMED */
    }
    return rc;
}
