/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_request: see rdma_request.h.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include <httpd.h>
#include <http_config.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <http_request.h>
#include <http_ssl.h>
#include <apr_lib.h>
#include <apr_strings.h>
#include <apr_tables.h>

#include "rdma_config.h"
#include "rdma_count.h"
#include "rdma_request.h"

APLOG_USE_MODULE(rdma);

#define FIELD_MAX 256 /* bytes: the longest response field, with its NUL */

struct rdma_request {
    rdma_hdr_status status;  /* of the field; the rest counts when it is OK */
    rdma_hdr_request field;
    rdma_cache_target to;    /* where the connection goes, once judged */
    rdma_cache_slot *slot;   /* held, or NULL */
    rdma_hdr_kind slot_kind; /* what it is for */
    rdma_body *body;         /* open, or NULL */
    int streaming;           /* counted among those that hold a worker */
    int opened;              /* the engine has seen the id: never again */
    int refused;             /* a forbidden address has been logged */
    int declined;            /* it is answered over TCP */
    uint32_t failed_conn;    /* the body was given up after a post on it; 0 */
    uint32_t answered;       /* the connection that the head names; 0 */
};

static rdma_cache *engine;

void rdma_request_engine_set(rdma_cache *child_engine)
{
    engine = child_engine;
}

/* ---- the request field ------------------------------------------------- */

/* The list without one option; NULL if nothing is left. *found: it was there.
 * httpd has folded the field lines into one. */
static const char *without_option(apr_pool_t *p, const char *list,
                                  const char *option, int *found)
{
    const char *left = NULL;
    char *last, *word = apr_strtok(apr_pstrdup(p, list), ",", &last);

    *found = 0;
    for (; word; word = apr_strtok(NULL, ",", &last)) {
        char *end = word + strlen(word);

        word += strspn(word, " \t");
        while (end > word && (end[-1] == ' ' || end[-1] == '\t')) {
            *--end = '\0';
        }
        if (!ap_cstr_casecmp(word, option)) {
            *found = 1;
        }
        else if (*word) {
            left = left ? apr_pstrcat(p, left, ", ", word, NULL) : word;
        }
    }
    return left;
}

/* A field that stays would reach CGI programs, access logs and the cache's
 * files with the token in it, and would be forwarded by a proxy. 1 if it was
 * nominated. */
static int strip(request_rec *r)
{
    const char *connection = apr_table_get(r->headers_in, "Connection");
    int named = 0;

    apr_table_unset(r->headers_in, RDMA_HDR_FIELD);
    if (connection) {
        connection =
            without_option(r->pool, connection, RDMA_HDR_FIELD, &named);
    }
    if (named && connection) {
        apr_table_setn(r->headers_in, "Connection", connection);
    }
    else if (named) {
        apr_table_unset(r->headers_in, "Connection");
    }
    return named;
}

static apr_status_t end(void *qv)
{
    rdma_request *q = qv;

    rdma_request_abandon(q, RDMA_HDR_FAILED, RDMA_HDR_ABORT_CANCELLED);
    return APR_SUCCESS;
}

rdma_request *rdma_request_read(request_rec *r)
{
    const char *field = apr_table_get(r->headers_in, RDMA_HDR_FIELD);
    rdma_request *q = ap_get_module_config(r->request_config, &rdma_module);

    /* Also of a redirect: its first request may have failed before it came
     * here, as one without Host does. */
    if (!field || !strip(r) || q || r->main || r->prev
        || r->connection->master || r->proto_num != HTTP_VERSION(1, 1)
        || r->method_number != M_GET || r->header_only) {
        return q;
    }
    rdma_count_add(RDMA_COUNT_RequestsAsked, 1);
    q = apr_pcalloc(r->pool, sizeof(*q));
    q->status = rdma_hdr_parse_request(field, strlen(field), &q->field);
    ap_set_module_config(r->request_config, &rdma_module, q);
    apr_pool_cleanup_register(r->pool, q, end, apr_pool_cleanup_null);
    return q;
}

rdma_request *rdma_request_of(request_rec *r)
{
    while (r->prev || r->main) {
        r = r->prev ? r->prev : r->main;
    }
    return ap_get_module_config(r->request_config, &rdma_module);
}

/* ---- the address ------------------------------------------------------- */

/* Into *to without the port; an IPv4 address in IPv6 clothes (dual-stack
 * Listen) becomes IPv4; a link-local one keeps its scope. */
static void copy_address(const apr_sockaddr_t *from,
                         struct sockaddr_storage *to)
{
    memset(to, 0, sizeof(*to));
    if (from->family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)to;

        in->sin_family = AF_INET;
        in->sin_addr = from->sa.sin.sin_addr;
    }
    else if (IN6_IS_ADDR_V4MAPPED(&from->sa.sin6.sin6_addr)) {
        struct sockaddr_in *in = (struct sockaddr_in *)to;

        in->sin_family = AF_INET;
        memcpy(&in->sin_addr, &from->sa.sin6.sin6_addr.s6_addr[12], 4);
    }
    else {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)to;

        in6->sin6_family = AF_INET6;
        in6->sin6_addr = from->sa.sin6.sin6_addr;
        in6->sin6_scope_id = from->sa.sin6.sin6_scope_id;
    }
}

static void set_port(struct sockaddr_storage *a, uint16_t port)
{
    if (a->ss_family == AF_INET) {
        ((struct sockaddr_in *)a)->sin_port = htons(port);
    }
    else {
        ((struct sockaddr_in6 *)a)->sin6_port = htons(port);
    }
}

/* 1 if the field names no address, or this one. */
static int names_peer(const rdma_hdr_request *field,
                      const struct sockaddr_storage *peer)
{
    switch (field->family) {
    case 0:
        return 1;
    case 4:
        return peer->ss_family == AF_INET
               && !memcmp(&((const struct sockaddr_in *)peer)->sin_addr,
                          field->addr, 4);
    default:
        return peer->ss_family == AF_INET6
               && !memcmp(&((const struct sockaddr_in6 *)peer)->sin6_addr,
                          field->addr, 16);
    }
}

/* The address of the field as one of APR's, and as a socket address. */
static void field_address(const rdma_hdr_request *field, apr_sockaddr_t *sa,
                          struct sockaddr_storage *to)
{
    memset(sa, 0, sizeof(*sa));
    if (field->family == 4) {
        sa->family = AF_INET;
        sa->sa.sin.sin_family = AF_INET;
        memcpy(&sa->sa.sin.sin_addr, field->addr, 4);
        sa->ipaddr_ptr = &sa->sa.sin.sin_addr;
        sa->ipaddr_len = 4;
    }
    else {
        sa->family = AF_INET6;
        sa->sa.sin6.sin6_family = AF_INET6;
        memcpy(&sa->sa.sin6.sin6_addr, field->addr, 16);
        sa->ipaddr_ptr = &sa->sa.sin6.sin6_addr;
        sa->ipaddr_len = 16;
    }
    copy_address(sa, to);
}

/* Fill in both ends of the connection. 1, or 0: not an address that this client
 * may have us connect to. The connection's own address counts, not what
 * mod_remoteip makes of it. */
static int choose_address(rdma_request *q, request_rec *r)
{
    const rdma_hdr_request *field = &q->field;
    char text[INET6_ADDRSTRLEN];
    apr_sockaddr_t named;

    copy_address(r->connection->local_addr, &q->to.local);
    copy_address(r->connection->client_addr, &q->to.remote);
    if (!names_peer(field, &q->to.remote)) {
        field_address(field, &named, &q->to.remote);
        if (!rdma_hdr_names_a_host(field)
            || !rdma_config_allows(rdma_config_of(r), &named)) {
            if (!q->refused) {
                q->refused = 1;
                ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, r,
                              "RDMA0010: the client asks to be connected at "
                              "%s, which RdmaAllow does not permit",
                              inet_ntop(named.family, field->addr, text,
                                        sizeof(text)));
            }
            return 0;
        }
        /* Another network, perhaps: let routing choose our end. */
        memset(&q->to.local, 0, sizeof(q->to.local));
        q->to.local.ss_family = q->to.remote.ss_family;
    }
    set_port(&q->to.remote, field->port);
    return 1;
}

/* ---- judging ----------------------------------------------------------- */

/* What the client likes best of what the configuration allows. */
static rdma_hdr_kind choose_kind(const rdma_hdr_request *field,
                                 rdma_config_mode mode)
{
    switch (mode) {
    case RDMA_CONFIG_WRITE:
        return rdma_hdr_offers(field, RDMA_HDR_WRITE) ? RDMA_HDR_WRITE
                                                      : RDMA_HDR_NONE;
    case RDMA_CONFIG_READ:
        return rdma_hdr_offers(field, RDMA_HDR_READ) ? RDMA_HDR_READ
                                                     : RDMA_HDR_NONE;
    case RDMA_CONFIG_AUTO:
    default:
        return field->prefer[0];
    }
}

rdma_hdr_declined rdma_request_judge(rdma_request *q, request_rec *r)
{
    const rdma_config_dir *conf = rdma_config_of(r);
    conn_rec *c = r->connection;

    if (q->status != RDMA_HDR_OK) {
        ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, r,
                      "RDMA0011: the client's RDMA field %s",
                      q->status == RDMA_HDR_UNVERSION
                          ? "asks for a later version of the protocol"
                          : "is malformed");
        return q->status == RDMA_HDR_UNVERSION ? RDMA_HDR_DECLINED_VERSION
                                               : RDMA_HDR_DECLINED_MALFORMED;
    }
    if (q->failed_conn) {
        return RDMA_HDR_FAILED;
    }
    if (!engine) {
        return RDMA_HDR_DEVICE;
    }
    if (!rdma_config_over_tls(conf)
        && ap_ssl_conn_is_ssl(c->master ? c->master : c)) {
        return RDMA_HDR_TLS;
    }
    q->to.kind = choose_kind(&q->field, rdma_config_mode_get(conf));
    if (q->to.kind == RDMA_HDR_NONE || q->opened || !choose_address(q, r)) {
        return RDMA_HDR_POLICY;
    }
    memcpy(q->to.token, q->field.token, sizeof(q->to.token));
    return RDMA_HDR_NOT_DECLINED;
}

/* ---- connection and body ----------------------------------------------- */

static rdma_hdr_declined acquire(rdma_request *q)
{
    rdma_hdr_declined why = RDMA_HDR_NOT_DECLINED;

    if (q->slot && q->slot_kind != q->to.kind) {
        rdma_request_release(q);
    }
    if (!q->slot) {
        q->slot = rdma_cache_acquire(engine, &q->to, &why);
        q->slot_kind = q->to.kind;
    }
    return q->slot ? RDMA_HDR_NOT_DECLINED : why;
}

void rdma_request_start(rdma_request *q, request_rec *r)
{
    /* It is not held meanwhile: content may take its time, or never come. */
    if (q->status == RDMA_HDR_OK
        && rdma_request_judge(q, r) == RDMA_HDR_NOT_DECLINED) {
        rdma_cache_prepare(engine, &q->to);
    }
}

static void end_stream(rdma_request *q)
{
    if (q->streaming) {
        q->streaming = 0;
        rdma_cache_stream_end(engine);
    }
}

rdma_hdr_declined rdma_request_open(rdma_request *q, request_rec *r,
                                    apr_off_t total, int stream,
                                    rdma_body **out)
{
    rdma_body_set *set = NULL;
    rdma_hdr_declined why = RDMA_HDR_NOT_DECLINED;

    *out = NULL;
    /* Known without a connection. */
    if (q->to.kind == RDMA_HDR_WRITE && q->field.len < RDMA_BODY_RING
        && (stream || total < 0 || (uint64_t)total > q->field.len)) {
        if (rdma_config_mode_get(rdma_config_of(r)) != RDMA_CONFIG_AUTO
            || !rdma_hdr_offers(&q->field, RDMA_HDR_READ)) {
            return RDMA_HDR_WINDOW;
        }
        q->to.kind = RDMA_HDR_READ;
    }
    why = acquire(q);
    if (why == RDMA_HDR_NOT_DECLINED) {
        why = rdma_cache_wait(q->slot, &set);
    }
    if (why == RDMA_HDR_NOT_DECLINED) {
        q->opened = 1;
        if (!rdma_cache_use_id(q->slot, q->field.id, &q->failed_conn)) {
            ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, r,
                          "RDMA0012: the client used id %u before",
                          q->field.id);
            why = RDMA_HDR_POLICY;
        }
    }
    if (why == RDMA_HDR_NOT_DECLINED) {
        why = rdma_body_open(set, &q->field,
                             total < 0 ? RDMA_BODY_UNKNOWN : (uint64_t)total,
                             stream, &q->body);
    }
    if (q->body && rdma_body_holds_worker(q->body)) {
        q->streaming = rdma_cache_stream_begin(engine) == 0;
        if (!q->streaming) {
            why = rdma_request_abandon(q, RDMA_HDR_BUSY,
                                       RDMA_HDR_ABORT_UNSPECIFIED);
        }
    }
    *out = q->body;
    return why;
}

int rdma_request_stream(rdma_request *q)
{
    int counted = q->streaming;

    if (!counted && rdma_cache_stream_begin(engine)) {
        return -1;
    }
    q->streaming = 1;
    if (rdma_body_stream(q->body)) {
        if (!counted) {
            end_stream(q);
        }
        return -1;
    }
    return 0;
}

int rdma_request_finish(rdma_request *q, rdma_hdr_response *head)
{
    if (rdma_body_finish(q->body, head)) {
        return 0;
    }
    q->body = NULL;
    end_stream(q);
    return 1;
}

rdma_hdr_declined rdma_request_abandon(rdma_request *q, rdma_hdr_declined why,
                                       rdma_hdr_abort reason)
{
    if (q->body) {
        q->failed_conn = rdma_body_abandon(q->body, reason);
        q->body = NULL;
    }
    else if (q->answered) { /* by a head that was not sent */
        q->failed_conn = q->answered;
    }
    end_stream(q);
    rdma_request_release(q);
    return q->failed_conn ? RDMA_HDR_FAILED : why;
}

void rdma_request_release(rdma_request *q)
{
    if (q->slot) {
        rdma_cache_release(q->slot);
        q->slot = NULL;
    }
}

/* ---- the response field ------------------------------------------------ */

/* NULL: no such note. The log looks at the last request of a chain of redirects;
 * an error page of the last one may be sent as the first one's. */
static void note(request_rec *r, const char *name, const char *value)
{
    for (; r; r = r->next) {
        if (value) {
            apr_table_setn(r->notes, name, value);
            apr_table_setn(r->subprocess_env, name, value);
        }
        else {
            apr_table_unset(r->notes, name);
            apr_table_unset(r->subprocess_env, name);
        }
    }
}

static int set_field(request_rec *r, const rdma_hdr_response *head)
{
    char field[FIELD_MAX];

    if (rdma_hdr_format_response(head, field, sizeof(field)) != RDMA_HDR_OK) {
        ap_log_rerror(APLOG_MARK, APLOG_ERR, 0, r,
                      "RDMA0013: no response field can be written for id %u",
                      head->id);
        return -1;
    }
    apr_table_set(r->headers_out, RDMA_HDR_FIELD, field);
    apr_table_mergen(r->headers_out, "Connection", RDMA_HDR_FIELD);
    return 0;
}

void rdma_request_count(request_rec *r, apr_off_t bytes)
{
    note(r, "RDMA_BYTES", apr_off_t_toa(r->pool, bytes));
}

int rdma_request_answer(rdma_request *q, request_rec *r,
                        const rdma_hdr_response *head, apr_off_t bytes)
{
    const char *kind = rdma_hdr_kind_name(head->kind);

    if (set_field(r, head)) {
        q->failed_conn = head->conn;
        return -1;
    }
    q->answered = head->conn;
    note(r, "RDMA_MODE", kind);
    rdma_request_count(r, bytes);
    ap_log_rerror(APLOG_MARK, APLOG_DEBUG, 0, r,
                  "RDMA0014: id %u: %s, %" APR_OFF_T_FMT " bytes, conn %u",
                  head->id, kind, bytes, head->conn);
    return 0;
}

void rdma_request_decline(rdma_request *q, request_rec *r,
                          rdma_hdr_declined why)
{
    rdma_hdr_response head;
    const char *name = rdma_hdr_declined_name(why);

    memset(&head, 0, sizeof(head));
    head.declined = why;
    if (why != RDMA_HDR_DECLINED_MALFORMED
        && why != RDMA_HDR_DECLINED_VERSION) {
        head.id = q->field.id;
    }
    if (why == RDMA_HDR_FAILED) {
        head.conn = q->failed_conn;
    }
    (void)set_field(r, &head);
    q->declined = 1;
    rdma_count_add(RDMA_COUNT_RequestsTcp, 1);
    rdma_count_add(RDMA_COUNT_DeclinedSmall + why - RDMA_HDR_SMALL, 1);
    note(r, "RDMA_MODE", "tcp");
    note(r, "RDMA_BYTES", NULL); /* of a head that was refused */
    note(r, "RDMA_DECLINED", name);
    ap_log_rerror(APLOG_MARK, APLOG_DEBUG, 0, r,
                  "RDMA0015: id %u: over TCP, declined=%s", head.id, name);
}

int rdma_request_post_read(request_rec *r)
{
    (void)rdma_request_read(r);
    return DECLINED;
}

int rdma_request_fixups(request_rec *r)
{
    if (rdma_request_of(r)) {
        apr_table_setn(r->subprocess_env, "RDMA_OFFERED", "1");
    }
    return DECLINED;
}

int rdma_request_logged(request_rec *r)
{
    rdma_request *q = rdma_request_of(r);

    /* That of a request which failed before we saw it. */
    apr_table_unset(r->headers_in, RDMA_HDR_FIELD);
    if (q && q->declined) {
        while (r->next) {
            r = r->next;
        }
        rdma_count_add(RDMA_COUNT_BytesTcp, (uint64_t)r->bytes_sent);
    }
    return DECLINED;
}
