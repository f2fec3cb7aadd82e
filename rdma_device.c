/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a child keeps of each device: the write kind's protection domain with
 * its pool, and the channel of receive completions.
 */
#include "rdma_cache_private.h"
#include "rdma_siw.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

device *rdma_device_get(rdma_cache *cache, struct ibv_context *context)
{
    device *d = NULL;
    unsigned i;

    pthread_mutex_lock(&cache->device_lock);
    for (i = 0; i < cache->ndevices && !d; i++) {
        if (cache->devices[i].context == context) {
            d = &cache->devices[i];
        }
    }
    if (!d && cache->ndevices < RDMA_CACHE_DEVICES) {
        struct ibv_comp_channel *channel = ibv_create_comp_channel(context);

        if (channel && fcntl(channel->fd, F_SETFL, O_NONBLOCK) == 0) {
            d = &cache->devices[cache->ndevices++];
            d->context = context;
            d->channel = channel;
            d->guard = rdma_siw_guard(context);
        }
        else if (channel) {
            ibv_destroy_comp_channel(channel);
        }
    }
    pthread_mutex_unlock(&cache->device_lock);
    if (d) {
        rdma_cache_wake(cache); /* one more channel to listen to */
    }
    return d;
}

struct ibv_comp_channel *rdma_device_channel(void *baton,
                                             struct ibv_context *context)
{
    rdma_cache_slot *slot = baton;
    device *d = rdma_device_get(slot->cache, context);

    return d ? d->channel : NULL;
}

/* The write kind's domain with its pool: registered by a connector thread when
 * the first client comes, never by a worker. Half of the budget, so that the
 * read kind's arenas have the other half. */
struct ibv_pd *rdma_device_domain(void *baton, struct ibv_context *context)
{
    rdma_cache_slot *slot = baton;
    rdma_cache *cache = slot->cache;
    device *d = rdma_device_get(cache, context);
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
            rdma_cache_say(
                cache, LEVEL_WARNING, MSG_POOL_SMALL,
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

void rdma_device_free_all(rdma_cache *cache)
{
    while (cache->ndevices > 0) {
        device *d = &cache->devices[--cache->ndevices];

        rdma_mem_pool_destroy(d->pool);
        if (d->pd) {
            ibv_dealloc_pd(d->pd);
        }
        ibv_destroy_comp_channel(d->channel);
        if (d->guard) {
            ibv_destroy_cq(d->guard);
        }
    }
}
