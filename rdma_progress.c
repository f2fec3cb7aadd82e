/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The threads of a child: connectors and the undertaker, which may block in the
 * kernel, and the progress thread, which never does.
 */
#include "rdma_cache_private.h"
#include "rdma_count.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BACKOFF_FIRST 10000000 /* microseconds */
#define BACKOFF_MOST  300000000
#define BACKOFF_DEVICE 1000000
#define STALL         5000  /* microseconds */
#define NUDGE_FIRST   10000 /* microseconds */
#define NUDGE_FACTOR  3

/* ---- what we count ----------------------------------------------------- */

static rdma_count_id open_of(const rdma_cache_slot *slot)
{
    return slot->kind == RDMA_HDR_WRITE ? RDMA_COUNT_ConnectionsOpenWrite
                                        : RDMA_COUNT_ConnectionsOpenRead;
}

static rdma_count_id closed_for(rdma_conn_cause why)
{
    switch (why) {
    case RDMA_CONN_CAUSE_IDLE:
        return RDMA_COUNT_ConnectionsClosedIdle;
    case RDMA_CONN_CAUSE_EVICTED:
        return RDMA_COUNT_ConnectionsClosedEvicted;
    case RDMA_CONN_CAUSE_STOPPING:
        return RDMA_COUNT_ConnectionsClosedStopping;
    case RDMA_CONN_CAUSE_PEER:
        return RDMA_COUNT_ConnectionsClosedPeer;
    case RDMA_CONN_CAUSE_TIMEOUT:
        return RDMA_COUNT_ConnectionsClosedSilent;
    case RDMA_CONN_CAUSE_PROTOCOL:
        return RDMA_COUNT_ConnectionsClosedProtocol;
    default:
        return RDMA_COUNT_ConnectionsClosedError;
    }
}

static rdma_count_id failed_for(rdma_conn_cause why)
{
    switch (why) {
    case RDMA_CONN_CAUSE_DEVICE:
    case RDMA_CONN_CAUSE_RESOURCES:
        return RDMA_COUNT_ConnectionsFailedResources;
    case RDMA_CONN_CAUSE_REJECTED:
        return RDMA_COUNT_ConnectionsFailedRejected;
    case RDMA_CONN_CAUSE_CANCELLED:
        return RDMA_COUNT_ConnectionsFailedCancelled;
    default:
        return RDMA_COUNT_ConnectionsFailedUnreachable;
    }
}

/* ---- what connections tell us (their lock is held) --------------------- */

static void body_remind(void *baton, rdma_conn_time when)
{
    rdma_cache_remind(baton, when);
}

/* Until an eighth of the budget is there to be had. */
static void body_reclaim(void *baton)
{
    rdma_cache *cache = baton;
    rdma_cache_slot *s;
    rdma_mem_usage u;

    pthread_mutex_lock(&cache->lock);
    rdma_mem_usage_get(cache->mem, &u);
    for (s = cache->slots; s && u.available < u.budget / 8; s = s->next) {
        if (s->state == READY && s->kind == RDMA_HDR_READ) {
            rdma_conn_lock(s->conn);
            rdma_body_reclaim(s->set);
            rdma_conn_unlock(s->conn);
            rdma_mem_usage_get(cache->mem, &u);
        }
    }
    pthread_mutex_unlock(&cache->lock);
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
                           .arena_max = cache->conf.memory / 8,
                           .timeout = cache->conf.timeout,
                           .lease_timeout = cache->conf.lease_timeout,
                           .remind = body_remind,
                           .reclaim = body_reclaim,
                           .log = body_log,
                           .baton = cache};

    rdma_count_add(RDMA_COUNT_ConnectionsMade, 1);
    rdma_count_add(open_of(slot), 1);
    if (slot->kind == RDMA_HDR_WRITE) {
        conf.pool = slot->device->pool;
    }
    slot->set = rdma_body_set_create(c, &conf);
}

static int conn_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    rdma_cache_slot *slot = baton;
    int rc;

    (void)c;
    if (!slot->set) { /* no memory for it: the connection is about to go */
        return 0;
    }
    rc = rdma_body_message(slot->set, m);
    if (rdma_body_set_live(slot->set) == 0
        && __atomic_load_n(&slot->cache->stopping, __ATOMIC_RELAXED)) {
        rdma_cache_remind(slot->cache, 0); /* which waits for this */
    }
    return rc;
}

static void conn_closed(void *baton, rdma_conn *c)
{
    rdma_cache_slot *slot = baton;

    rdma_count_sub(open_of(slot), 1);
    rdma_count_add(closed_for(rdma_conn_cause_get(c)), 1);
    if (slot->set) {
        rdma_body_closed(slot->set);
    }
    rdma_cache_remind(slot->cache, 0); /* to take it out and apart */
}

static void conn_log(void *baton, rdma_conn *c, int level, const char *line)
{
    const rdma_cache_slot *slot = baton;

    (void)c;
    slot->cache->conf.log(slot->cache->conf.baton, level, MSG_CONNECTION, line);
}

static void conn_stalled(void *baton, rdma_conn *c)
{
    rdma_cache_slot *slot = baton;

    (void)c;
    rdma_cache_remind(slot->cache, rdma_conn_now() + STALL);
}

static const rdma_conn_handler handler = {.message = conn_message,
                                          .opened = conn_opened,
                                          .closed = conn_closed,
                                          .stalled = conn_stalled,
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

/* [cache locked] */
static void connect_failed(rdma_cache_slot *slot, const rdma_conn_failure *why)
{
    rdma_cache *cache = slot->cache;
    endpoint *ep = slot->ep;
    unsigned k = slot->kind - 1u;
    int ours = why->cause == RDMA_CONN_CAUSE_RESOURCES;
    int loud; /* something that an administrator can mend */

    rdma_count_add(failed_for(why->cause), 1);
    if (why->cause == RDMA_CONN_CAUSE_DEVICE) { /* it may come any moment */
        ep->retry_at[k] = rdma_conn_now() + BACKOFF_DEVICE;
    }
    else if (!ours && why->cause != RDMA_CONN_CAUSE_CANCELLED) {
        ep->backoff[k] =
            ep->backoff[k] == 0 ? BACKOFF_FIRST : ep->backoff[k] * 2;
        if (ep->backoff[k] > BACKOFF_MOST) {
            ep->backoff[k] = BACKOFF_MOST;
        }
        ep->retry_at[k] = rdma_conn_now() + ep->backoff[k];
    }
    loud = ours && why->error != 0;
    rdma_cache_say(cache, loud ? LEVEL_ERR : LEVEL_INFO,
                   loud ? MSG_NO_RESOURCES : MSG_CONNECT_FAILED,
                   "connect back to port %u (%s) failed at %s: %s%s%s%s%s",
                   ntohs(ep->key.port), rdma_hdr_kind_name(slot->kind),
                   why->step, rdma_conn_cause_name(why->cause),
                   why->error ? ": " : "",
                   why->error ? strerror(why->error) : "",
                   why->cause == RDMA_CONN_CAUSE_REJECTED ? ": " : "",
                   why->cause == RDMA_CONN_CAUSE_REJECTED
                       ? rdma_hdr_reject_name(why->reject)
                       : "");
    rdma_cache_bury(slot, declined_for(why));
}

static void connect_slot(rdma_cache_slot *slot)
{
    rdma_cache *cache = slot->cache;
    rdma_conn_conf conf = {
        .kind = slot->kind,
        .mem = cache->mem,
        .domain = slot->kind == RDMA_HDR_WRITE ? rdma_device_domain : NULL,
        .channel = rdma_device_channel,
        .own_send_channel = 1,
        .hang_up_later = 1,
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
    rdma_count_sub(RDMA_COUNT_ConnectsInFlight, 1);
    pthread_mutex_lock(&cache->lock);
    slot->conn = c;
    if (!c) {
        connect_failed(slot, &why);
    }
    else if (!slot->set) {
        rdma_cache_bury(slot, RDMA_HDR_MEMORY);
    }
    else { /* if it has been closed already, the next scan sees it */
        slot->state = READY;
        slot->used = rdma_conn_now();
        slot->nudge_after = NUDGE_FIRST;
        slot->nudge_at = slot->used + slot->nudge_after;
        slot->ep->backoff[slot->kind - 1u] = 0;
        pthread_cond_broadcast(&cache->changed);
        rdma_cache_remind(cache, 0); /* it may have been closed already */
    }
    /* The client's next one may have waited for this one. */
    pthread_cond_broadcast(&cache->queued);
    pthread_mutex_unlock(&cache->lock);
}

/* [cache locked] Connects in flight to this client's address. */
static unsigned connecting_to(const rdma_cache *cache, const endpoint *client)
{
    const rdma_cache_slot *s;
    unsigned n = 0;

    for (s = cache->slots; s; s = s->next) {
        n += s->state == CONNECTING && rdma_cache_same_client(s->ep, client);
    }
    return n;
}

/* [cache locked] The oldest queued slot whose client does not occupy its share
 * of the connectors: a black-holed client leaves half of them to the others. */
static rdma_cache_slot *next_queued(rdma_cache *cache)
{
    rdma_cache_slot *best = NULL;
    rdma_cache_slot *s;

    for (s = cache->slots; s; s = s->next) {
        if (s->state == QUEUED && (!best || s->deadline < best->deadline)
            && connecting_to(cache, s->ep) < RDMA_CACHE_PER_CLIENT) {
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
    sigaddset(&set, RDMA_CACHE_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    pthread_mutex_lock(&cache->lock);
    while (!cache->quit) {
        rdma_cache_slot *slot = next_queued(cache);

        if (!slot) {
            pthread_cond_wait(&cache->queued, &cache->lock);
            continue;
        }
        slot->state = CONNECTING;
        rdma_count_sub(RDMA_COUNT_ConnectsQueued, 1);
        rdma_count_add(RDMA_COUNT_ConnectsInFlight, 1);
        slot->connector = pthread_self();
        /* What the queue took is not the client's fault. */
        slot->deadline = rdma_conn_now() + cache->conf.connect_timeout;
        rdma_cache_remind(cache, slot->deadline);
        pthread_mutex_unlock(&cache->lock);
        connect_slot(slot);
        pthread_mutex_lock(&cache->lock);
    }
    pthread_mutex_unlock(&cache->lock);
    return NULL;
}

/* ---- the undertaker ---------------------------------------------------- */

static void destroy_set(void *set)
{
    if (set) {
        rdma_body_set_destroy(set);
    }
}

/* [cache locked; given up meanwhile] */
static void hang_up(rdma_cache *cache, rdma_cache_slot *s)
{
    s->hung_up = 1; /* the slot stays: nobody else takes one off the list */
    pthread_mutex_unlock(&cache->lock);
    rdma_conn_hang_up(s->conn);
    pthread_mutex_lock(&cache->lock);
}

/* [cache locked; given up meanwhile] */
static void take_apart(rdma_cache *cache, rdma_cache_slot *s)
{
    rdma_cache_slot **link = &cache->slots;

    while (*link != s) {
        link = &(*link)->next;
    }
    *link = s->next;
    s->ep->slots--;
    cache->burials++;
    pthread_mutex_unlock(&cache->lock);
    if (s->conn) {
        rdma_conn_destroy(s->conn, destroy_set, s->set);
    }
    rdma_device_unuse(s);
    rdma_cache_wake(cache); /* the device may be waiting for that */
    free(s);
    pthread_mutex_lock(&cache->lock);
    cache->burials--;
    pthread_cond_broadcast(&cache->changed); /* rdma_cache_stop() counts */
    rdma_cache_remind(cache, 0);             /* an endpoint may be idle now */
}

/* [cache locked] The first that has a connection to hang up, for the peer's sake,
 * or else one that no worker holds. */
static rdma_cache_slot *next_dead(const rdma_cache *cache)
{
    rdma_cache_slot *free_one = NULL;
    rdma_cache_slot *s;

    for (s = cache->slots; s; s = s->next) {
        if (s->state == DEAD && s->conn && !s->hung_up) {
            return s;
        }
        if (s->state == DEAD && s->refs == 0) {
            free_one = s;
        }
    }
    return free_one;
}

static void *undertaker_main(void *arg)
{
    rdma_cache *cache = arg;

    pthread_mutex_lock(&cache->lock);
    for (;;) {
        rdma_cache_slot *s = next_dead(cache);
        device *d = s ? NULL : rdma_device_next_removed(cache);

        if (d) {
            pthread_mutex_unlock(&cache->lock);
            rdma_device_free(cache, d);
            pthread_mutex_lock(&cache->lock);
        }
        else if (s && s->conn && !s->hung_up) {
            hang_up(cache, s);
        }
        else if (s) {
            take_apart(cache, s);
        }
        else if (cache->quit) {
            break;
        }
        else {
            pthread_cond_wait(&cache->died, &cache->lock);
        }
    }
    pthread_mutex_unlock(&cache->lock);
    return NULL;
}

/* ---- the progress thread ----------------------------------------------- */

/* [cache and connection locked] siw (up to 6.1 at least) overlooks what arrives
 * at the accepting end while the last steps of the accept are done, until more
 * arrives. HELLO can be that, and in kind read nothing would follow it. So a
 * client that has never spoken gets a PING now and then. */
static void nudge(rdma_cache_slot *s, rdma_conn_time now, rdma_conn_time *next)
{
    if (rdma_conn_has_spoken(s->conn)) {
        return;
    }
    if (now >= s->nudge_at) {
        rdma_conn_ping(s->conn);
        s->nudge_after *= NUDGE_FACTOR;
        s->nudge_at = now + s->nudge_after;
    }
    if (s->nudge_at < *next) {
        *next = s->nudge_at;
    }
}

/* [cache locked] */
static void scan_ready(rdma_cache_slot *s, rdma_conn_time now,
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
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN) {
        nudge(s, now, &when);
    }
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN && s->refs == 0
        && rdma_body_set_live(s->set) == 0) {
        if (now >= idle || cache->stopping) {
            rdma_conn_close(c, cache->stopping ? RDMA_CONN_CAUSE_STOPPING
                                               : RDMA_CONN_CAUSE_IDLE);
        }
        else if (idle < when) {
            when = idle;
        }
    }
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN && cache->stopping > 1) {
        rdma_conn_close(c, RDMA_CONN_CAUSE_STOPPING);
    }
    if (rdma_conn_state_get(c) == RDMA_CONN_CLOSED) {
        rdma_cache_bury(s, RDMA_HDR_CONNECT);
    }
    rdma_conn_unlock(c);
    if (when < *next) {
        *next = when;
    }
}

/* [cache locked] */
static void scan_slot(rdma_cache_slot *s, rdma_conn_time now,
                      rdma_conn_time *next)
{
    rdma_cache *cache = s->cache;
    rdma_conn_time when = s->deadline;

    switch (s->state) {
    case QUEUED:
        if (now >= s->deadline || cache->stopping) {
            rdma_cache_bury(s, RDMA_HDR_BUSY);
            rdma_count_sub(RDMA_COUNT_ConnectsQueued, 1);
            return;
        }
        break;
    case CONNECTING:
        if (now >= s->deadline || cache->stopping) {
            if (cache->stopping) {
                __atomic_store_n(&s->cancel, 1, __ATOMIC_RELAXED);
            }
            pthread_kill(s->connector, RDMA_CACHE_KICK_SIGNAL);
            when = now + RDMA_CACHE_KICK;
        }
        break;
    case READY:
        scan_ready(s, now, next);
        return;
    case DEAD: /* the undertaker's */
        return;
    }
    if (when < *next) {
        *next = when;
    }
}

static void scan(rdma_cache *cache)
{
    rdma_conn_time now = rdma_conn_now();
    rdma_conn_time next = RDMA_CONN_NEVER;
    rdma_cache_slot *s;

    __atomic_store_n(&cache->next_scan, RDMA_CONN_NEVER, __ATOMIC_RELAXED);
    pthread_mutex_lock(&cache->lock);
    for (s = cache->slots; s; s = s->next) {
        scan_slot(s, now, &next);
    }
    rdma_cache_forget(cache, now, &next);
    pthread_mutex_unlock(&cache->lock);
    rdma_cache_remind(cache, next);
}

static void take_cm_events(rdma_cache *cache)
{
    struct rdma_cm_event *event;

    while (rdma_get_cm_event(cache->events, &event) == 0) {
        if (!rdma_device_event(cache, event)) {
            rdma_conn_event(event->id->context, event->event, event->status);
        }
        /* Not before: the undertaker waits for the ack before it frees the
         * connection. */
        rdma_ack_cm_event(event);
    }
}

static void take_completions(struct ibv_comp_channel *channel)
{
    struct ibv_cq *cq;
    void *c;

    while (ibv_get_cq_event(channel, &cq, &c) == 0) {
        rdma_conn_receive(c);
        ibv_ack_cq_events(cq, 1);
    }
}

static void *progress_main(void *arg)
{
    rdma_cache *cache = arg;

    for (;;) {
        struct pollfd fds[2 + RDMA_CACHE_DEVICES];
        struct ibv_comp_channel *channels[RDMA_CACHE_DEVICES];
        rdma_conn_time wait =
            __atomic_load_n(&cache->next_scan, __ATOMIC_RELAXED);
        struct timespec ts;
        unsigned n;
        unsigned i;
        uint64_t count;

        fds[0] = (struct pollfd){cache->wake_fd, POLLIN, 0};
        fds[1] = (struct pollfd){cache->events->fd, POLLIN, 0};
        n = 2 + rdma_device_poll_set(cache, fds + 2, channels);
        if (wait != RDMA_CONN_NEVER) {
            rdma_conn_time now = rdma_conn_now();

            ts.tv_sec = wait <= now ? 0 : (time_t)((wait - now) / 1000000);
            ts.tv_nsec =
                wait <= now ? 0 : (long)((wait - now) % 1000000) * 1000;
        }
        ppoll(fds, n, wait == RDMA_CONN_NEVER ? NULL : &ts, NULL);
        if ((fds[0].revents & POLLIN)
            && read(cache->wake_fd, &count, sizeof(count)) < 0) {
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
        if (rdma_conn_now()
            >= __atomic_load_n(&cache->next_scan, __ATOMIC_RELAXED)) {
            scan(cache);
        }
    }
}

/* ---- starting and joining ---------------------------------------------- */

static void kicked(int sig)
{
    (void)sig; /* it has ended a system call; that is all */
}

/* [cache locked] All signals stay blocked in our threads but the one that ends
 * a blocked connect. */
int rdma_progress_start(rdma_cache *cache)
{
    struct sigaction sa = {.sa_handler = kicked}; /* no SA_RESTART */
    sigset_t all;
    sigset_t old;
    int rc;

    sigemptyset(&sa.sa_mask);
    sigaction(RDMA_CACHE_KICK_SIGNAL, &sa, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&cache->progress, NULL, progress_main, cache);
    cache->started = rc == 0;
    if (rc == 0) {
        rc = pthread_create(&cache->undertaker, NULL, undertaker_main, cache);
        cache->has_undertaker = rc == 0;
    }
    while (rc == 0 && cache->nconnectors < RDMA_CACHE_CONNECTORS) {
        rc = pthread_create(&cache->connectors[cache->nconnectors], NULL,
                            connector_main, cache);
        cache->nconnectors += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (cache->nconnectors == 0) {
        rdma_cache_say(
            cache, LEVEL_ERR, MSG_THREADS,
            "no thread could be started: %s; this child serves over TCP",
            strerror(rc));
        cache->refused = 1;
        return -1;
    }
    return 0;
}

void rdma_progress_join(rdma_cache *cache)
{
    unsigned i;

    if (cache->started) {
        rdma_cache_wake(cache);
        pthread_join(cache->progress, NULL);
    }
    if (cache->has_undertaker) {
        pthread_join(cache->undertaker, NULL);
    }
    for (i = 0; i < cache->nconnectors; i++) {
        pthread_join(cache->connectors[i], NULL);
    }
}
