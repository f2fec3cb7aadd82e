/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a child's cache, for the files that share it: rdma_cache.c (what
 * workers call, slots, limits, start and stop), rdma_endpoint.c (whom we know),
 * rdma_connector.c (making connections), rdma_progress.c (the other threads) and
 * rdma_device.c (what is kept per device). Nobody else includes this.
 */
#ifndef RDMA_CACHE_PRIVATE_H
#define RDMA_CACHE_PRIVATE_H

#include <poll.h>
#include <pthread.h>
#include <signal.h>

#include <apr_hash.h>
#include <apr_ring.h>

#include "rdma_cache.h"

#define RDMA_CACHE_CONNECTORS  8
#define RDMA_CACHE_PER_CLIENT  4 /* connects in flight to one address */
#define RDMA_CACHE_SUSPECTS    4 /* ... to all that did not answer last time */
#define RDMA_CACHE_STRANGERS   6 /* ... to all that have never answered */
#define RDMA_CACHE_DEVICES     16
#define RDMA_CACHE_IDS         1024  /* behind the newest that are remembered */
#define RDMA_CACHE_RUN         64    /* of them in one piece of memory */
#define RDMA_CACHE_RUNS        (RDMA_CACHE_IDS / RDMA_CACHE_RUN)
#define RDMA_CACHE_ENDPOINTS   8192  /* that are remembered */
#define RDMA_CACHE_MEMORY      600000000 /* us: for how long, after their use */
#define RDMA_CACHE_KICK        50000 /* us: until a cancelled connect returned */
#define RDMA_CACHE_KICK_SIGNAL (SIGRTMIN + 4)

enum { LEVEL_ERR = 3, LEVEL_WARNING = 4, LEVEL_INFO = 6, LEVEL_DEBUG = 7 };

/* Ids of our lines in the error log; docs/MESSAGES.md explains them. */
enum {
    MSG_CONNECTION = 50,     /* RDMA0050 a line about one connection */
    MSG_BODY = 51,           /* RDMA0051 a line about one body */
    MSG_CONNECT_FAILED = 52, /* RDMA0052 */
    MSG_NO_RESOURCES = 53,   /* RDMA0053 */
    MSG_POOL_SMALL = 54,     /* RDMA0054 */
    MSG_THREADS = 55,        /* RDMA0055 */
    MSG_STUCK = 56,          /* RDMA0056 */
    MSG_DEVICE = 57,         /* RDMA0057 */
    MSG_SLOT = 58            /* RDMA0058 a slot's state */
};

typedef struct client_key {
    uint8_t addr[16];
    uint32_t scope;
    uint32_t family;
} client_key;

/* An address; known as long as one of its endpoints is. */
typedef struct client {
    client_key key;
    unsigned endpoints;
    unsigned connecting; /* slots CONNECTING */
    int suspect;         /* its last connect was not answered at all */
    int known;           /* one has been answered, ever */
    size_t arenas;       /* bytes, of all its connections; atomic */
    size_t blocks;       /* the same, of the pools */
} client;

typedef struct endpoint_key {
    client_key client;
    uint32_t port; /* in network order */
    uint8_t token[RDMA_HDR_TOKEN_LEN];
} endpoint_key;

typedef struct endpoint {
    APR_RING_ENTRY(endpoint) link; /* the cache's ring, last used last */
    endpoint_key key;
    client *client;
    rdma_cache_slot *current[2]; /* by kind - 1; NULL: not connected */
    rdma_conn_time retry_at[2];
    rdma_conn_time backoff[2];
    rdma_hdr_declined failure[2]; /* until then */
    rdma_conn_time used;
    unsigned slots; /* that point to us, current or not */
    uint32_t newest;
    /* The connection that an id was first asked for on, or 0; in runs of ids, the
     * first of them at each RDMA_CACHE_IDS. NULL: none of a run has been used. */
    uint32_t *ran_on[RDMA_CACHE_RUNS];
} endpoint;

/* QUEUED -> CONNECTING (a connector has it) -> READY -> DEAD, where the undertaker
 * finds it; DEAD from anywhere. NEW only while it is made. */
typedef enum slot_state { NEW, QUEUED, CONNECTING, READY, DEAD } slot_state;

struct device;

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
    int acquired;            /* by one at least, ever */
    rdma_conn_time deadline; /* of the queue, then of the connect */
    int at_pool; /* its connector makes, or waits for, the pool: no deadline */
    rdma_conn_time used;
    rdma_hdr_declined failure; /* DEAD before it was READY */
    rdma_conn_time nudge_at;   /* READY, until the client has spoken */
    rdma_conn_time nudge_after;
    pthread_t connector;
    int hung_up;
    struct device *device; /* under device_lock while connecting */

    int cancel; /* atomic: the connect is given up */
    rdma_conn *conn;
    rdma_body_set *set; /* made in opened(), under the connection's lock */
    rdma_conn_time asked_at; /* when it was silent; under that lock, too */
};

typedef struct device {
    struct ibv_context *context; /* NULL: a free entry */
    struct ibv_pd *pd;           /* write kind: no remote rights in it */
    rdma_mem_pool *pool;
    int pool_coming;   /* a connector registers it, unlocked */
    int pool_was_said; /* that there is none, or a small one */
    struct ibv_comp_channel *channel;
    struct ibv_cq *guard; /* see rdma_siw */
    struct rdma_cm_id *watch;
    unsigned users; /* slots */
    int removed;    /* nobody is to use it any more */
    int unpolled;   /* removed, no users, and the progress thread has left it */
    int broken;     /* its channel will say nothing more: not to be polled */
} device;

struct rdma_cache {
    rdma_cache_conf conf;
    apr_pool_t *pool; /* nobody's child: threads may outlive the child's pool */
    apr_hash_t *endpoints; /* endpoint_key -> endpoint */
    apr_hash_t *clients;   /* client_key -> client */
    rdma_mem *mem;
    struct rdma_event_channel *events;
    int wake_fd;
    int nothing_fd; /* for rdma_device.c, when there may be none left */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a slot's state; monotonic clock */
    pthread_cond_t queued;  /* work for connectors */
    pthread_cond_t died;    /* work for the undertaker */
    APR_RING_HEAD(endpoint_ring, endpoint) all_endpoints;
    unsigned nendpoints;
    rdma_cache_slot *slots;
    unsigned burials; /* slots that are off the list and not yet freed */
    unsigned streams;        /* workers that are held by a client; atomic */
    rdma_conn_time retry_at; /* nobody connects before: we lack resources */
    int started;
    int refused;  /* threads could not be started: nothing by RDMA */
    int stopping; /* 1 graceful, 2 now; also read atomically without */
    int quit;
    pthread_t progress;
    pthread_t undertaker;
    pthread_t connectors[RDMA_CACHE_CONNECTORS];
    unsigned nconnectors;
    int has_undertaker;

    rdma_conn_time next_scan; /* atomic */

    pthread_mutex_t device_lock; /* a leaf */
    pthread_cond_t pool_came;    /* or failed to */
    device devices[RDMA_CACHE_DEVICES];
};

/* One line for the log. */
void rdma_cache_say(const rdma_cache *cache, int level, int id, const char *fmt,
                    ...) __attribute__((format(printf, 4, 5)));

/* The progress thread is to scan at `when` at the latest. Any lock may be
 * held. */
void rdma_cache_remind(rdma_cache *cache, rdma_conn_time when);
void rdma_cache_wake(rdma_cache *cache);

/* [cache locked] The only place where a slot's state changes, is counted and
 * logged. */
void rdma_slot_transit(rdma_cache_slot *slot, slot_state to, const char *why);

/* [cache locked] A slot that will never be, or no longer is, of use. The
 * undertaker hangs up, and takes it apart when no worker holds it. */
void rdma_slot_bury(rdma_cache_slot *slot, rdma_hdr_declined declined,
                    const char *why);

/* [cache and connection locked] READY: since when it has been idle, if it is. */
rdma_conn_time rdma_slot_idle_since(const rdma_cache_slot *slot);

/* ---- rdma_endpoint.c: all [cache locked] -------------------------------- */

/* The endpoint that this names, made if need be, used now. NULL: no memory. */
endpoint *rdma_endpoint_get(rdma_cache *cache, const rdma_cache_target *t);
void rdma_endpoint_touch(rdma_cache *cache, endpoint *ep);

/* Forget those that nobody has used for a while: which ids they have used, and
 * that they could not be reached. */
void rdma_endpoint_forget(rdma_cache *cache, rdma_conn_time now,
                          rdma_conn_time *next);
void rdma_endpoint_forget_all(rdma_cache *cache);

/* Leave it alone for a while: for a longer one each time, or (soon) a short one. */
void rdma_endpoint_back_off(endpoint *ep, rdma_hdr_kind kind,
                            rdma_hdr_declined why, int soon);
void rdma_endpoint_has_answered(endpoint *ep, rdma_hdr_kind kind);

/* ---- rdma_connector.c -------------------------------------------------- */

void *rdma_connector_main(void *cache);

/* ---- rdma_device.c ----------------------------------------------------- */

/* Of rdma_conn_conf; the baton is a slot, which uses the device from now on. */
struct ibv_comp_channel *rdma_device_channel(void *baton,
                                             struct rdma_cm_id *id);
struct ibv_pd *rdma_device_domain(void *baton, struct rdma_cm_id *id);
/* The pool that the domain came with, or NULL. */
rdma_mem_pool *rdma_device_pool(rdma_cache_slot *slot);
/* The slot has no connection any more. */
void rdma_device_unuse(rdma_cache_slot *slot);
/* The slot's connect has met a device that is being removed. */
void rdma_device_is_leaving(rdma_cache_slot *slot);

/* The progress thread: what it is to poll, RDMA_CACHE_DEVICES at most. Returns
 * how many; *left: the undertaker is to be told of a device. */
unsigned rdma_device_poll_set(rdma_cache *cache, struct pollfd *fds,
                              struct ibv_comp_channel *channels[], int *left);
/* ... has seen an error on this channel: it would for ever. */
void rdma_device_is_broken(rdma_cache *cache,
                           const struct ibv_comp_channel *channel);
/* 1: the event was a device's, no connection's. */
int rdma_device_event(rdma_cache *cache, const struct rdma_cm_event *event);

/* The undertaker: one that is removed and that nobody uses, or NULL. */
device *rdma_device_next_removed(rdma_cache *cache);
void rdma_device_free(rdma_cache *cache, device *d);

/* All threads have ended. */
void rdma_device_free_all(rdma_cache *cache);

/* ---- rdma_progress.c --------------------------------------------------- */

/* [cache locked] 0, or -1: this child serves over TCP (it has been said). */
int rdma_progress_start(rdma_cache *cache);
/* cache->quit is set. Waits for all threads. */
void rdma_progress_join(rdma_cache *cache);

#endif /* RDMA_CACHE_PRIVATE_H */
