/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <apr_hash.h>

#define CONNECTORS    4
#define DEVICES_MAX   16
#define IDS_KEPT      1024     /* ids behind the newest that are remembered */
#define BACKOFF_FIRST 10000000 /* microseconds */
#define BACKOFF_MOST  300000000
#define SILENCE       5000000 /* a connection silent for so long is asked */
#define KICK_AGAIN    50000   /* until a cancelled connect has returned */
#define KICK_SIGNAL   (SIGRTMIN + 4)
#define STOP_REFS     1000000 /* how long stopping waits for workers */

enum { LEVEL_ERR = 3, LEVEL_WARNING = 4, LEVEL_INFO = 6, LEVEL_DEBUG = 7 };

/* Ids of our lines in the error log; docs/MESSAGES.md explains them. */
enum {
    MSG_CONNECTION = 50,     /* RDMA0050 a line about one connection */
    MSG_BODY = 51,           /* RDMA0051 a line about one body */
    MSG_CONNECT_FAILED = 52, /* RDMA0052 */
    MSG_NO_RESOURCES = 53,   /* RDMA0053 */
    MSG_POOL_SMALL = 54,     /* RDMA0054 */
    MSG_THREADS = 55,        /* RDMA0055 */
    MSG_STUCK = 56           /* RDMA0056 */
};

typedef struct endpoint_key {
    uint8_t addr[16];
    uint32_t scope;
    uint16_t port;
    uint16_t family;
    uint8_t token[RDMA_HDR_TOKEN_LEN];
} endpoint_key;

typedef struct endpoint {
    struct endpoint *next; /* the cache's list */
    endpoint_key key;
    rdma_cache_slot *current[2]; /* by kind - 1; NULL: not connected */
    rdma_conn_time retry_at[2];
    rdma_conn_time backoff[2];
    rdma_conn_time used;
    unsigned slots; /* that point to us, current or not */
    uint32_t newest;
    uint8_t ids[IDS_KEPT / 8];
} endpoint;

typedef enum slot_state { QUEUED, CONNECTING, READY, DEAD } slot_state;

/* One attempt to connect, and the connection that came of it. */
struct rdma_cache_slot {
    struct rdma_cache_slot *next; /* the cache's list */
    rdma_cache *cache;
    endpoint *ep;
    rdma_hdr_kind kind;
    struct sockaddr_storage local;
    struct sockaddr_storage remote;

    /* under the cache's lock */
    slot_state state;
    unsigned refs;           /* workers that hold it */
    rdma_conn_time deadline; /* of the connect */
    rdma_conn_time used;
    rdma_hdr_declined failure; /* DEAD before it was READY */
    pthread_t connector;

    int cancel; /* atomic: the connect is given up */
    rdma_conn *conn;
    rdma_body_set *set; /* made in opened(), under the connection's lock */
};

typedef struct device {
    struct ibv_context *context;
    struct ibv_pd *pd; /* write kind: no remote rights in it */
    rdma_mem_pool *pool;
    struct ibv_comp_channel *channel;
} device;

struct rdma_cache {
    rdma_cache_conf conf;
    apr_hash_t *endpoints; /* endpoint_key -> endpoint */
    rdma_mem *mem;
    struct rdma_event_channel *events;
    int wake_fd;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a slot's state; monotonic clock */
    pthread_cond_t queued;  /* work for connectors */
    endpoint *all_endpoints;
    rdma_cache_slot *slots;
    int started;
    int refused;  /* threads could not be started: nothing by RDMA */
    int stopping; /* 1 graceful, 2 now */
    int quit;
    pthread_t progress;
    pthread_t connectors[CONNECTORS];
    unsigned nconnectors;

    rdma_conn_time next_scan; /* atomic */

    pthread_mutex_t device_lock; /* a leaf */
    device devices[DEVICES_MAX];
    unsigned ndevices;
};

/* ---- small things ------------------------------------------------------ */

__attribute__((format(printf, 4, 5))) static void
say_line(const rdma_cache *cache, int level, int id, const char *fmt, ...)
{
    char line[384];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    cache->conf.log(cache->conf.baton, level, id, line);
}

static void wake_progress(rdma_cache *cache)
{
    uint64_t one = 1;

    if (write(cache->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN) {
        say_line(cache, LEVEL_ERR, MSG_THREADS, "eventfd: %s", strerror(errno));
    }
}

/* The progress thread is to scan at `when` at the latest. Any lock may be
 * held. */
static void remind(rdma_cache *cache, rdma_conn_time when)
{
    rdma_conn_time old = __atomic_load_n(&cache->next_scan, __ATOMIC_RELAXED);

    while (when < old) {
        if (__atomic_compare_exchange_n(&cache->next_scan, &old, when, 0,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            wake_progress(cache);
            return;
        }
    }
}

static int same_client(const endpoint *a, const endpoint *b)
{
    return a->key.family == b->key.family && a->key.scope == b->key.scope &&
           memcmp(a->key.addr, b->key.addr, sizeof(a->key.addr)) == 0;
}

/* ---- devices ----------------------------------------------------------- */

/* The entry of a device, made when first seen; NULL: no resources. */
static device *get_device(rdma_cache *cache, struct ibv_context *context)
{
    device *d = NULL;
    unsigned i;

    pthread_mutex_lock(&cache->device_lock);
    for (i = 0; i < cache->ndevices && !d; i++) {
        if (cache->devices[i].context == context) {
            d = &cache->devices[i];
        }
    }
    if (!d && cache->ndevices < DEVICES_MAX) {
        struct ibv_comp_channel *channel = ibv_create_comp_channel(context);

        if (channel && fcntl(channel->fd, F_SETFL, O_NONBLOCK) == 0) {
            d = &cache->devices[cache->ndevices++];
            d->context = context;
            d->channel = channel;
        }
        else if (channel) {
            ibv_destroy_comp_channel(channel);
        }
    }
    pthread_mutex_unlock(&cache->device_lock);
    if (d) {
        wake_progress(cache); /* one more channel to listen to */
    }
    return d;
}

static struct ibv_comp_channel *slot_channel(void *baton,
                                             struct ibv_context *context)
{
    rdma_cache_slot *slot = baton;
    device *d = get_device(slot->cache, context);

    return d ? d->channel : NULL;
}

/* The write kind's domain with its pool: registered by a connector thread when
 * the first client comes, never by a worker. Half of the budget, so that the
 * read kind's arenas have the other half. */
static struct ibv_pd *slot_domain(void *baton, struct ibv_context *context)
{
    rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    device *d = get_device(cache, context);
    size_t want = cache->conf.memory / 2;

    if (!d) {
        return NULL;
    }
    pthread_mutex_lock(&cache->device_lock);
    if (!d->pd) {
        d->pd = ibv_alloc_pd(context);
    }
    if (d->pd && !d->pool) {
        int rc = rdma_mem_pool_create(cache->mem, d->pd, want, &d->pool);

        if (rc || rdma_mem_pool_bytes(d->pool) < want / 2) {
            say_line(cache, LEVEL_WARNING, MSG_POOL_SMALL,
                     "%s: %zu of %zu bytes could be registered (%s): raise "
                     "RLIMIT_MEMLOCK or lower RdmaMemory",
                     ibv_get_device_name(context->device),
                     d->pool ? rdma_mem_pool_bytes(d->pool) : (size_t)0, want,
                     strerror(rc ? rc : ENOMEM));
        }
    }
    pthread_mutex_unlock(&cache->device_lock);
    return d->pd;
}

static void free_devices(rdma_cache *cache)
{
    while (cache->ndevices > 0) {
        device *d = &cache->devices[--cache->ndevices];

        rdma_mem_pool_destroy(d->pool);
        if (d->pd) {
            ibv_dealloc_pd(d->pd);
        }
        ibv_destroy_comp_channel(d->channel);
    }
}

/* ---- what connections tell us (their lock is held) --------------------- */

static void body_remind(void *baton, rdma_conn_time when)
{
    remind(baton, when);
}

static void body_log(void *baton, int level, const char *line)
{
    const rdma_cache *cache = baton;

    cache->conf.log(cache->conf.baton, level, MSG_BODY, line);
}

static void conn_opened(void *baton, rdma_conn *c)
{
    rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    rdma_body_conf conf = {.mem = cache->mem,
                           .arena_max = cache->conf.memory / 4,
                           .timeout = cache->conf.timeout,
                           .lease_timeout = cache->conf.lease_timeout,
                           .remind = body_remind,
                           .log = body_log,
                           .baton = cache};

    if (slot->kind == RDMA_HDR_WRITE) {
        conf.pool = get_device(cache, rdma_conn_id(c)->verbs)->pool;
    }
    slot->set = rdma_body_set_create(c, &conf);
}

static int conn_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    rdma_cache_slot *slot = baton;

    (void)c;
    return slot->set ? rdma_body_message(slot->set, m) : 0;
}

static void conn_closed(void *baton, rdma_conn *c)
{
    rdma_cache_slot *slot = baton;

    (void)c;
    if (slot->set) {
        rdma_body_closed(slot->set);
    }
    remind(slot->cache, 0); /* to take it out and apart */
}

static void conn_log(void *baton, rdma_conn *c, int level, const char *line)
{
    const rdma_cache_slot *slot = baton;

    (void)c;
    slot->cache->conf.log(slot->cache->conf.baton, level, MSG_CONNECTION, line);
}

static const rdma_conn_handler handler = {.message = conn_message,
                                          .opened = conn_opened,
                                          .closed = conn_closed,
                                          .log = conn_log};

/* ---- connector threads ------------------------------------------------- */

static rdma_hdr_declined declined_for(const rdma_conn_failure *why)
{
    switch (why->cause) {
    case RDMA_CONN_CAUSE_DEVICE:
        return RDMA_HDR_DEVICE;
    case RDMA_CONN_CAUSE_RESOURCES:
        return RDMA_HDR_MEMORY;
    case RDMA_CONN_CAUSE_CANCELLED:
        return RDMA_HDR_BUSY;
    default:
        return RDMA_HDR_CONNECT;
    }
}

/* [cache locked] A slot that will never be, or no longer is, of use. */
static void bury(rdma_cache_slot *slot, rdma_hdr_declined why)
{
    unsigned k = slot->kind - 1u;

    slot->state = DEAD;
    slot->failure = why;
    if (slot->ep->current[k] == slot) {
        slot->ep->current[k] = NULL;
    }
    pthread_cond_broadcast(&slot->cache->changed);
    remind(slot->cache, 0);
}

/* [cache locked] */
static void connect_failed(rdma_cache_slot *slot, const rdma_conn_failure *why)
{
    rdma_cache *cache = slot->cache;
    endpoint *ep = slot->ep;
    unsigned k = slot->kind - 1u;
    int ours = why->cause == RDMA_CONN_CAUSE_RESOURCES;

    if (!ours && why->cause != RDMA_CONN_CAUSE_CANCELLED) {
        ep->backoff[k] =
            ep->backoff[k] == 0 ? BACKOFF_FIRST : ep->backoff[k] * 2;
        if (ep->backoff[k] > BACKOFF_MOST) {
            ep->backoff[k] = BACKOFF_MOST;
        }
        ep->retry_at[k] = rdma_conn_now() + ep->backoff[k];
    }
    say_line(cache, ours ? LEVEL_ERR : LEVEL_INFO,
             ours ? MSG_NO_RESOURCES : MSG_CONNECT_FAILED,
             "connect back to port %u (%s) failed at %s: %s%s%s%s%s",
             ntohs(ep->key.port), rdma_hdr_kind_name(slot->kind), why->step,
             rdma_conn_cause_name(why->cause), why->error ? ": " : "",
             why->error ? strerror(why->error) : "",
             why->cause == RDMA_CONN_CAUSE_REJECTED ? ": " : "",
             why->cause == RDMA_CONN_CAUSE_REJECTED
                 ? rdma_hdr_reject_name(why->reject)
                 : "");
    bury(slot, declined_for(why));
}

static void connect_slot(rdma_cache_slot *slot)
{
    rdma_cache *cache = slot->cache;
    rdma_conn_conf conf = {.kind = slot->kind,
                           .mem = cache->mem,
                           .domain = slot->kind == RDMA_HDR_WRITE ? slot_domain
                                                                  : NULL,
                           .channel = slot_channel,
                           .own_send_channel = 1,
                           .handler = &handler,
                           .baton = slot};
    rdma_conn_target to = {.local = slot->local,
                           .remote = slot->remote,
                           .deadline = slot->deadline,
                           .cancel = &slot->cancel};
    rdma_conn_failure why;
    rdma_conn *c;

    memcpy(to.token, slot->ep->key.token, sizeof(to.token));
    rdma_conn_connect(&conf, &to, cache->events, &c, &why);

    if (c && !slot->set) { /* no memory for its bodies */
        rdma_conn_lock(c);
        rdma_conn_close(c, RDMA_CONN_CAUSE_RESOURCES);
        rdma_conn_unlock(c);
    }
    pthread_mutex_lock(&cache->lock);
    slot->conn = c;
    if (!c) {
        connect_failed(slot, &why);
    }
    else if (!slot->set) {
        bury(slot, RDMA_HDR_MEMORY);
    }
    else { /* if it has been closed already, the next scan sees it */
        slot->state = READY;
        slot->used = rdma_conn_now();
        slot->ep->backoff[slot->kind - 1u] = 0;
        pthread_cond_broadcast(&cache->changed);
        remind(cache, cache->stopping ? 0
                                      : slot->used + cache->conf.idle_timeout);
    }
    /* The client's next one may have waited for this one. */
    pthread_cond_broadcast(&cache->queued);
    pthread_mutex_unlock(&cache->lock);
}

/* [cache locked] The oldest queued slot whose client has no connect in flight:
 * a black-holed client can occupy one connector, not all. */
static rdma_cache_slot *next_queued(rdma_cache *cache)
{
    rdma_cache_slot *best = NULL;
    rdma_cache_slot *s;
    const rdma_cache_slot *t;

    for (s = cache->slots; s; s = s->next) {
        if (s->state != QUEUED || (best && best->deadline <= s->deadline)) {
            continue;
        }
        for (t = cache->slots; t; t = t->next) {
            if (t->state == CONNECTING && same_client(s->ep, t->ep)) {
                break;
            }
        }
        if (!t) {
            best = s;
        }
    }
    return best;
}

static void *connector_main(void *arg)
{
    rdma_cache *cache = arg;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    pthread_mutex_lock(&cache->lock);
    while (!cache->quit) {
        rdma_cache_slot *slot = next_queued(cache);

        if (!slot) {
            pthread_cond_wait(&cache->queued, &cache->lock);
            continue;
        }
        slot->state = CONNECTING;
        slot->connector = pthread_self();
        remind(cache, slot->deadline);
        pthread_mutex_unlock(&cache->lock);
        connect_slot(slot);
        pthread_mutex_lock(&cache->lock);
    }
    pthread_mutex_unlock(&cache->lock);
    return NULL;
}

/* ---- the progress thread ----------------------------------------------- */

/* [cache locked] 1: nobody needs the connection any more, it can be taken
 * apart. */
static int scan_ready(rdma_cache_slot *s, rdma_conn_time now,
                      rdma_conn_time *next)
{
    rdma_cache *cache = s->cache;
    rdma_conn *c = s->conn;
    rdma_conn_time when = RDMA_CONN_NEVER;
    rdma_conn_time idle = s->used + cache->conf.idle_timeout;

    rdma_conn_lock(c);
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN) {
        when = rdma_body_expire(s->set, now);
    }
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN && s->refs == 0 &&
        rdma_body_set_live(s->set) == 0) {
        if (now >= idle || cache->stopping) {
            rdma_conn_close(c, RDMA_CONN_CAUSE_LOCAL);
        }
        else if (idle < when) {
            when = idle;
        }
    }
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN && cache->stopping > 1) {
        rdma_conn_close(c, RDMA_CONN_CAUSE_LOCAL);
    }
    if (rdma_conn_state_get(c) == RDMA_CONN_CLOSED) {
        rdma_conn_unlock(c);
        bury(s, RDMA_HDR_CONNECT);
        return s->refs == 0;
    }
    rdma_conn_unlock(c);
    if (when < *next) {
        *next = when;
    }
    return 0;
}

/* [cache locked] 1: the slot can be taken apart. */
static int scan_slot(rdma_cache_slot *s, rdma_conn_time now,
                     rdma_conn_time *next)
{
    rdma_cache *cache = s->cache;
    rdma_conn_time when = s->deadline;

    switch (s->state) {
    case QUEUED:
        if (now >= s->deadline || cache->stopping) {
            bury(s, RDMA_HDR_BUSY);
            return s->refs == 0;
        }
        break;
    case CONNECTING:
        if (now >= s->deadline || cache->stopping) {
            if (cache->stopping) {
                __atomic_store_n(&s->cancel, 1, __ATOMIC_RELAXED);
            }
            pthread_kill(s->connector, KICK_SIGNAL);
            when = now + KICK_AGAIN;
        }
        break;
    case READY:
        return scan_ready(s, now, next);
    case DEAD:
        return s->refs == 0;
    }
    if (when < *next) {
        *next = when;
    }
    return 0;
}

/* [cache locked] Forget endpoints that nobody has used for a while. */
static void scan_endpoints(rdma_cache *cache, rdma_conn_time now,
                           rdma_conn_time *next)
{
    endpoint **link = &cache->all_endpoints;

    while (*link) {
        endpoint *ep = *link;
        rdma_conn_time until = ep->used + cache->conf.idle_timeout;
        int k;

        for (k = 0; k < 2; k++) {
            if (ep->retry_at[k] > until) {
                until = ep->retry_at[k];
            }
        }
        if (ep->slots == 0 && now >= until) {
            *link = ep->next;
            apr_hash_set(cache->endpoints, &ep->key, sizeof(ep->key), NULL);
            free(ep);
            continue;
        }
        if (ep->slots == 0 && until < *next) {
            *next = until;
        }
        link = &ep->next;
    }
}

static void destroy_set(void *set)
{
    if (set) {
        rdma_body_set_destroy(set);
    }
}

static void scan(rdma_cache *cache)
{
    rdma_conn_time now = rdma_conn_now();
    rdma_conn_time next = RDMA_CONN_NEVER;
    rdma_cache_slot *gone = NULL;
    rdma_cache_slot **link = &cache->slots;

    __atomic_store_n(&cache->next_scan, RDMA_CONN_NEVER, __ATOMIC_RELAXED);
    pthread_mutex_lock(&cache->lock);
    while (*link) {
        rdma_cache_slot *s = *link;

        if (scan_slot(s, now, &next)) {
            *link = s->next;
            s->ep->slots--;
            s->ep->used = now;
            s->next = gone;
            gone = s;
        }
        else {
            link = &s->next;
        }
    }
    scan_endpoints(cache, now, &next);
    pthread_cond_broadcast(&cache->changed); /* rdma_cache_stop() counts */
    pthread_mutex_unlock(&cache->lock);
    remind(cache, next);
    while (gone) {
        rdma_cache_slot *s = gone;

        gone = s->next;
        if (s->conn) {
            rdma_conn_destroy(s->conn, destroy_set, s->set);
        }
        free(s);
    }
}

static void take_cm_events(rdma_cache *cache)
{
    struct rdma_cm_event *event;

    while (rdma_get_cm_event(cache->events, &event) == 0) {
        enum rdma_cm_event_type type = event->event;
        int status = event->status;
        rdma_conn *c = event->id->context;

        rdma_ack_cm_event(event); /* before what may destroy the id */
        rdma_conn_event(c, type, status);
    }
}

static void take_completions(struct ibv_comp_channel *channel)
{
    struct ibv_cq *cq;
    void *c;

    while (ibv_get_cq_event(channel, &cq, &c) == 0) {
        rdma_conn_receive(c);
        /* Not before: a connector thread that gives a connect up destroys this
         * CQ, and waits for the ack, before it frees the connection. */
        ibv_ack_cq_events(cq, 1);
    }
}

static void *progress_main(void *arg)
{
    rdma_cache *cache = arg;

    for (;;) {
        struct pollfd fds[2 + DEVICES_MAX];
        struct ibv_comp_channel *channels[DEVICES_MAX];
        rdma_conn_time wait =
            __atomic_load_n(&cache->next_scan, __ATOMIC_RELAXED);
        struct timespec ts;
        nfds_t n = 2;
        nfds_t i;
        uint64_t count;

        fds[0] = (struct pollfd){cache->wake_fd, POLLIN, 0};
        fds[1] = (struct pollfd){cache->events->fd, POLLIN, 0};
        pthread_mutex_lock(&cache->device_lock);
        for (; n - 2 < cache->ndevices; n++) {
            channels[n - 2] = cache->devices[n - 2].channel;
            fds[n] = (struct pollfd){channels[n - 2]->fd, POLLIN, 0};
        }
        pthread_mutex_unlock(&cache->device_lock);
        if (wait != RDMA_CONN_NEVER) {
            rdma_conn_time now = rdma_conn_now();

            ts.tv_sec = wait <= now ? 0 : (time_t)((wait - now) / 1000000);
            ts.tv_nsec =
                wait <= now ? 0 : (long)((wait - now) % 1000000) * 1000;
        }
        ppoll(fds, n, wait == RDMA_CONN_NEVER ? NULL : &ts, NULL);
        if ((fds[0].revents & POLLIN) &&
            read(cache->wake_fd, &count, sizeof(count)) < 0) {
            continue;
        }
        if (fds[1].revents) {
            take_cm_events(cache);
        }
        for (i = 2; i < n; i++) {
            if (fds[i].revents) {
                take_completions(channels[i - 2]);
            }
        }
        if (__atomic_load_n(&cache->quit, __ATOMIC_RELAXED)) {
            return NULL;
        }
        if (rdma_conn_now() >=
            __atomic_load_n(&cache->next_scan, __ATOMIC_RELAXED)) {
            scan(cache);
        }
    }
}

/* ---- making and starting ----------------------------------------------- */

static void kicked(int sig)
{
    (void)sig; /* it has ended a system call; that is all */
}

/* [cache locked] All signals stay blocked in our threads but the one that ends
 * a blocked connect. */
static int start_threads(rdma_cache *cache)
{
    struct sigaction sa = {.sa_handler = kicked}; /* no SA_RESTART */
    sigset_t all;
    sigset_t old;
    int rc;

    sigemptyset(&sa.sa_mask);
    sigaction(KICK_SIGNAL, &sa, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&cache->progress, NULL, progress_main, cache);
    cache->started = rc == 0;
    while (rc == 0 && cache->nconnectors < CONNECTORS) {
        rc = pthread_create(&cache->connectors[cache->nconnectors], NULL,
                            connector_main, cache);
        cache->nconnectors += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (cache->nconnectors == 0) {
        say_line(cache, LEVEL_ERR, MSG_THREADS,
                 "no thread could be started: %s; this child serves over TCP",
                 strerror(rc));
        cache->refused = 1;
        return -1;
    }
    return 0;
}

apr_status_t rdma_cache_create(const rdma_cache_conf *conf, apr_pool_t *pchild,
                               rdma_cache **out)
{
    rdma_cache *cache = calloc(1, sizeof(*cache));
    pthread_condattr_t attr;

    *out = NULL;
    if (!cache) {
        return APR_ENOMEM;
    }
    ibv_fork_init(); /* before anything else; CGI children are forked */
    cache->conf = *conf;
    cache->next_scan = RDMA_CONN_NEVER;
    cache->endpoints = apr_hash_make(pchild);
    cache->mem = rdma_mem_create(conf->memory);
    cache->events = rdma_create_event_channel();
    cache->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (!cache->mem || !cache->events || cache->wake_fd < 0 ||
        fcntl(cache->events->fd, F_SETFL, O_NONBLOCK)) {
        apr_status_t rv = errno ? errno : APR_ENOMEM;

        if (cache->events) {
            rdma_destroy_event_channel(cache->events);
        }
        if (cache->wake_fd >= 0) {
            close(cache->wake_fd);
        }
        rdma_mem_destroy(cache->mem);
        free(cache);
        return rv;
    }
    pthread_mutex_init(&cache->lock, NULL);
    pthread_mutex_init(&cache->device_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&cache->changed, &attr);
    pthread_cond_init(&cache->queued, NULL);
    pthread_condattr_destroy(&attr);
    *out = cache;
    return APR_SUCCESS;
}

/* ---- workers ----------------------------------------------------------- */

static void make_key(const rdma_cache_target *t, endpoint_key *key)
{
    memset(key, 0, sizeof(*key));
    memcpy(key->token, t->token, sizeof(key->token));
    key->family = t->remote.ss_family;
    if (t->remote.ss_family == AF_INET6) {
        struct sockaddr_in6 in6;

        memcpy(&in6, &t->remote, sizeof(in6));
        memcpy(key->addr, &in6.sin6_addr, sizeof(in6.sin6_addr));
        key->scope = in6.sin6_scope_id;
        key->port = in6.sin6_port;
    }
    else {
        struct sockaddr_in in4;

        memcpy(&in4, &t->remote, sizeof(in4));
        memcpy(key->addr, &in4.sin_addr, sizeof(in4.sin_addr));
        key->port = in4.sin_port;
    }
}

/* [cache locked] NULL: no memory. */
static endpoint *get_endpoint(rdma_cache *cache, const rdma_cache_target *t)
{
    endpoint_key key;
    endpoint *ep;

    make_key(t, &key);
    ep = apr_hash_get(cache->endpoints, &key, sizeof(key));
    if (!ep) {
        ep = calloc(1, sizeof(*ep));
        if (!ep) {
            return NULL;
        }
        ep->key = key;
        ep->next = cache->all_endpoints;
        cache->all_endpoints = ep;
        apr_hash_set(cache->endpoints, &ep->key, sizeof(ep->key), ep);
    }
    ep->used = rdma_conn_now();
    return ep;
}

/* [cache locked] Close the connection that has been idle for the longest time,
 * of this client or (NULL) of any. 1: one was closed. */
static int evict(rdma_cache *cache, const endpoint *client)
{
    rdma_cache_slot *oldest = NULL;
    rdma_cache_slot *s;

    for (s = cache->slots; s; s = s->next) {
        if (s->state == READY && s->refs == 0 &&
            (!client || same_client(s->ep, client)) &&
            (!oldest || s->used < oldest->used)) {
            unsigned live;

            rdma_conn_lock(s->conn);
            live = rdma_body_set_live(s->set);
            rdma_conn_unlock(s->conn);
            if (live == 0) {
                oldest = s;
            }
        }
    }
    if (!oldest) {
        return 0;
    }
    rdma_conn_lock(oldest->conn);
    rdma_conn_close(oldest->conn, RDMA_CONN_CAUSE_LOCAL);
    rdma_conn_unlock(oldest->conn);
    bury(oldest, RDMA_HDR_BUSY);
    return 1;
}

/* [cache locked] 1: one more connection for this client is within the limits.
 * Connections that are being taken apart do not count. */
static int within_limits(rdma_cache *cache, const endpoint *client)
{
    const rdma_cache_slot *s;
    unsigned all = 0;
    unsigned own = 0;

    for (s = cache->slots; s; s = s->next) {
        if (s->state != DEAD) {
            all++;
            own += same_client(s->ep, client) != 0;
        }
    }
    if (own >= cache->conf.max_connections_per_client) {
        return evict(cache, client); /* which makes room in both */
    }
    return all < cache->conf.max_connections || evict(cache, NULL);
}

/* [cache locked] */
static rdma_cache_slot *start_connect(rdma_cache *cache, endpoint *ep,
                                      const rdma_cache_target *t,
                                      rdma_hdr_declined *why)
{
    rdma_cache_slot *slot;
    unsigned k = t->kind - 1u;

    *why = RDMA_HDR_CONNECT;
    if (rdma_conn_now() < ep->retry_at[k]) {
        return NULL;
    }
    *why = RDMA_HDR_BUSY;
    if (!within_limits(cache, ep)) {
        return NULL;
    }
    slot = calloc(1, sizeof(*slot));
    if (!slot) {
        *why = RDMA_HDR_MEMORY;
        return NULL;
    }
    slot->cache = cache;
    slot->ep = ep;
    slot->kind = t->kind;
    slot->local = t->local;
    slot->remote = t->remote;
    slot->state = QUEUED;
    slot->deadline = rdma_conn_now() + cache->conf.connect_timeout;
    slot->next = cache->slots;
    cache->slots = slot;
    ep->slots++;
    ep->current[k] = slot;
    remind(cache, slot->deadline);
    pthread_cond_signal(&cache->queued);
    return slot;
}

rdma_cache_slot *rdma_cache_acquire(rdma_cache *cache,
                                    const rdma_cache_target *t,
                                    rdma_hdr_declined *why)
{
    rdma_cache_slot *slot = NULL;
    endpoint *ep;

    *why = RDMA_HDR_BUSY;
    pthread_mutex_lock(&cache->lock);
    if (cache->stopping || cache->refused ||
        (!cache->started && start_threads(cache))) {
        goto out;
    }
    ep = get_endpoint(cache, t);
    if (!ep) {
        *why = RDMA_HDR_MEMORY;
        goto out;
    }
    slot = ep->current[t->kind - 1u];
    if (slot && slot->state == READY) {
        int open;

        rdma_conn_lock(slot->conn);
        open = rdma_conn_state_get(slot->conn) == RDMA_CONN_OPEN;
        rdma_conn_unlock(slot->conn);
        if (!open) {
            bury(slot, RDMA_HDR_CONNECT);
            slot = NULL;
        }
    }
    if (!slot) {
        slot = start_connect(cache, ep, t, why);
    }
    if (slot) {
        slot->refs++;
        *why = RDMA_HDR_NOT_DECLINED;
    }
out:
    pthread_mutex_unlock(&cache->lock);
    return slot;
}

typedef struct silence {
    rdma_conn *conn;
    rdma_conn_time since;
} silence;

static int has_spoken(void *arg)
{
    const silence *s = arg;

    return rdma_conn_heard(s->conn) > s->since;
}

/* siw never reports a peer that has stopped: ask one that has been silent. */
static int answers(rdma_cache_slot *slot)
{
    rdma_conn *c = slot->conn;
    rdma_conn_time now = rdma_conn_now();
    silence s = {c, 0};
    int rc = 0;

    rdma_conn_lock(c);
    if (rdma_conn_state_get(c) != RDMA_CONN_OPEN) {
        rc = -1;
    }
    else if (now - rdma_conn_heard(c) >= SILENCE) {
        s.since = rdma_conn_heard(c);
        if (rdma_conn_ping(c) ||
            rdma_conn_wait(c, has_spoken, &s,
                           now + slot->cache->conf.connect_timeout)) {
            rdma_conn_close(c, RDMA_CONN_CAUSE_TIMEOUT);
            rc = -1;
        }
    }
    rdma_conn_unlock(c);
    return rc == 0;
}

rdma_hdr_declined rdma_cache_wait(rdma_cache_slot *slot, rdma_body_set **out)
{
    rdma_cache *cache = slot->cache;
    rdma_conn_time deadline = slot->deadline + KICK_AGAIN;
    struct timespec ts = {(time_t)(deadline / 1000000),
                          (long)(deadline % 1000000) * 1000};
    rdma_hdr_declined why = RDMA_HDR_NOT_DECLINED;
    int rc = 0;

    *out = NULL;
    pthread_mutex_lock(&cache->lock);
    while ((slot->state == QUEUED || slot->state == CONNECTING) && rc == 0 &&
           cache->stopping < 2) {
        rc = pthread_cond_timedwait(&cache->changed, &cache->lock, &ts);
    }
    if (slot->state == DEAD) {
        why = slot->failure;
    }
    else if (slot->state == QUEUED || cache->stopping > 1) {
        why = RDMA_HDR_BUSY;
    }
    else if (slot->state == CONNECTING) {
        why = RDMA_HDR_CONNECT;
    }
    pthread_mutex_unlock(&cache->lock);
    if (why == RDMA_HDR_NOT_DECLINED && !answers(slot)) {
        why = RDMA_HDR_CONNECT;
    }
    if (why == RDMA_HDR_NOT_DECLINED) {
        *out = slot->set;
    }
    return why;
}

int rdma_cache_use_id(rdma_cache_slot *slot, uint32_t id)
{
    rdma_cache *cache = slot->cache;
    endpoint *ep = slot->ep;
    uint8_t *byte = &ep->ids[id % IDS_KEPT / 8];
    uint8_t bit = (uint8_t)(1u << (id % 8));
    int first = 0;

    pthread_mutex_lock(&cache->lock);
    if (id > ep->newest) {
        uint32_t i;

        if (id - ep->newest >= IDS_KEPT) {
            memset(ep->ids, 0, sizeof(ep->ids));
        }
        else {
            for (i = ep->newest + 1; i <= id; i++) {
                ep->ids[i % IDS_KEPT / 8] &= (uint8_t) ~(1u << (i % 8));
            }
        }
        ep->newest = id;
    }
    if (ep->newest - id < IDS_KEPT && !(*byte & bit)) {
        *byte |= bit;
        first = 1;
    }
    pthread_mutex_unlock(&cache->lock);
    return first;
}

void rdma_cache_release(rdma_cache_slot *slot)
{
    rdma_cache *cache = slot->cache;

    pthread_mutex_lock(&cache->lock);
    slot->refs--;
    slot->used = slot->ep->used = rdma_conn_now();
    if (slot->refs == 0 && (slot->state == DEAD || cache->stopping)) {
        remind(cache, 0);
    }
    pthread_mutex_unlock(&cache->lock);
}

/* ---- stopping ---------------------------------------------------------- */

void rdma_cache_stopping(rdma_cache *cache, int graceful)
{
    pthread_mutex_lock(&cache->lock);
    if (cache->stopping < (graceful ? 1 : 2)) {
        cache->stopping = graceful ? 1 : 2;
    }
    pthread_cond_broadcast(&cache->changed);
    remind(cache, 0);
    pthread_mutex_unlock(&cache->lock);
}

/* [cache locked] Wait until no slot is left, or the deadline. */
static void wait_for_slots(rdma_cache *cache, rdma_conn_time deadline,
                           const volatile int *give_up)
{
    while (cache->slots && rdma_conn_now() < deadline &&
           !(give_up && *give_up)) {
        rdma_conn_time step = rdma_conn_now() + 100000;
        struct timespec ts = {(time_t)(step / 1000000),
                              (long)(step % 1000000) * 1000};

        pthread_cond_timedwait(&cache->changed, &cache->lock, &ts);
    }
}

void rdma_cache_stop(rdma_cache *cache, const volatile int *give_up)
{
    unsigned i;

    pthread_mutex_lock(&cache->lock);
    if (!cache->stopping) {
        cache->stopping = 1;
    }
    remind(cache, 0);
    if (cache->started && cache->stopping == 1) {
        wait_for_slots(cache, rdma_conn_now() + cache->conf.lease_timeout,
                       give_up);
    }
    cache->stopping = 2;
    remind(cache, 0);
    pthread_cond_broadcast(&cache->changed);
    if (cache->started) {
        wait_for_slots(cache, rdma_conn_now() + STOP_REFS, NULL);
    }
    __atomic_store_n(&cache->quit, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&cache->queued);
    if (cache->slots) {
        /* A worker or a connect that does not come back. The process ends now,
         * and the kernel takes everything apart; freeing under it would not. */
        say_line(cache, LEVEL_WARNING, MSG_STUCK,
                 "connections still in use at the end of this child");
        pthread_mutex_unlock(&cache->lock);
        return;
    }
    pthread_mutex_unlock(&cache->lock);
    if (cache->started) {
        wake_progress(cache);
        pthread_join(cache->progress, NULL);
    }
    for (i = 0; i < cache->nconnectors; i++) {
        pthread_join(cache->connectors[i], NULL);
    }
    while (cache->all_endpoints) {
        endpoint *ep = cache->all_endpoints;

        cache->all_endpoints = ep->next;
        free(ep);
    }
    free_devices(cache);
    rdma_destroy_event_channel(cache->events);
    close(cache->wake_fd);
    rdma_mem_destroy(cache->mem);
    pthread_cond_destroy(&cache->queued);
    pthread_cond_destroy(&cache->changed);
    pthread_mutex_destroy(&cache->device_lock);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}
