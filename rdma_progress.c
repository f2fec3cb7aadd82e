/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The progress thread, which never blocks, the undertaker, which may block in the
 * kernel, and the start and the end of all threads of a child.
 */
#include "rdma_cache_private.h"
#include "rdma_count.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NUDGE_FACTOR 3
#define ROUND        64 /* events of one channel at a time */
#define TRIMS        4  /* arenas given back in one scan, which holds locks */

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
#ifdef RDMA_TEST_USE_AFTER_FREE /* what test_sanitizer.py has to see found */
    rdma_cache_slot *volatile planted = s;
#endif

    while (*link != s) {
        link = &(*link)->next;
    }
    *link = s->next;
    cache->burials++;
    pthread_mutex_unlock(&cache->lock);
    if (s->conn) {
        rdma_conn_destroy(s->conn, destroy_set, s->set);
    }
    rdma_device_unuse(s);
    rdma_cache_wake(cache); /* the device may be waiting for that */
    pthread_mutex_lock(&cache->lock);
    s->ep->slots--; /* not before: our memory counts as its client's */
    free(s);
#ifdef RDMA_TEST_USE_AFTER_FREE
    planted->refs = 0;
#endif
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
                       rdma_conn_time *next, unsigned *trims)
{
    rdma_cache *cache = s->cache;
    rdma_conn *c = s->conn;
    rdma_conn_time when = RDMA_CONN_NEVER;
    rdma_conn_time idle;

    rdma_conn_lock(c);
    idle = rdma_slot_idle_since(s) + cache->conf.idle_timeout;
    if (rdma_conn_state_get(c) == RDMA_CONN_OPEN) {
        when = rdma_body_expire(s->set, now, trims);
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
        rdma_slot_bury(s, RDMA_HDR_CONNECT,
                       rdma_conn_cause_name(rdma_conn_cause_get(c)));
    }
    rdma_conn_unlock(c);
    if (when < *next) {
        *next = when;
    }
}

/* [cache locked] */
static void scan_slot(rdma_cache_slot *s, rdma_conn_time now,
                      rdma_conn_time *next, unsigned *trims)
{
    rdma_cache *cache = s->cache;
    rdma_conn_time when = s->deadline;

    switch (s->state) {
    case QUEUED:
        if (now >= s->deadline || cache->stopping) {
            rdma_slot_bury(s, RDMA_HDR_BUSY, "waited for too long");
            return;
        }
        break;
    case CONNECTING:
        if (s->at_pool && !cache->stopping) {
            return; /* a slowness of ours; its end reminds us */
        }
        if (now >= s->deadline || cache->stopping) {
            if (cache->stopping) {
                __atomic_store_n(&s->cancel, 1, __ATOMIC_RELAXED);
            }
            else { /* its connector may be in the driver for longer */
                s->ep->client->suspect = 1;
            }
            pthread_kill(s->connector, RDMA_CACHE_KICK_SIGNAL);
            when = now + RDMA_CACHE_KICK;
        }
        break;
    case READY:
        scan_ready(s, now, next, trims);
        return;
    case NEW:
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
    unsigned trims = TRIMS;
    rdma_cache_slot *s;

    __atomic_store_n(&cache->next_scan, RDMA_CONN_NEVER, __ATOMIC_RELAXED);
    pthread_mutex_lock(&cache->lock);
    for (s = cache->slots; s; s = s->next) {
        scan_slot(s, now, &next, &trims);
    }
    rdma_endpoint_forget(cache, now, &next);
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

/* Not all that there may ever be: other channels, events and deadlines have their
 * turn, too. */
static void take_completions(struct ibv_comp_channel *channel)
{
    struct ibv_cq *cq;
    void *c;
    int i;

    for (i = 0; i < ROUND && ibv_get_cq_event(channel, &cq, &c) == 0; i++) {
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
        int left;

        fds[0] = (struct pollfd){cache->wake_fd, POLLIN, 0};
        fds[1] = (struct pollfd){cache->events->fd, POLLIN, 0};
        n = 2 + rdma_device_poll_set(cache, fds + 2, channels, &left);
        if (left) { /* locked: it may be about to sleep */
            pthread_mutex_lock(&cache->lock);
            pthread_cond_signal(&cache->died);
            pthread_mutex_unlock(&cache->lock);
        }
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
            if (fds[i].revents & (POLLERR | POLLHUP)) {
                rdma_device_is_broken(cache, channels[i - 2]);
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
                            rdma_connector_main, cache);
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
