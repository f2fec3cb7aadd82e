/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdmahttp.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "route.h"

#define ORIGINS 16 /* that are kept */
#define RETRY   ((rdma_conn_time)10 * 1000000)

/* What is known of an origin. Its lock is taken before rdmahttp's, and held
 * while an endpoint is opened or closed, which takes its time. */
typedef struct origin {
    struct origin *next; /* that, and users, under rdmahttp's lock */
    unsigned users;      /* hops under way */
    char *name;          /* scheme://host:port */
    pthread_mutex_t lock;
    rdmahttp_endpoint *ep;       /* NULL: none could be had */
    char why[RDMAHTTP_TEXT_MAX]; /* then: why, and not to be tried again */
    rdma_conn_time retry;        /* before this */
} origin;

struct rdmahttp {
    rdmahttp_conf conf; /* with all defaults filled in */
    pthread_mutex_t lock;
    origin *origins;         /* the one that was used last comes first */
    rdmahttp_exchange *idle; /* with its kept-alive connections */
};

const char *rdmahttp_path_name(rdmahttp_path path)
{
    return path == RDMAHTTP_BY_WRITE  ? "write"
           : path == RDMAHTTP_BY_READ ? "read"
                                      : "tcp";
}

void rdmahttp_result_clear(rdmahttp_result *result)
{
    free(result->url);
    memset(result, 0, sizeof(*result));
}

/* ---- the client object ------------------------------------------------- */

static int copy_string(const char **where)
{
    if (*where) {
        *where = strdup(*where);
        return *where ? 0 : -1;
    }
    return 0;
}

static void defaults(rdmahttp_conf *conf)
{
    if (conf->window == 0) {
        conf->window = RDMAHTTP_WINDOW;
    }
    if (conf->windows == 0) {
        conf->windows = 1;
    }
    if (conf->timeout_ms == 0) {
        conf->timeout_ms = RDMAHTTP_TIMEOUT_MS;
    }
    if (conf->connections == 0) {
        conf->connections = RDMAHTTP_CONNECTIONS;
    }
    if (conf->port_max < conf->port_min) {
        conf->port_max = conf->port_min;
    }
}

rdmahttp *rdmahttp_create(const rdmahttp_conf *conf)
{
    rdmahttp *h = calloc(1, sizeof(*h));

    if (!h) {
        return NULL;
    }
    pthread_mutex_init(&h->lock, NULL);
    h->conf = *conf;
    defaults(&h->conf);
    if ((copy_string(&h->conf.bind_address) | copy_string(&h->conf.user_agent))
            != 0
        || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        rdmahttp_destroy(h);
        return NULL;
    }
    return h;
}

static void origin_free(origin *o)
{
    if (o->ep) {
        rdmahttp_endpoint_close(o->ep);
    }
    pthread_mutex_destroy(&o->lock);
    free(o->name);
    free(o);
}

void rdmahttp_destroy(rdmahttp *h)
{
    if (h->idle) {
        rdmahttp_exchange_destroy(h->idle);
    }
    while (h->origins) {
        origin *o = h->origins;

        h->origins = o->next;
        origin_free(o);
    }
    free((void *)(uintptr_t)h->conf.bind_address);
    free((void *)(uintptr_t)h->conf.user_agent);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

/* ---- one URL ----------------------------------------------------------- */

typedef struct target {
    char *scheme;
    char *host; /* without brackets */
    char *port;
    char *origin;
} target;

static void target_clear(target *u)
{
    curl_free(u->scheme);
    curl_free(u->host);
    curl_free(u->port);
    free(u->origin);
    memset(u, 0, sizeof(*u));
}

static int target_set(target *u, CURLU *url)
{
    size_t n;

    memset(u, 0, sizeof(*u));
    if (curl_url_get(url, CURLUPART_SCHEME, &u->scheme, 0)
        || curl_url_get(url, CURLUPART_HOST, &u->host, 0)
        || curl_url_get(url, CURLUPART_PORT, &u->port, CURLU_DEFAULT_PORT)
        || (strcmp(u->scheme, "http") != 0
            && strcmp(u->scheme, "https") != 0)) {
        target_clear(u);
        return -1;
    }
    n = strlen(u->host);
    if (u->host[0] == '[' && n > 2) {
        memmove(u->host, u->host + 1, n - 2);
        u->host[n - 2] = '\0';
    }
    n = strlen(u->scheme) + strlen(u->host) + strlen(u->port) + 5;
    u->origin = malloc(n);
    if (!u->origin) {
        target_clear(u);
        return -1;
    }
    snprintf(u->origin, n, "%s://%s:%s", u->scheme, u->host, u->port);
    for (n = 0; u->origin[n]; n++) {
        if (u->origin[n] >= 'A' && u->origin[n] <= 'Z') {
            u->origin[n] = (char)(u->origin[n] - 'A' + 'a');
        }
    }
    return 0;
}

/* ---- origins ----------------------------------------------------------- */

/* [locked] This one, maybe a new one, comes to the front. NULL: no memory. */
static origin *find(rdmahttp *h, const char *name)
{
    origin **link = &h->origins, *o;

    while (*link && strcmp((*link)->name, name) != 0) {
        link = &(*link)->next;
    }
    o = *link;
    if (o) {
        *link = o->next;
    }
    else {
        o = calloc(1, sizeof(*o));
        if (!o || !(o->name = strdup(name))) {
            free(o);
            return NULL;
        }
        pthread_mutex_init(&o->lock, NULL);
    }
    o->next = h->origins;
    h->origins = o;
    return o;
}

/* [locked] If there are too many, take out the one whose last use, which is
 * over, is the longest ago. */
static origin *surplus(rdmahttp *h)
{
    origin **link, **last = NULL, *o;
    unsigned n = 0;

    for (link = &h->origins; *link; link = &(*link)->next) {
        n++;
        if ((*link)->users == 0) {
            last = link;
        }
    }
    if (n <= ORIGINS || !last) {
        return NULL;
    }
    o = *last;
    *last = o->next;
    return o;
}

/* What is known of this origin, for one hop. NULL: out of memory. */
static origin *enter(rdmahttp *h, const char *name)
{
    origin *o, *old;

    pthread_mutex_lock(&h->lock);
    o = find(h, name);
    if (o) {
        o->users++;
    }
    while ((old = surplus(h)) != NULL) {
        pthread_mutex_unlock(&h->lock);
        origin_free(old);
        pthread_mutex_lock(&h->lock);
    }
    pthread_mutex_unlock(&h->lock);
    return o;
}

static void leave(rdmahttp *h, origin *o)
{
    pthread_mutex_lock(&h->lock);
    o->users--;
    pthread_mutex_unlock(&h->lock);
}

/* Nobody else is here, or comes before the origin's lock is free. */
static int is_alone(rdmahttp *h, const origin *o)
{
    int alone;

    pthread_mutex_lock(&h->lock);
    alone = o->users == 1;
    pthread_mutex_unlock(&h->lock);
    return alone;
}

static rdmahttp_exchange *take_exchange(rdmahttp *h)
{
    rdmahttp_exchange *x;

    pthread_mutex_lock(&h->lock);
    x = h->idle;
    h->idle = NULL;
    pthread_mutex_unlock(&h->lock);
    return x ? x : rdmahttp_exchange_create(&h->conf);
}

static void give_exchange(rdmahttp *h, rdmahttp_exchange *x)
{
    pthread_mutex_lock(&h->lock);
    if (!h->idle) {
        h->idle = x;
        x = NULL;
    }
    pthread_mutex_unlock(&h->lock);
    if (x) {
        rdmahttp_exchange_destroy(x);
    }
}

/* ---- one request ------------------------------------------------------- */

typedef struct attempt {
    rdmahttp *h;
    const rdmahttp_sink *sink;
    rdmahttp_result *result;
    char *first_origin;
    target to;      /* of this hop */
    origin *origin; /* NULL: RDMA is out of the question */
    rdmahttp_request rq;
} attempt;

/* [origin locked] */
static void open_endpoint(attempt *a)
{
    struct sockaddr_storage locals[RDMAHTTP_ROUTES];
    const rdmahttp_conf *conf = &a->h->conf;
    origin *o = a->origin;
    char why[RDMAHTTP_TEXT_MAX];
    size_t n, i;

    n = rdmahttp_route_locals(
        a->to.host, a->to.port, conf->bind_address, conf->timeout_ms,
        a->rq.options ? a->rq.options->cancel_fd : 0, locals);
    snprintf(o->why, sizeof(o->why), "no local address for this host");
    for (i = 0; i < n && !o->ep; i++) {
        if (rdmahttp_endpoint_open(conf, &locals[i], &o->ep, why) && i == 0) {
            memcpy(o->why, why, sizeof(o->why));
        }
    }
    o->retry = rdma_conn_now() + RETRY;
}

/* A transfer that was given up before it was bound keeps its window until the
 * endpoint ends. When that leaves none, or the device has gone, and nobody else
 * is here, a new endpoint takes the place. */
static void begin_transfer(attempt *a)
{
    origin *o = a->origin;

    pthread_mutex_lock(&o->lock);
    a->rq.t = o->ep ? rdmahttp_endpoint_begin(o->ep) : NULL;
    if (o->ep && !a->rq.t && is_alone(a->h, o)) {
        rdmahttp_endpoint_close(o->ep);
        o->ep = NULL;
        o->retry = 0;
    }
    if (!o->ep && rdma_conn_now() >= o->retry) {
        open_endpoint(a);
        a->rq.t = o->ep ? rdmahttp_endpoint_begin(o->ep) : NULL;
    }
    a->rq.ep = o->ep;
    if (!a->rq.t) {
        snprintf(a->result->why, RDMAHTTP_TEXT_MAX, "%s",
                 o->ep ? "no window is free" : o->why);
    }
    pthread_mutex_unlock(&o->lock);
}

/* Begin a transfer, if RDMA may be asked for here; else result->why says why. */
static void begin(attempt *a)
{
    char *why = a->result->why;
    const rdmahttp_conf *conf = &a->h->conf;

    a->origin = NULL;
    a->rq.ep = NULL;
    a->rq.t = NULL;
    why[0] = '\0';
    if (conf->mode == RDMAHTTP_OFF) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "RDMA is switched off");
    }
    else if (strcmp(a->to.scheme, "https") == 0 && !conf->over_tls) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "https is encrypted and RDMA is not");
    }
    else if (rdmahttp_route_proxied(a->to.scheme, a->to.host)) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "the environment names a proxy");
    }
    else {
        a->origin = enter(a->h, a->to.origin);
    }
    if (a->origin) {
        begin_transfer(a);
    }
}

/* Can the body come once more from its start? */
static int start_over(attempt *a)
{
    rdmahttp_result *result = a->result;

    if (result->bytes_rdma + result->bytes_tcp > 0
        && (!a->sink->rewind || a->sink->rewind(a->sink->baton))) {
        return -1;
    }
    result->bytes_rdma = result->bytes_tcp = 0;
    return 0;
}

/* One hop: with RDMA, and once more without if need be. */
static rdmahttp_status hop(attempt *a)
{
    rdmahttp_result *result = a->result;
    rdmahttp_status status;
    int again;

    begin(a);
    a->rq.foreign = strcmp(a->first_origin, a->to.origin) != 0;
    status = rdmahttp_request_run(&a->rq, &again);
    if (again && start_over(a) == 0) {
        rdmahttp_log(&a->h->conf, RDMAHTTP_LOG_WARNING,
                     "RDMA failed: %s; asking again without", a->rq.why);
        snprintf(result->why, sizeof(result->why), "RDMA failed: %.200s",
                 a->rq.why);
        result->path = RDMAHTTP_BY_TCP;
        result->message[0] = '\0';
        status = rdmahttp_request_run(&a->rq, &again);
    }
    if (a->origin) {
        leave(a->h, a->origin);
    }
    return status;
}

/* Follow the redirect: a new result->url. */
static rdmahttp_status turn(attempt *a, CURLU *url)
{
    rdmahttp_result *result = a->result;
    char *next, *copy;

    if (curl_url_set(url, CURLUPART_URL, a->rq.location, CURLU_URLENCODE)
        || curl_url_get(url, CURLUPART_URL, &next, 0)) {
        snprintf(result->message, sizeof(result->message),
                 "the server redirects to no valid URL");
        return RDMAHTTP_EPROTOCOL;
    }
    copy = strdup(next);
    curl_free(next);
    free(result->url);
    result->url = copy;
    result->redirects++;
    rdmahttp_log(&a->h->conf, RDMAHTTP_LOG_INFO, "redirected to %s",
                 result->url ? result->url : "?");
    return result->url ? RDMAHTTP_OK : RDMAHTTP_EMEMORY;
}

static rdmahttp_status hops(attempt *a, CURLU *url)
{
    rdmahttp_result *result = a->result;
    rdmahttp_status status;

    do {
        target_clear(&a->to);
        if (target_set(&a->to, url)) {
            snprintf(result->message, sizeof(result->message),
                     "not an http or https URL");
            status = RDMAHTTP_EUSAGE;
            break;
        }
        if (!a->first_origin) {
            a->first_origin = strdup(a->to.origin);
            if (!a->first_origin) {
                return RDMAHTTP_EMEMORY;
            }
        }
        status = hop(a);
        if (status != RDMAHTTP_OK || !a->rq.location) {
            break;
        }
        status = turn(a, url);
    } while (status == RDMAHTTP_OK);
    /* A URL that is no good is the caller's, or the server's that redirects. */
    return status == RDMAHTTP_EUSAGE && result->redirects ? RDMAHTTP_EPROTOCOL
                                                          : status;
}

rdmahttp_status rdmahttp_get(rdmahttp *h, const char *url,
                             const rdmahttp_options *options,
                             const rdmahttp_sink *sink, rdmahttp_result *result)
{
    attempt a = {.h = h,
                 .sink = sink,
                 .result = result,
                 .rq = {.conf = &h->conf,
                        .options = options,
                        .sink = sink,
                        .result = result}};
    rdmahttp_status status = RDMAHTTP_EMEMORY;
    CURLU *u = curl_url();

    memset(result, 0, sizeof(*result));
    a.rq.x = take_exchange(h);
    result->url = strdup(url);
    if (!u || !a.rq.x || !result->url) {
        snprintf(result->message, sizeof(result->message), "out of memory");
    }
    else if (curl_url_set(u, CURLUPART_URL, url, CURLU_GUESS_SCHEME)) {
        snprintf(result->message, sizeof(result->message), "not a valid URL");
        status = RDMAHTTP_EUSAGE;
    }
    else {
        status = hops(&a, u);
    }
    if (a.rq.x) {
        give_exchange(h, a.rq.x);
    }
    curl_url_cleanup(u);
    target_clear(&a.to);
    free(a.first_origin);
    free(a.rq.location);
    return status;
}
