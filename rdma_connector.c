/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The connectors: threads that make connections, and may block in the kernel
 * for it; and what a connection tells us once it is made.
 */
#include "rdma_cache_private.h"
#include "rdma_count.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>

#define STALL       5000    /* microseconds */
#define NUDGE_FIRST 10000   /* microseconds */
#define PAUSE       1000000 /* microseconds: after a want of resources */
#define SPARE       32 /* descriptors that are httpd's */
#define ARENA_MOST  ((size_t)64 << 20) /* bytes: pinned with locks held */

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
    case RDMA_CONN_CAUSE_PROTOCOL: /* an accept that is none */
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
    const rdma_cache_slot *slot = baton;

    rdma_cache_remind(slot->cache, when);
}

/* All of the same client, which may have as much as it is allowed, and of others
 * until an eighth of the budget is there to be had. */
static void body_reclaim(void *baton)
{
    const rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    rdma_cache_slot *s;
    rdma_mem_usage u;

    pthread_mutex_lock(&cache->lock);
    rdma_mem_usage_get(cache->mem, &u);
    for (s = cache->slots; s; s = s->next) {
        if (s->state == READY && s->kind == RDMA_HDR_READ
            && (s->ep->client == slot->ep->client
                || u.available < u.budget / 8)) {
            rdma_conn_lock(s->conn);
            rdma_body_reclaim(s->set);
            rdma_conn_unlock(s->conn);
            rdma_mem_usage_get(cache->mem, &u);
        }
    }
    pthread_mutex_unlock(&cache->lock);
}

static int body_hold(void *baton)
{
    const rdma_cache_slot *slot = baton;

    return rdma_cache_stream_begin(slot->cache);
}

static void body_unhold(void *baton)
{
    const rdma_cache_slot *slot = baton;

    rdma_cache_stream_end(slot->cache);
}

static void body_log(void *baton, int level, const char *line)
{
    const rdma_cache_slot *slot = baton;

    slot->cache->conf.log(slot->cache->conf.baton, level, MSG_BODY, line);
}

static void conn_opened(void *baton, rdma_conn *c)
{
    rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    size_t share = cache->conf.memory / 4;
    size_t most = share / 2 < ARENA_MOST ? share / 2 : ARENA_MOST;
    rdma_body_conf conf = {.mem = cache->mem,
                           .arena_max = most,
                           .arenas_max = share,
                           .arenas = &slot->ep->client->arenas,
                           .blocks = &slot->ep->client->blocks,
                           .timeout = cache->conf.timeout,
                           .lease_timeout = cache->conf.lease_timeout,
                           .remind = body_remind,
                           .reclaim = body_reclaim,
                           .hold = body_hold,
                           .unhold = body_unhold,
                           .log = body_log,
                           .baton = slot};

    rdma_count_add(RDMA_COUNT_ConnectionsMade, 1);
    rdma_count_add(open_of(slot), 1);
    if (slot->kind == RDMA_HDR_WRITE) {
        conf.pool = rdma_device_pool(slot);
        conf.blocks_max = conf.pool ? rdma_mem_pool_bytes(conf.pool) / 2 : 0;
    }
    slot->set = rdma_body_set_create(c, &conf);
}

static int conn_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    int rc;

    (void)c;
    if (!slot->set) { /* no memory for it: the connection is about to go */
        return 0;
    }
    rc = rdma_body_message(slot->set, m);
    if (rdma_body_set_live(slot->set) == 0) { /* who stops waits for this */
        rdma_cache_remind(cache,
                          __atomic_load_n(&cache->stopping, __ATOMIC_RELAXED)
                              ? 0
                              : rdma_conn_now() + cache->conf.idle_timeout);
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

/* 1: nobody has said anything, as opposed to no. */
static int unanswered(const rdma_conn_failure *why)
{
    return why->cause == RDMA_CONN_CAUSE_TIMEOUT
           || (why->cause == RDMA_CONN_CAUSE_UNREACHABLE
               && why->error != ECONNREFUSED && why->error != ECONNRESET);
}

/* [cache locked] */
static void connect_failed(rdma_cache_slot *slot, const rdma_conn_failure *why)
{
    rdma_cache *cache = slot->cache;
    endpoint *ep = slot->ep;
    int ours = why->cause == RDMA_CONN_CAUSE_RESOURCES;
    rdma_conn_time now = rdma_conn_now();
    int loud = 0; /* something that an administrator can mend */

    rdma_count_add(failed_for(why->cause), 1);
    if (!ours && why->cause != RDMA_CONN_CAUSE_CANCELLED) {
        int soon = why->cause == RDMA_CONN_CAUSE_DEVICE; /* it may come back */

        rdma_endpoint_back_off(ep, slot->kind, declined_for(why), soon);
        if (!soon) {
            ep->client->suspect = unanswered(why);
        }
    }
    /* Descriptors, queue pairs: what becomes free is httpd's for a while, and not
     * the next connector's. (Our own budget has no errno, and harms nobody.) */
    if (ours && why->error != 0) {
        loud = now >= cache->retry_at; /* else it has been said */
        cache->retry_at = now + PAUSE;
    }
    rdma_cache_say(cache, loud ? LEVEL_ERR : LEVEL_INFO,
                   loud ? MSG_NO_RESOURCES : MSG_CONNECT_FAILED,
                   "connect back to port %u (%s) failed at %s: %s%s%s%s%s",
                   ntohs((uint16_t)ep->key.port),
                   rdma_hdr_kind_name(slot->kind), why->step,
                   rdma_conn_cause_name(why->cause), why->error ? ": " : "",
                   why->error ? strerror(why->error) : "",
                   why->cause == RDMA_CONN_CAUSE_REJECTED ? ": " : "",
                   why->cause == RDMA_CONN_CAUSE_REJECTED
                       ? rdma_hdr_reject_name(why->reject)
                       : "");
    rdma_slot_bury(slot, declined_for(why), rdma_conn_cause_name(why->cause));
}

/* 1: so few descriptors are free that connecting, which takes three at a time and
 * more for a new device, could leave httpd without one for a file. Looked at
 * without taking any: the kernel gives the lowest numbers first, so the highest
 * are free as long as there are many. */
static int descriptors_are_short(void)
{
    struct pollfd fds[SPARE * 2];
    struct rlimit limit;
    unsigned spare = 0;
    unsigned i;

    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur > INT_MAX) {
        return 0;
    }
    for (i = 0; i < SPARE * 2; i++) { /* poll() passes over negative ones */
        fds[i] = (struct pollfd){(int)limit.rlim_cur - 1 - (int)i, 0, 0};
    }
    (void)poll(fds, SPARE * 2, 0);
    for (i = 0; i < SPARE * 2; i++) {
        spare += (fds[i].revents & POLLNVAL) != 0;
    }
    return spare < SPARE;
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
    rdma_conn_failure why = {.cause = RDMA_CONN_CAUSE_RESOURCES,
                             .error = EMFILE,
                             .step = "its descriptors"};
    rdma_conn *c = NULL;

    memcpy(to.token, slot->ep->key.token, sizeof(to.token));
    if (!descriptors_are_short()) {
        rdma_conn_connect(&conf, &to, cache->events, &c, &why);
    }

    if (c && !slot->set) { /* no memory for its bodies */
        rdma_conn_lock(c);
        rdma_conn_close(c, RDMA_CONN_CAUSE_RESOURCES);
        rdma_conn_unlock(c);
    }
    if (!c && why.removed) {
        rdma_device_is_leaving(slot);
    }
    pthread_mutex_lock(&cache->lock);
    slot->conn = c;
    if (!c) {
        connect_failed(slot, &why);
    }
    else if (!slot->set) {
        rdma_slot_bury(slot, RDMA_HDR_MEMORY, "no memory for its bodies");
    }
    else { /* if it has been closed already, the next scan sees it */
        rdma_slot_transit(slot, READY, rdma_conn_name(c));
        slot->used = rdma_conn_now();
        slot->nudge_after = NUDGE_FIRST;
        slot->nudge_at = slot->used + slot->nudge_after;
        rdma_endpoint_has_answered(slot->ep, slot->kind);
        rdma_cache_remind(cache, 0); /* it may have been closed already */
    }
    /* The client's next one may have waited for this one. */
    pthread_cond_broadcast(&cache->queued);
    pthread_mutex_unlock(&cache->lock);
}

/* Connects in flight to clients that did not answer last time, and to those that
 * have never answered. */
typedef struct crowd {
    unsigned suspects, strangers;
} crowd;

/* [cache locked] */
static crowd connecting_now(const rdma_cache *cache)
{
    const rdma_cache_slot *s;
    crowd n = {0, 0};

    for (s = cache->slots; s; s = s->next) {
        n.suspects += s->state == CONNECTING && s->ep->client->suspect;
        n.strangers += s->state == CONNECTING && !s->ep->client->known;
    }
    return n;
}

/* [cache locked] 1: a connect to this client leaves enough to others. A client
 * may have half of the connectors; one that did not answer last time has one,
 * and all of those together have half. Who has never answered leaves some to
 * those who have. */
static int may_connect(const client *who, crowd n)
{
    if (!who->known && n.strangers >= RDMA_CACHE_STRANGERS) {
        return 0;
    }
    return who->suspect
               ? who->connecting == 0 && n.suspects < RDMA_CACHE_SUSPECTS
               : who->connecting < RDMA_CACHE_PER_CLIENT;
}

/* 1: a goes before b. */
static int goes_before(const rdma_cache_slot *a, const rdma_cache_slot *b)
{
    if (a->ep->client->suspect != b->ep->client->suspect) {
        return b->ep->client->suspect;
    }
    return a->deadline < b->deadline;
}

/* [cache locked] The slot whose turn it is, or NULL. */
static rdma_cache_slot *next_queued(rdma_cache *cache)
{
    crowd n = connecting_now(cache);
    rdma_cache_slot *best = NULL;
    rdma_cache_slot *s;

    for (s = cache->slots; s; s = s->next) {
        if (s->state == QUEUED && may_connect(s->ep->client, n)
            && (!best || goes_before(s, best))) {
            best = s;
        }
    }
    return best;
}

void *rdma_connector_main(void *arg)
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
        rdma_slot_transit(slot, CONNECTING, "a connector has it");
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
