/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Whom a child knows: endpoints, with the ids that they have used, and the
 * clients (addresses) that they belong to, with what is counted per client.
 */
#include "rdma_cache_private.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#define BACKOFF_FIRST 10000000 /* microseconds */
#define BACKOFF_MOST  300000000
#define BACKOFF_SOON  1000000

/* ---- keys -------------------------------------------------------------- */

static void make_key(const rdma_cache_target *t, endpoint_key *key)
{
    memset(key, 0, sizeof(*key));
    memcpy(key->token, t->token, sizeof(key->token));
    key->client.family = t->remote.ss_family;
    if (t->remote.ss_family == AF_INET6) {
        struct sockaddr_in6 in6;

        memcpy(&in6, &t->remote, sizeof(in6));
        memcpy(key->client.addr, &in6.sin6_addr, sizeof(in6.sin6_addr));
        key->client.scope = in6.sin6_scope_id;
        key->port = in6.sin6_port;
    }
    else {
        struct sockaddr_in in4;

        memcpy(&in4, &t->remote, sizeof(in4));
        memcpy(key->client.addr, &in4.sin_addr, sizeof(in4.sin_addr));
        key->port = in4.sin_port;
    }
}

/* ---- clients ----------------------------------------------------------- */

/* [cache locked] For one endpoint more. NULL: no memory. */
static client *hold_client(rdma_cache *cache, const client_key *key)
{
    client *who = apr_hash_get(cache->clients, key, sizeof(*key));

    if (!who) {
        who = calloc(1, sizeof(*who));
        if (!who) {
            return NULL;
        }
        who->key = *key;
        apr_hash_set(cache->clients, &who->key, sizeof(who->key), who);
    }
    who->endpoints++;
    return who;
}

/* [cache locked] For one endpoint less: the last one takes it along. */
static void drop_client(rdma_cache *cache, client *who)
{
    if (--who->endpoints == 0) {
        apr_hash_set(cache->clients, &who->key, sizeof(who->key), NULL);
        free(who);
    }
}

/* ---- endpoints --------------------------------------------------------- */

static void forget(rdma_cache *cache, endpoint *ep)
{
    unsigned i;

    apr_hash_set(cache->endpoints, &ep->key, sizeof(ep->key), NULL);
    APR_RING_REMOVE(ep, link);
    cache->nendpoints--;
    drop_client(cache, ep->client);
    for (i = 0; i < RDMA_CACHE_RUNS; i++) {
        free(ep->ran_on[i]);
    }
    free(ep);
}

void rdma_endpoint_forget_all(rdma_cache *cache)
{
    endpoint *ep = APR_RING_FIRST(&cache->all_endpoints);

    while (ep != APR_RING_SENTINEL(&cache->all_endpoints, endpoint, link)) {
        endpoint *later = APR_RING_NEXT(ep, link);

        forget(cache, ep);
        ep = later;
    }
}

void rdma_endpoint_forget(rdma_cache *cache, rdma_conn_time now,
                          rdma_conn_time *next)
{
    endpoint *ep = APR_RING_FIRST(&cache->all_endpoints);

    while (ep != APR_RING_SENTINEL(&cache->all_endpoints, endpoint, link)) {
        endpoint *later = APR_RING_NEXT(ep, link);
        rdma_conn_time until = ep->used + RDMA_CACHE_MEMORY;

        if (ep->slots == 0 && now >= until) {
            forget(cache, ep);
        }
        else if (now < until) { /* and so are all after it */
            *next = until < *next ? until : *next;
            return;
        }
        ep = later;
    }
}

/* [cache locked] One more: the one that was used least recently makes room. */
static endpoint *add_endpoint(rdma_cache *cache, const endpoint_key *key)
{
    endpoint *ep = APR_RING_FIRST(&cache->all_endpoints);

    while (cache->nendpoints >= RDMA_CACHE_ENDPOINTS
           && ep != APR_RING_SENTINEL(&cache->all_endpoints, endpoint, link)) {
        endpoint *later = APR_RING_NEXT(ep, link);

        if (ep->slots == 0) {
            forget(cache, ep);
        }
        ep = later;
    }
    ep = calloc(1, sizeof(*ep));
    if (!ep) {
        return NULL;
    }
    ep->key = *key;
    ep->client = hold_client(cache, &key->client);
    if (!ep->client) {
        free(ep);
        return NULL;
    }
    APR_RING_INSERT_TAIL(&cache->all_endpoints, ep, endpoint, link);
    cache->nendpoints++;
    apr_hash_set(cache->endpoints, &ep->key, sizeof(ep->key), ep);
    return ep;
}

void rdma_endpoint_touch(rdma_cache *cache, endpoint *ep)
{
    ep->used = rdma_conn_now();
    APR_RING_REMOVE(ep, link);
    APR_RING_INSERT_TAIL(&cache->all_endpoints, ep, endpoint, link);
}

endpoint *rdma_endpoint_get(rdma_cache *cache, const rdma_cache_target *t)
{
    endpoint_key key;
    endpoint *ep;

    make_key(t, &key);
    ep = apr_hash_get(cache->endpoints, &key, sizeof(key));
    if (!ep) {
        ep = add_endpoint(cache, &key);
    }
    if (ep) {
        rdma_endpoint_touch(cache, ep);
    }
    return ep;
}

/* ---- back-off ---------------------------------------------------------- */

void rdma_endpoint_back_off(endpoint *ep, rdma_hdr_kind kind,
                            rdma_hdr_declined why, int soon)
{
    unsigned k = kind - 1u;
    rdma_conn_time *after = &ep->backoff[k];

    if (!soon) {
        *after = *after == 0 ? BACKOFF_FIRST : *after * 2;
        *after = *after > BACKOFF_MOST ? BACKOFF_MOST : *after;
    }
    ep->retry_at[k] = rdma_conn_now() + (soon ? BACKOFF_SOON : *after);
    ep->failure[k] = why;
}

void rdma_endpoint_has_answered(endpoint *ep, rdma_hdr_kind kind)
{
    ep->backoff[kind - 1u] = 0;
    ep->client->suspect = 0;
    ep->client->known = 1;
}

/* ---- ids --------------------------------------------------------------- */

/* [cache locked] The connection on which this id is not closed, or 0. */
static uint32_t runs_on(const endpoint *ep, uint32_t id)
{
    uint32_t conn = 0;
    int k;

    for (k = 0; k < 2; k++) {
        const rdma_cache_slot *s = ep->current[k];

        if (s && s->state == READY) {
            rdma_conn_lock(s->conn);
            if (rdma_body_set_has(s->set, id)) {
                conn = rdma_conn_number(s->conn);
            }
            rdma_conn_unlock(s->conn);
        }
    }
    return conn;
}

/* [cache locked] Where it is written down on which connection it ran, or NULL. */
static uint32_t *place_of(const endpoint *ep, uint32_t id)
{
    uint32_t *run = ep->ran_on[id / RDMA_CACHE_RUN % RDMA_CACHE_RUNS];

    return run ? &run[id % RDMA_CACHE_RUN] : NULL;
}

/* [cache locked] Make id the newest; what falls out of the window is
 * forgotten. */
static void advance_ids(endpoint *ep, uint32_t id)
{
    uint32_t n = id - ep->newest < RDMA_CACHE_IDS ? id - ep->newest
                                                  : RDMA_CACHE_IDS;

    for (ep->newest = id; n > 0; n--, id--) {
        uint32_t *on = place_of(ep, id);

        if (on) {
            *on = 0;
        }
    }
}

/* [cache locked] 1: it is on this connection that it runs. Else *before: where
 * it has run, whatever has become of it: its body may not be open yet, and WRITEs
 * may arrive late from a connection that is CLOSED. */
static int use_id(endpoint *ep, uint32_t id, uint32_t conn, uint32_t *before)
{
    uint32_t **run = &ep->ran_on[id / RDMA_CACHE_RUN % RDMA_CACHE_RUNS];
    uint32_t *on;

    if (!*run) {
        *run = calloc(RDMA_CACHE_RUN, sizeof(**run));
    }
    if (!*run) { /* it is not run, and nothing posted for it */
        return 0;
    }
    if (id > ep->newest) {
        advance_ids(ep, id);
    }
    if (ep->newest - id >= RDMA_CACHE_IDS) { /* forgotten */
        *before = runs_on(ep, id);
        return 0;
    }
    on = place_of(ep, id);
    *before = *on;
    if (*on == 0) {
        *on = conn;
    }
    return *before == 0;
}

int rdma_cache_use_id(rdma_cache_slot *slot, uint32_t id, uint32_t *conn)
{
    rdma_cache *cache = slot->cache;
    int first;

    *conn = 0;
    pthread_mutex_lock(&cache->lock);
    first = use_id(slot->ep, id, rdma_conn_number(slot->conn), conn);
    pthread_mutex_unlock(&cache->lock);
    return first;
}
