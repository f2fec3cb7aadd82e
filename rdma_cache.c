/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_cache_private.h"
#include "rdma_count.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SILENCE     5000000 /* us: a connection silent for so long is asked */
#define STOP_REFS   1000000 /* us: how long stopping waits for workers */
#define STOP_EACH   10000   /* us: and the undertaker for each connection */
#define QUEUE_TIMES 2 /* connect timeouts that one may wait for its turn */
#define DEAD_FEW    8 /* being taken apart, besides a quarter of the limit */

/* ---- small things ------------------------------------------------------ */

void rdma_cache_say(const rdma_cache *cache, int level, int id, const char *fmt,
                    ...)
{
    char line[384];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    cache->conf.log(cache->conf.baton, level, id, line);
}

void rdma_cache_wake(rdma_cache *cache)
{
    uint64_t one = 1;

    if (write(cache->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN) {
        rdma_cache_say(cache, LEVEL_ERR, MSG_THREADS, "eventfd: %s",
                       strerror(errno));
    }
}

void rdma_cache_remind(rdma_cache *cache, rdma_conn_time when)
{
    rdma_conn_time old = __atomic_load_n(&cache->next_scan, __ATOMIC_RELAXED);

    while (when < old) {
        if (__atomic_compare_exchange_n(&cache->next_scan, &old, when, 0,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            rdma_cache_wake(cache);
            return;
        }
    }
}

/* ---- slots ------------------------------------------------------------- */

static const char *slot_state_name(slot_state s)
{
    static const char *const names[] = {"NEW", "QUEUED", "CONNECTING", "READY",
                                        "DEAD"};

    return names[s];
}

/* What is so while a slot is in a state, on entering (+1) and on leaving (-1). */
static void count_state(rdma_cache_slot *slot, slot_state s, int by)
{
    void (*count)(rdma_count_id id, uint64_t n) =
        by > 0 ? rdma_count_add : rdma_count_sub;

    if (s == QUEUED) {
        count(RDMA_COUNT_ConnectsQueued, 1);
    }
    else if (s == CONNECTING) {
        count(RDMA_COUNT_ConnectsInFlight, 1);
        slot->ep->client->connecting += (unsigned)by;
    }
}

void rdma_slot_transit(rdma_cache_slot *slot, slot_state to, const char *why)
{
    rdma_cache *cache = slot->cache;

    rdma_cache_say(cache, LEVEL_DEBUG, MSG_SLOT,
                   "slot for port %u (%s): %s -- %s --> %s",
                   ntohs((uint16_t)slot->ep->key.port),
                   rdma_hdr_kind_name(slot->kind), slot_state_name(slot->state),
                   why, slot_state_name(to));
    count_state(slot, slot->state, -1);
    slot->state = to;
    count_state(slot, to, 1);
    pthread_cond_broadcast(&cache->changed);
}

void rdma_slot_bury(rdma_cache_slot *slot, rdma_hdr_declined declined,
                    const char *why)
{
    unsigned k = slot->kind - 1u;

    rdma_slot_transit(slot, DEAD, why);
    slot->failure = declined;
    if (slot->ep->current[k] == slot) {
        slot->ep->current[k] = NULL;
    }
    pthread_cond_signal(&slot->cache->died);
}

rdma_conn_time rdma_slot_idle_since(const rdma_cache_slot *slot)
{
    rdma_conn_time ended = rdma_body_set_ended(slot->set);

    return slot->used > ended ? slot->used : ended;
}

/* ---- making and starting ----------------------------------------------- */

static void count_memory(size_t used)
{
    rdma_count_set(RDMA_COUNT_MemoryInUse, used);
    rdma_count_raise(RDMA_COUNT_MemoryPeak, used);
}

apr_status_t rdma_cache_create(const rdma_cache_conf *conf, rdma_cache **out)
{
    rdma_cache *cache = calloc(1, sizeof(*cache));
    pthread_condattr_t attr;

    *out = NULL;
    if (!cache
        || apr_pool_create_unmanaged_ex(&cache->pool, NULL, NULL)
               != APR_SUCCESS) {
        free(cache);
        return APR_ENOMEM;
    }
    ibv_fork_init(); /* before anything else; CGI children are forked */
    cache->conf = *conf;
    cache->next_scan = RDMA_CONN_NEVER;
    cache->endpoints = apr_hash_make(cache->pool);
    cache->clients = apr_hash_make(cache->pool);
    APR_RING_INIT(&cache->all_endpoints, endpoint, link);
    cache->mem = rdma_mem_create(conf->memory);
    cache->events = rdma_create_event_channel();
    cache->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    cache->nothing_fd = open("/", O_PATH | O_CLOEXEC);
    if (!cache->mem || !cache->events || cache->wake_fd < 0
        || cache->nothing_fd < 0
        || fcntl(cache->events->fd, F_SETFL, O_NONBLOCK)) {
        apr_status_t rv = errno ? errno : APR_ENOMEM;

        if (cache->events) {
            rdma_destroy_event_channel(cache->events);
        }
        if (cache->wake_fd >= 0) {
            close(cache->wake_fd);
        }
        if (cache->nothing_fd >= 0) {
            close(cache->nothing_fd);
        }
        rdma_mem_destroy(cache->mem);
        apr_pool_destroy(cache->pool);
        free(cache);
        return rv;
    }
    rdma_mem_reserve(cache->mem, conf->memory / 2);
    rdma_mem_watch(cache->mem, count_memory);
    rdma_count_add(RDMA_COUNT_MemoryLimit, conf->memory);
    pthread_mutex_init(&cache->lock, NULL);
    pthread_mutex_init(&cache->device_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&cache->changed, &attr);
    pthread_cond_init(&cache->queued, NULL);
    pthread_cond_init(&cache->died, NULL);
    pthread_cond_init(&cache->pool_came, NULL);
    pthread_condattr_destroy(&attr);
    *out = cache;
    return APR_SUCCESS;
}

/* ---- workers ----------------------------------------------------------- */

/* [cache locked] Close the connection that has been idle for the longest time,
 * of this client or (NULL) of any. 1: one was closed. */
static int evict(rdma_cache *cache, const client *who)
{
    rdma_conn_time least = RDMA_CONN_NEVER;
    rdma_cache_slot *oldest = NULL;
    rdma_cache_slot *s;

    for (s = cache->slots; s; s = s->next) {
        if (s->state == READY && s->refs == 0
            && (!who || s->ep->client == who)) {
            rdma_conn_lock(s->conn);
            if (rdma_body_set_live(s->set) == 0
                && rdma_slot_idle_since(s) < least) {
                least = rdma_slot_idle_since(s);
                oldest = s;
            }
            rdma_conn_unlock(s->conn);
        }
    }
    if (!oldest) {
        return 0;
    }
    rdma_conn_lock(oldest->conn);
    rdma_conn_close(oldest->conn, RDMA_CONN_CAUSE_EVICTED);
    rdma_conn_unlock(oldest->conn);
    rdma_slot_bury(oldest, RDMA_HDR_BUSY, "evicted");
    return 1;
}

/* [cache locked] 1: one more connection for this client is within the limits.
 * Those that are being taken apart have their descriptors until that is done,
 * which may be slower than others are made: some of them are allowed for. */
static int within_limits(rdma_cache *cache, const client *who)
{
    unsigned most = cache->conf.max_connections;
    const rdma_cache_slot *s;
    unsigned all = 0;
    unsigned own = 0;
    unsigned dead = cache->burials;

    for (s = cache->slots; s; s = s->next) {
        if (s->state != DEAD) {
            all++;
            own += s->ep->client == who;
        }
        else {
            dead += s->conn != NULL;
        }
    }
    if (all + dead >= most + most / 4 + DEAD_FEW) {
        return 0;
    }
    if (own >= cache->conf.max_connections_per_client) {
        return evict(cache, who); /* which makes room in both */
    }
    return all < most || evict(cache, NULL);
}

/* [cache locked] 1: a worker may wait for a connect to this client. One that did
 * not answer last time has a single connect, and all of those together have half
 * of the connectors; to queue for these would hold workers for nothing. */
static int is_worth_waiting_for(const rdma_cache *cache, const client *who)
{
    const rdma_cache_slot *s;
    unsigned all = 0;
    unsigned own = 0;

    for (s = cache->slots; s && who->suspect; s = s->next) {
        if ((s->state == QUEUED || s->state == CONNECTING)
            && s->ep->client->suspect) {
            all++;
            own += s->ep->client == who;
        }
    }
    return own == 0 && all < RDMA_CACHE_SUSPECTS;
}

/* [cache locked] */
static rdma_cache_slot *start_connect(rdma_cache *cache, endpoint *ep,
                                      const rdma_cache_target *t,
                                      rdma_hdr_declined *why)
{
    rdma_conn_time now = rdma_conn_now();
    rdma_cache_slot *slot;
    unsigned k = t->kind - 1u;

    *why = ep->failure[k];
    if (now < ep->retry_at[k]) {
        return NULL;
    }
    *why = RDMA_HDR_MEMORY;
    if (now < cache->retry_at) {
        return NULL;
    }
    *why = RDMA_HDR_BUSY;
    if (!is_worth_waiting_for(cache, ep->client)
        || !within_limits(cache, ep->client)) {
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
    slot->deadline = now + QUEUE_TIMES * cache->conf.connect_timeout;
    slot->next = cache->slots;
    cache->slots = slot;
    ep->slots++;
    ep->current[k] = slot;
    rdma_slot_transit(slot, QUEUED, "somebody asks for it");
    rdma_cache_remind(cache, slot->deadline);
    pthread_cond_signal(&cache->queued);
    return slot;
}

/* [cache locked] The slot, which may have been there before; NULL with *why. */
static rdma_cache_slot *get_slot(rdma_cache *cache, const rdma_cache_target *t,
                                 rdma_hdr_declined *why)
{
    rdma_cache_slot *slot;
    endpoint *ep;

    *why = RDMA_HDR_BUSY;
    if (cache->stopping || cache->refused
        || (!cache->started && rdma_progress_start(cache))) {
        return NULL;
    }
    ep = rdma_endpoint_get(cache, t);
    if (!ep) {
        *why = RDMA_HDR_MEMORY;
        return NULL;
    }
    slot = ep->current[t->kind - 1u];
    if (slot && slot->state == READY) {
        int open;

        rdma_conn_lock(slot->conn);
        open = rdma_conn_state_get(slot->conn) == RDMA_CONN_OPEN;
        rdma_conn_unlock(slot->conn);
        if (!open) {
            rdma_slot_bury(slot, RDMA_HDR_CONNECT, "its connection is closed");
            slot = NULL;
        }
    }
    return slot ? slot : start_connect(cache, ep, t, why);
}

void rdma_cache_prepare(rdma_cache *cache, const rdma_cache_target *t)
{
    rdma_hdr_declined why;

    pthread_mutex_lock(&cache->lock);
    (void)get_slot(cache, t, &why);
    pthread_mutex_unlock(&cache->lock);
}

rdma_cache_slot *rdma_cache_acquire(rdma_cache *cache,
                                    const rdma_cache_target *t,
                                    rdma_hdr_declined *why)
{
    rdma_cache_slot *slot;

    pthread_mutex_lock(&cache->lock);
    slot = get_slot(cache, t, why);
    if (slot) {
        rdma_count_add(RDMA_COUNT_ConnectionsReused, slot->acquired != 0);
        slot->acquired = 1;
        slot->refs++;
        *why = RDMA_HDR_NOT_DECLINED;
    }
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

/* siw never reports a peer that has stopped: ask one that has been silent. 1: it
 * may be used. */
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
        if (slot->asked_at <= s.since) { /* else one question is enough */
            slot->asked_at = now;
            rc = rdma_conn_ping(c) ? -1 : 0;
        }
        if (rc
            || rdma_conn_wait(c, has_spoken, &s,
                              slot->asked_at
                                  + slot->cache->conf.connect_timeout)) {
            rc = -1;
        }
        /* What is under way may be what the answer has to wait for: it has
         * deadlines of its own. */
        if (rc && rdma_body_set_live(slot->set) == 0) {
            rdma_conn_close(c, RDMA_CONN_CAUSE_TIMEOUT);
        }
    }
    rdma_conn_unlock(c);
    return rc == 0;
}

/* [cache locked] Sleep until something has changed, or the slot's deadline, which
 * moves once, when the connect begins. 1: it has passed. */
static int wait_for_change(rdma_cache_slot *slot)
{
    rdma_conn_time deadline = slot->deadline + RDMA_CACHE_KICK;
    struct timespec ts = {(time_t)(deadline / 1000000),
                          (long)(deadline % 1000000) * 1000};

    return pthread_cond_timedwait(&slot->cache->changed, &slot->cache->lock,
                                  &ts)
           && rdma_conn_now() >= slot->deadline + RDMA_CACHE_KICK;
}

rdma_hdr_declined rdma_cache_wait(rdma_cache_slot *slot, rdma_body_set **out)
{
    rdma_cache *cache = slot->cache;
    rdma_hdr_declined why = RDMA_HDR_NOT_DECLINED;
    int late = 0;

    *out = NULL;
    pthread_mutex_lock(&cache->lock);
    while ((slot->state == QUEUED || slot->state == CONNECTING) && !late
           && cache->stopping < 2) {
        late = wait_for_change(slot);
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

void rdma_cache_release(rdma_cache_slot *slot)
{
    rdma_cache *cache = slot->cache;

    pthread_mutex_lock(&cache->lock);
    slot->refs--;
    rdma_endpoint_touch(cache, slot->ep);
    slot->used = slot->ep->used;
    if (slot->refs == 0 && slot->state == DEAD) {
        pthread_cond_signal(&cache->died);
    }
    else if (slot->refs == 0) {
        rdma_cache_remind(cache, cache->stopping
                                     ? 0
                                     : slot->used + cache->conf.idle_timeout);
    }
    pthread_mutex_unlock(&cache->lock);
}

int rdma_cache_stream_begin(rdma_cache *cache)
{
    if (__atomic_add_fetch(&cache->streams, 1, __ATOMIC_RELAXED)
        > cache->conf.max_streams) {
        __atomic_sub_fetch(&cache->streams, 1, __ATOMIC_RELAXED);
        return -1;
    }
    rdma_count_add(RDMA_COUNT_StreamsOpen, 1);
    return 0;
}

void rdma_cache_stream_end(rdma_cache *cache)
{
    __atomic_sub_fetch(&cache->streams, 1, __ATOMIC_RELAXED);
    rdma_count_sub(RDMA_COUNT_StreamsOpen, 1);
}

/* ---- stopping ---------------------------------------------------------- */

void rdma_cache_stopping(rdma_cache *cache, int graceful)
{
    pthread_mutex_lock(&cache->lock);
    if (cache->stopping < (graceful ? 1 : 2)) {
        __atomic_store_n(&cache->stopping, graceful ? 1 : 2, __ATOMIC_RELAXED);
    }
    pthread_cond_broadcast(&cache->changed);
    rdma_cache_remind(cache, 0);
    pthread_mutex_unlock(&cache->lock);
}

/* [cache locked] */
static unsigned slots_left(const rdma_cache *cache)
{
    const rdma_cache_slot *s;
    unsigned n = cache->burials;

    for (s = cache->slots; s; s = s->next) {
        n++;
    }
    return n;
}

/* [cache locked] Wait until no slot is left, or the deadline. */
static void wait_for_slots(rdma_cache *cache, rdma_conn_time deadline,
                           const volatile int *give_up)
{
    while (slots_left(cache) > 0 && rdma_conn_now() < deadline
           && !(give_up && *give_up)) {
        rdma_conn_time step = rdma_conn_now() + 100000;
        struct timespec ts = {(time_t)(step / 1000000),
                              (long)(step % 1000000) * 1000};

        pthread_cond_timedwait(&cache->changed, &cache->lock, &ts);
    }
}

int rdma_cache_stop(rdma_cache *cache, const volatile int *give_up)
{
    pthread_mutex_lock(&cache->lock);
    if (!cache->stopping) {
        __atomic_store_n(&cache->stopping, 1, __ATOMIC_RELAXED);
    }
    rdma_cache_remind(cache, 0);
    if (cache->started && cache->stopping == 1) {
        wait_for_slots(cache, rdma_conn_now() + cache->conf.lease_timeout,
                       give_up);
    }
    __atomic_store_n(&cache->stopping, 2, __ATOMIC_RELAXED);
    rdma_cache_remind(cache, 0);
    pthread_cond_broadcast(&cache->changed);
    if (cache->started) {
        wait_for_slots(cache,
                       rdma_conn_now() + STOP_REFS
                           + STOP_EACH * slots_left(cache),
                       NULL);
    }
    __atomic_store_n(&cache->quit, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&cache->queued);
    pthread_cond_broadcast(&cache->died);
    if (slots_left(cache) > 0) {
        /* The process ends now, and the kernel takes everything apart; freeing
         * under it would not. */
        rdma_cache_say(cache, LEVEL_WARNING, MSG_STUCK,
                       "connections still in use at the end of this child");
        pthread_mutex_unlock(&cache->lock);
        return -1;
    }
    pthread_mutex_unlock(&cache->lock);
    rdma_progress_join(cache);
    rdma_endpoint_forget_all(cache);
    rdma_device_free_all(cache);
    rdma_destroy_event_channel(cache->events);
    close(cache->wake_fd);
    close(cache->nothing_fd);
    rdma_mem_destroy(cache->mem);
    rdma_count_sub(RDMA_COUNT_MemoryLimit, cache->conf.memory);
    pthread_cond_destroy(&cache->pool_came);
    pthread_cond_destroy(&cache->died);
    pthread_cond_destroy(&cache->queued);
    pthread_cond_destroy(&cache->changed);
    pthread_mutex_destroy(&cache->device_lock);
    pthread_mutex_destroy(&cache->lock);
    apr_pool_destroy(cache->pool);
    free(cache);
    return 0;
}
