/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdmahttp.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "endpoint.h"
#include "exchange.h"
#include "route.h"

#define REDIRECTS 20

/* What is known of an origin. */
typedef struct origin {
    struct origin *next;
    char *name;                  /* scheme://host:port */
    unsigned users;              /* hops under way */
    rdmahttp_endpoint *ep;       /* NULL: none can be had */
    char why[RDMAHTTP_TEXT_MAX]; /* then */
} origin;

struct rdmahttp {
    rdmahttp_conf conf; /* with all defaults filled in */
    pthread_mutex_t lock;
    origin *origins;
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

void rdmahttp_destroy(rdmahttp *h)
{
    if (h->idle) {
        rdmahttp_exchange_destroy(h->idle);
    }
    while (h->origins) {
        origin *o = h->origins;

        h->origins = o->next;
        if (o->ep) {
            rdmahttp_endpoint_close(o->ep);
        }
        free(o->name);
        free(o);
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

/* ---- endpoints --------------------------------------------------------- */

static void open_endpoint(rdmahttp *h, const target *u, origin *o)
{
    struct sockaddr_storage locals[RDMAHTTP_ROUTES];
    char why[RDMAHTTP_TEXT_MAX];
    size_t n =
        rdmahttp_route_locals(u->host, u->port, h->conf.bind_address, locals);
    size_t i;

    snprintf(o->why, sizeof(o->why), "no local address for this host");
    for (i = 0; i < n && !o->ep; i++) {
        if (rdmahttp_endpoint_open(&h->conf, &locals[i], &o->ep, why)
            && i == 0) {
            memcpy(o->why, why, sizeof(o->why));
        }
    }
}

/* What is known of this origin, for one hop. NULL: out of memory. */
static origin *enter(rdmahttp *h, const target *u)
{
    origin *o;

    pthread_mutex_lock(&h->lock);
    for (o = h->origins; o && strcmp(o->name, u->origin) != 0; o = o->next) {
    }
    if (!o) {
        o = calloc(1, sizeof(*o));
        if (o) {
            o->name = strdup(u->origin);
        }
        if (!o || !o->name) {
            free(o);
            pthread_mutex_unlock(&h->lock);
            return NULL;
        }
        open_endpoint(h, u, o);
        o->next = h->origins;
        h->origins = o;
    }
    o->users++;
    pthread_mutex_unlock(&h->lock);
    return o;
}

static void leave(rdmahttp *h, origin *o)
{
    pthread_mutex_lock(&h->lock);
    o->users--;
    pthread_mutex_unlock(&h->lock);
}

/* A transfer that was given up before it was bound keeps its window until the
 * endpoint ends. When that leaves none, and nobody else is here, a new endpoint
 * takes the place. */
static rdmahttp_transfer *begin_transfer(rdmahttp *h, const target *u,
                                         origin *o)
{
    rdmahttp_transfer *t = rdmahttp_endpoint_begin(o->ep);

    if (t) {
        return t;
    }
    pthread_mutex_lock(&h->lock);
    if (o->users == 1) {
        rdmahttp_endpoint_close(o->ep);
        o->ep = NULL;
        open_endpoint(h, u, o);
        t = o->ep ? rdmahttp_endpoint_begin(o->ep) : NULL;
    }
    pthread_mutex_unlock(&h->lock);
    return t;
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

typedef enum verdict {
    NO_HEAD,
    BY_TCP,
    BY_RDMA,
    FAILED /* the head is no answer: see attempt.why */
} verdict;

typedef struct attempt {
    rdmahttp *h;
    const rdmahttp_options *options;
    const rdmahttp_sink *sink;
    rdmahttp_result *result;
    rdmahttp_exchange *x;
    char *first_origin;

    /* this hop */
    target to;
    char *location; /* of a redirect that we follow */

    /* this request */
    origin *origin; /* NULL: RDMA is out of the question */
    rdmahttp_endpoint *ep;
    rdmahttp_transfer *t; /* NULL: without the field */
    verdict verdict;
    int drop;      /* the body is not wanted */
    int sink_said; /* the sink has stopped it */
    char why[RDMAHTTP_TEXT_MAX];
} attempt;

static int fail(attempt *a, const char *why)
{
    if (a->t) {
        rdmahttp_endpoint_give_up(a->ep, a->t, RDMA_HDR_ABORT_CONTENT, why);
    }
    snprintf(a->why, sizeof(a->why), "%s", why);
    a->verdict = FAILED;
    return -1;
}

static int by_tcp(attempt *a, const char *why)
{
    if (a->t) {
        rdmahttp_endpoint_declined(a->ep, a->t);
    }
    if (why) {
        snprintf(a->result->why, sizeof(a->result->why), "%s", why);
    }
    a->result->path = RDMAHTTP_BY_TCP;
    a->verdict = BY_TCP;
    return 0;
}

static int declined(attempt *a, const rdma_hdr_response *resp)
{
    char why[RDMAHTTP_TEXT_MAX];

    a->result->declined = rdma_hdr_declined_name(resp->declined);
    snprintf(why, sizeof(why), "server declined: %s", a->result->declined);
    return by_tcp(a, why);
}

/* A head of form W or R. */
static int by_rdma(attempt *a, const rdmahttp_head *head,
                   const rdma_hdr_response *resp)
{
    rdmahttp_result *result = a->result;

    if (resp->kind != a->t->offered[0] && resp->kind != a->t->offered[1]) {
        return fail(a, "the answer uses a mode that was not offered");
    }
    if (head->chunked || !head->has_length || head->length != 0) {
        return fail(a, head->chunked ? "the server streams, which this client "
                                       "cannot take yet"
                                     : "the answer by RDMA has a body too");
    }
    if ((resp->kind == RDMA_HDR_WRITE && !resp->has_total)
        || (resp->kind == RDMA_HDR_READ && !resp->fin) || head->status == 204
        || head->status == 304) {
        return fail(a, "the RDMA field does not fit the answer");
    }
    if (rdmahttp_endpoint_head(a->ep, a->t, resp)) {
        return fail(a, a->t->why);
    }
    result->path =
        resp->kind == RDMA_HDR_WRITE ? RDMAHTTP_BY_WRITE : RDMAHTTP_BY_READ;
    result->why[0] = '\0';
    result->has_length = 1;
    result->length = resp->kind == RDMA_HDR_WRITE ? resp->total : resp->len;
    a->verdict = BY_RDMA;
    return 0;
}

/* PROTOCOL.md, 4.3. 0, or -1: the head is no answer. */
static int judge(attempt *a, const rdmahttp_head *head)
{
    rdma_hdr_response resp;

    if (!head->rdma) {
        if (!a->t) {
            return by_tcp(a, NULL);
        }
        return by_tcp(a, head->has_length && head->length == 0
                             ? "there is no body to move"
                             : "the server did not offer RDMA");
    }
    if (!head->nominated || !head->http11
        || rdma_hdr_parse_response(head->rdma, head->rdma_len, &resp)
               != RDMA_HDR_OK) {
        return a->t || head->length == 0
                   ? fail(a, "the RDMA field of the answer is malformed")
                   : by_tcp(a, NULL);
    }
    if (!a->t) {
        return resp.declined != RDMA_HDR_NOT_DECLINED
                   ? by_tcp(a, NULL)
                   : fail(a, "an answer by RDMA that nobody asked for");
    }
    if (resp.id != a->t->id && resp.id != 0) {
        return fail(a, "the answer has the id of another request");
    }
    if (resp.conn != 0 && rdmahttp_endpoint_bind(a->ep, a->t, resp.conn)) {
        return fail(a, "the answer names an unknown RDMA connection");
    }
    return resp.declined != RDMA_HDR_NOT_DECLINED ? declined(a, &resp)
                                                  : by_rdma(a, head, &resp);
}

static int follows(const attempt *a, const rdmahttp_head *head)
{
    long s = head->status;

    return head->location && a->result->redirects < REDIRECTS
           && (s == 301 || s == 302 || s == 303 || s == 307 || s == 308);
}

static int on_head(void *baton, const rdmahttp_head *head)
{
    attempt *a = baton;
    rdmahttp_result *result = a->result;
    int rc;

    result->http = head->status;
    result->has_length = head->has_length;
    result->length = head->length;
    if (judge(a, head)) {
        return -1;
    }
    if (follows(a, head)) {
        a->drop = 1;
        free(a->location);
        a->location = strdup(head->location);
        return a->location ? 0 : -1;
    }
    rc = a->sink->head ? a->sink->head(a->sink->baton, result) : 0;
    a->drop = rc > 0;
    a->sink_said = rc < 0;
    return rc < 0 ? -1 : 0;
}

static int to_sink(attempt *a, const void *bytes, size_t n, uint64_t *count)
{
    if (a->drop) {
        return 0;
    }
    if (a->sink->write(a->sink->baton, bytes, n)) {
        a->sink_said = 1;
        return -1;
    }
    *count += n;
    return 0;
}

static int on_body(void *baton, const void *bytes, size_t n)
{
    attempt *a = baton;

    if (a->verdict != BY_TCP) {
        return fail(a, "the answer by RDMA has a body too");
    }
    return to_sink(a, bytes, n, &a->result->bytes_tcp);
}

static int on_rdma(void *baton, const void *bytes, size_t n)
{
    attempt *a = baton;

    return to_sink(a, bytes, n, &a->result->bytes_rdma);
}

static void on_connected(void *baton, const char *address)
{
    const attempt *a = baton;

    if (a->ep) {
        rdmahttp_endpoint_expect(a->ep, address);
    }
}

/* Begin a transfer, if RDMA may be asked for here; else result->why says why. */
static void begin(attempt *a)
{
    char *why = a->result->why;
    const rdmahttp_conf *conf = &a->h->conf;

    a->origin = NULL;
    a->ep = NULL;
    a->t = NULL;
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
        a->origin = enter(a->h, &a->to);
    }
    if (!a->origin) {
        return;
    }
    if (a->origin->ep) {
        a->t = begin_transfer(a->h, &a->to, a->origin);
        a->ep = a->origin->ep;
    }
    if (!a->t) {
        snprintf(why, RDMAHTTP_TEXT_MAX, "%s",
                 a->ep ? "no window is free" : a->origin->why);
    }
}

static rdmahttp_outcome ask(attempt *a, char *message)
{
    char field[RDMA_HDR_FORMAT_MAX], masked[RDMA_HDR_FORMAT_MAX];
    rdmahttp_ask what = {.url = a->result->url,
                         .address = a->h->conf.bind_address,
                         .headers = a->options ? a->options->headers : NULL,
                         .connected = on_connected,
                         .head = on_head,
                         .body = on_body,
                         .baton = a};

    if (a->t && rdmahttp_endpoint_field(a->ep, a->t, field, masked) == 0) {
        what.field = field;
        what.masked = masked;
        what.no_proxy = 1;
        what.address = rdmahttp_endpoint_address(a->ep);
    }
    if (what.address) {
        what.family = strchr(what.address, ':') ? AF_INET6 : AF_INET;
    }
    what.keep_private = strcmp(a->first_origin, a->to.origin) != 0;
    a->verdict = NO_HEAD;
    a->drop = a->sink_said = 0;
    a->why[0] = '\0';
    a->result->attempts++;
    a->result->http = 0;
    a->result->has_length = 0;
    a->result->declined = NULL;
    free(a->location);
    a->location = NULL;
    return rdmahttp_exchange_run(a->x, &what, message);
}

static rdmahttp_status status_of(rdmahttp_outcome out)
{
    switch (out) {
    case RDMAHTTP_HTTP_OK:
        return RDMAHTTP_OK;
    case RDMAHTTP_HTTP_TLS:
        return RDMAHTTP_ETLS;
    case RDMAHTTP_HTTP_BROKEN:
        return RDMAHTTP_EPROTOCOL;
    case RDMAHTTP_HTTP_USAGE:
        return RDMAHTTP_EUSAGE;
    case RDMAHTTP_HTTP_MEMORY:
        return RDMAHTTP_EMEMORY;
    default:
        return RDMAHTTP_ENETWORK;
    }
}

/* One request. *again: RDMA has failed, and asking without it may help; then
 * a->why says what was. */
static rdmahttp_status run_once(attempt *a, int *again)
{
    char *message = a->result->message;
    rdmahttp_outcome out = ask(a, message);
    rdmahttp_status status = status_of(out);
    int rc;

    *again = 0;
    if (a->verdict == BY_RDMA && out == RDMAHTTP_HTTP_OK) {
        rc = rdmahttp_endpoint_take(a->ep, a->t, on_rdma, a);
        if (rc == -1) {
            fail(a, a->t->why);
        }
    }
    if (a->sink_said) {
        status = RDMAHTTP_ESINK;
        snprintf(message, RDMAHTTP_TEXT_MAX, "the body was not taken");
    }
    else if (a->verdict == FAILED) {
        status = RDMAHTTP_EPROTOCOL;
        snprintf(message, RDMAHTTP_TEXT_MAX, "%s", a->why);
        *again = a->t != NULL;
    }
    else if (a->t
             && (out == RDMAHTTP_HTTP_REPEATED || out == RDMAHTTP_HTTP_ELSEWHERE
                 || (out == RDMAHTTP_HTTP_CUT && a->verdict != BY_TCP))) {
        snprintf(a->why, sizeof(a->why), "%s",
                 out == RDMAHTTP_HTTP_REPEATED
                     ? "the HTTP connection was lost before the answer"
                     : message);
        rdmahttp_endpoint_give_up(a->ep, a->t, RDMA_HDR_ABORT_CANCELLED,
                                  a->why);
        *again = 1;
    }
    if (a->t) {
        rdmahttp_endpoint_release(a->ep, a->t);
        a->t = NULL;
    }
    return status;
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
    status = run_once(a, &again);
    if (again && start_over(a) == 0) {
        rdmahttp_log(&a->h->conf, RDMAHTTP_LOG_WARNING,
                     "RDMA failed: %s; asking again without", a->why);
        snprintf(result->why, sizeof(result->why), "RDMA failed: %.200s",
                 a->why);
        result->path = RDMAHTTP_BY_TCP;
        result->message[0] = '\0';
        status = run_once(a, &again);
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
    char *next;

    if (curl_url_set(url, CURLUPART_URL, a->location, CURLU_URLENCODE)
        || curl_url_get(url, CURLUPART_URL, &next, 0)) {
        snprintf(result->message, sizeof(result->message),
                 "the server redirects to no valid URL");
        return RDMAHTTP_EPROTOCOL;
    }
    free(result->url);
    result->url = strdup(next);
    curl_free(next);
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
            return result->redirects ? RDMAHTTP_EPROTOCOL : RDMAHTTP_EUSAGE;
        }
        if (!a->first_origin) {
            a->first_origin = strdup(a->to.origin);
            if (!a->first_origin) {
                return RDMAHTTP_EMEMORY;
            }
        }
        status = hop(a);
        if (status != RDMAHTTP_OK || !a->location) {
            return status;
        }
        status = turn(a, url);
    } while (status == RDMAHTTP_OK);
    return status;
}

rdmahttp_status rdmahttp_get(rdmahttp *h, const char *url,
                             const rdmahttp_options *options,
                             const rdmahttp_sink *sink, rdmahttp_result *result)
{
    attempt a = {.h = h, .options = options, .sink = sink, .result = result};
    rdmahttp_status status = RDMAHTTP_EMEMORY;
    CURLU *u = curl_url();

    memset(result, 0, sizeof(*result));
    a.x = take_exchange(h);
    result->url = strdup(url);
    if (!u || !a.x || !result->url) {
        snprintf(result->message, sizeof(result->message), "out of memory");
    }
    else if (curl_url_set(u, CURLUPART_URL, url, CURLU_GUESS_SCHEME)) {
        snprintf(result->message, sizeof(result->message), "not a valid URL");
        status = RDMAHTTP_EUSAGE;
    }
    else {
        status = hops(&a, u);
    }
    if (a.x) {
        give_exchange(h, a.x);
    }
    curl_url_cleanup(u);
    target_clear(&a.to);
    free(a.first_origin);
    free(a.location);
    return status;
}
