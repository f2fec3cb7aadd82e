/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a child keeps of each device: the write kind's protection domain with
 * its pool, the channel of receive completions, and a watch, by which we hear
 * that the device is to be removed, though no connection uses it: the kernel
 * waits until every process has let go of it.
 */
#include "rdma_cache_private.h"
#include "rdma_siw.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* To the device that a connecting id was resolved to: by that one's address,
 * since the one that the caller gave may be the wildcard, which leads to no
 * device. 0, or -1 with errno. */
static int bind_watch(rdma_cache *cache, struct rdma_cm_id *watch,
                      struct rdma_cm_id *id)
{
    struct rdma_addr at = id->route.addr;
    int error = 0;

    at.src_sin.sin_port = 0; /* any; IPv6 has it in the same place */
    if (rdma_bind_addr(watch, &at.src_addr)) {
        error = errno;
    }
    else if (watch->verbs != id->verbs) {
        error = ENODEV;
    }
    if (error) {
        rdma_cache_say(cache, LEVEL_DEBUG, MSG_DEVICE,
                       "the removal of %s cannot be watched: %s",
                       ibv_get_device_name(id->verbs->device), strerror(error));
    }
    errno = error;
    return error ? -1 : 0;
}

/* [device_lock] The entry of a device, or (NULL) a free one. */
static device *find(rdma_cache *cache, const struct ibv_context *context)
{
    unsigned i;

    for (i = 0; i < RDMA_CACHE_DEVICES; i++) {
        if (cache->devices[i].context == context) {
            return &cache->devices[i];
        }
    }
    return NULL;
}

/* [device_lock] The one of this id, with a watch: librdmacm frees the context
 * when the device has gone and no id refers to it. NULL: no resources, or too
 * many devices; *unwanted, if any, is to be destroyed. */
static device *add(rdma_cache *cache, struct rdma_cm_id *id,
                   struct rdma_cm_id **unwanted)
{
    device *d = find(cache, NULL);
    struct ibv_comp_channel *channel = NULL;
    struct rdma_cm_id *watch;

    if (!d || rdma_create_id(cache->events, &watch, NULL, RDMA_PS_TCP)) {
        return NULL;
    }
    if (bind_watch(cache, watch, id) == 0) {
        channel = ibv_create_comp_channel(id->verbs);
    }
    if (!channel || fcntl(channel->fd, F_SETFL, O_NONBLOCK)) {
        if (channel) {
            ibv_destroy_comp_channel(channel);
        }
        *unwanted = watch;
        return NULL;
    }
    d->context = id->verbs;
    d->channel = channel;
    d->guard = rdma_siw_guard(id->verbs);
    d->watch = watch;
    rdma_cache_wake(cache); /* one more channel to listen to */
    return d;
}

/* The slot uses the device of its id, which may be another one when its connector
 * tries again. NULL with errno: as above, or it is being removed. */
static device *use(rdma_cache_slot *slot, struct rdma_cm_id *id)
{
    rdma_cache *cache = slot->cache;
    struct rdma_cm_id *unwanted = NULL;
    device *d;
    int error;

    pthread_mutex_lock(&cache->device_lock);
    d = find(cache, id->verbs);
    if (!d) {
        d = add(cache, id, &unwanted);
    }
    else if (d->removed) {
        d = NULL;
        errno = ENODEV;
    }
    if (d != slot->device) {
        if (slot->device) {
            slot->device->users--;
        }
        if (d) {
            d->users++;
        }
        slot->device = d;
    }
    error = errno;
    pthread_mutex_unlock(&cache->device_lock);
    if (unwanted) { /* waits for an ack, and who acks may wait for the lock */
        rdma_destroy_id(unwanted);
    }
    errno = error;
    return d;
}

void rdma_device_unuse(rdma_cache_slot *slot)
{
    pthread_mutex_lock(&slot->cache->device_lock);
    if (slot->device) {
        slot->device->users--;
        slot->device = NULL;
    }
    pthread_mutex_unlock(&slot->cache->device_lock);
}

struct ibv_comp_channel *rdma_device_channel(void *baton, struct rdma_cm_id *id)
{
    const device *d = use(baton, id);

    return d ? d->channel : NULL;
}

/* [device_lock] Once per device: it will be so for each connection. */
static void say_pool_is_small(const rdma_cache *cache, device *d, size_t want,
                              int error)
{
    size_t got = d->pool ? rdma_mem_pool_bytes(d->pool) : 0;

    if (got < want / 2 && !d->pool_was_said) {
        d->pool_was_said = 1;
        rdma_cache_say(cache, LEVEL_WARNING, MSG_POOL_SMALL,
                       "%s: %zu of %zu bytes could be registered (%s): raise "
                       "RLIMIT_MEMLOCK or lower RdmaMemory",
                       ibv_get_device_name(d->context->device), got, want,
                       strerror(error ? error : ENOMEM));
    }
}

/* [device_lock, given up meanwhile] Registering takes its time, and nobody but
 * who wants the pool waits for it. The device stays: a slot uses it. */
static void make_pool(rdma_cache *cache, device *d)
{
    size_t want = cache->conf.memory / 2;
    rdma_mem_pool *pool;
    int rc;

    d->pool_coming = 1;
    pthread_mutex_unlock(&cache->device_lock);
    rc = rdma_mem_pool_create(cache->mem, d->pd, want, &pool);
    if (rc == 0) {
        rdma_mem_reserve(cache->mem, 0);
    }
    pthread_mutex_lock(&cache->device_lock);
    d->pool_coming = 0;
    d->pool = pool;
    pthread_cond_broadcast(&cache->pool_came);
    say_pool_is_small(cache, d, want, rc);
}

/* What the pool takes is added to the deadline of the slot's connect: its client
 * has no part in it. Workers wait for it no longer than for a connect. */
static void at_pool(rdma_cache_slot *slot, rdma_conn_time since)
{
    rdma_cache *cache = slot->cache;

    pthread_mutex_lock(&cache->lock);
    slot->at_pool = since == 0;
    if (since != 0) {
        slot->deadline += rdma_conn_now() - since;
        rdma_cache_remind(cache, slot->deadline);
    }
    pthread_mutex_unlock(&cache->lock);
}

/* The write kind's domain with its pool: registered by a connector thread when
 * the first client comes, never by a worker. Half of the budget, which nobody
 * else can have before; the read kind's arenas have the other half. */
struct ibv_pd *rdma_device_domain(void *baton, struct rdma_cm_id *id)
{
    rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    device *d = use(slot, id);
    rdma_conn_time since = rdma_conn_now();
    struct ibv_pd *pd;
    int error;

    if (!d) {
        return NULL;
    }
    at_pool(slot, 0);
    pthread_mutex_lock(&cache->device_lock);
    if (!d->pd) {
        d->pd = ibv_alloc_pd(id->verbs);
    }
    error = errno;
    while (d->pool_coming) {
        pthread_cond_wait(&cache->pool_came, &cache->device_lock);
    }
    if (d->pd && !d->pool) {
        make_pool(cache, d);
    }
    pd = d->pd;
    pthread_mutex_unlock(&cache->device_lock);
    at_pool(slot, since);
    errno = error;
    return pd;
}

rdma_mem_pool *rdma_device_pool(rdma_cache_slot *slot)
{
    rdma_mem_pool *pool;

    pthread_mutex_lock(&slot->cache->device_lock);
    pool = slot->device ? slot->device->pool : NULL;
    pthread_mutex_unlock(&slot->cache->device_lock);
    return pool;
}

unsigned rdma_device_poll_set(rdma_cache *cache, struct pollfd *fds,
                              struct ibv_comp_channel *channels[], int *left)
{
    unsigned n = 0;
    unsigned i;

    *left = 0;
    pthread_mutex_lock(&cache->device_lock);
    for (i = 0; i < RDMA_CACHE_DEVICES; i++) {
        device *d = &cache->devices[i];

        if (d->removed && d->users == 0 && !d->unpolled) {
            d->unpolled = 1;
            *left = 1;
        }
        else if (d->context && !d->unpolled && !d->broken) {
            channels[n] = d->channel;
            fds[n++] = (struct pollfd){d->channel->fd, POLLIN, 0};
        }
    }
    pthread_mutex_unlock(&cache->device_lock);
    return n;
}

/* It has gone: its connections hear of that from the CM. */
void rdma_device_is_broken(rdma_cache *cache,
                           const struct ibv_comp_channel *channel)
{
    unsigned i;

    pthread_mutex_lock(&cache->device_lock);
    for (i = 0; i < RDMA_CACHE_DEVICES; i++) {
        if (cache->devices[i].channel == channel) {
            cache->devices[i].broken = 1;
        }
    }
    pthread_mutex_unlock(&cache->device_lock);
}

/* [device_lock] */
static void leaves(rdma_cache *cache, device *d)
{
    if (!d->removed) {
        d->removed = 1;
        rdma_cache_say(cache, LEVEL_INFO, MSG_DEVICE,
                       "%s is being removed: its clients get their bodies "
                       "over TCP",
                       ibv_get_device_name(d->context->device));
    }
}

int rdma_device_event(rdma_cache *cache, const struct rdma_cm_event *event)
{
    int ours = event->id->context == NULL; /* a connection's has one */
    device *d;

    if (event->event == RDMA_CM_EVENT_DEVICE_REMOVAL && event->id->verbs) {
        pthread_mutex_lock(&cache->device_lock);
        d = find(cache, event->id->verbs);
        if (d) {
            leaves(cache, d);
        }
        pthread_mutex_unlock(&cache->device_lock);
    }
    return ours;
}

void rdma_device_is_leaving(rdma_cache_slot *slot)
{
    pthread_mutex_lock(&slot->cache->device_lock);
    if (slot->device) {
        leaves(slot->cache, slot->device);
    }
    pthread_mutex_unlock(&slot->cache->device_lock);
}

device *rdma_device_next_removed(rdma_cache *cache)
{
    device *d = NULL;
    unsigned i;

    pthread_mutex_lock(&cache->device_lock);
    for (i = 0; i < RDMA_CACHE_DEVICES && !d; i++) {
        if (cache->devices[i].unpolled) {
            d = &cache->devices[i];
        }
    }
    pthread_mutex_unlock(&cache->device_lock);
    return d;
}

/* The context belongs to librdmacm, which closes it when it next has reason to
 * look at the list of devices, or never (if there is none any more); and having it
 * look, with rdma_get_devices(), opens all other devices and may confuse it
 * (up to version 44 at least it sorts the list by differences of pointers cut
 * to an int; when it has lost all, its next rdma_create_id() waits for itself).
 * So its descriptors become ones that refer to nothing: the kernel takes that for
 * a close, calls that come late fail, and librdmacm can close them when it likes. */
static void let_go(const rdma_cache *cache, const struct ibv_context *context)
{
    (void)dup3(cache->nothing_fd, context->async_fd, O_CLOEXEC);
    (void)dup3(cache->nothing_fd, context->cmd_fd, O_CLOEXEC);
}

static void release(rdma_cache *cache, device *d)
{
    if (d->pool) {
        rdma_mem_pool_destroy(d->pool);
        rdma_mem_reserve(cache->mem, cache->conf.memory / 2);
    }
    if (d->pd) {
        ibv_dealloc_pd(d->pd);
    }
    ibv_destroy_comp_channel(d->channel);
    if (d->guard) {
        ibv_destroy_cq(d->guard);
    }
    /* While the watch holds the context: after it, librdmacm may have freed that,
     * and its descriptors may be somebody else's. */
    if (d->removed) {
        let_go(cache, d->context);
    }
    rdma_destroy_id(d->watch);
}

void rdma_device_free(rdma_cache *cache, device *d)
{
    release(cache, d);
    /* Not before: until here it is one that is removed, and not to be used. */
    pthread_mutex_lock(&cache->device_lock);
    memset(d, 0, sizeof(*d));
    pthread_mutex_unlock(&cache->device_lock);
}

void rdma_device_free_all(rdma_cache *cache)
{
    unsigned i;

    for (i = 0; i < RDMA_CACHE_DEVICES; i++) {
        if (cache->devices[i].context) {
            release(cache, &cache->devices[i]);
        }
    }
}
