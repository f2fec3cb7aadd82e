/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

#define REDIRECTS 20
#define DROP_MAX  ((uint64_t)1 << 20) /* unwanted bytes: then HTTP is cut */

/* ---- the head ---------------------------------------------------------- */

static int fail(rdmahttp_request *rq, const char *why)
{
    if (rq->t) {
        rdmahttp_endpoint_give_up(rq->ep, rq->t, RDMA_HDR_ABORT_CONTENT, why);
    }
    snprintf(rq->why, sizeof(rq->why), "%s", why);
    rq->verdict = RDMAHTTP_VERDICT_FAILED;
    return -1;
}

static int by_tcp(rdmahttp_request *rq, const char *why)
{
    if (rq->t) {
        rdmahttp_endpoint_declined(rq->ep, rq->t);
    }
    if (why) {
        snprintf(rq->result->why, sizeof(rq->result->why), "%s", why);
    }
    rq->result->path = RDMAHTTP_BY_TCP;
    rq->verdict = RDMAHTTP_VERDICT_TCP;
    return 0;
}

static int declined(rdmahttp_request *rq, const rdma_hdr_response *resp)
{
    char why[RDMAHTTP_TEXT_MAX];

    rq->result->declined = rdma_hdr_declined_name(resp->declined);
    snprintf(why, sizeof(why), "server declined: %s", rq->result->declined);
    return by_tcp(rq, why);
}

static void wake(void *baton)
{
    rdmahttp_exchange_wake(baton);
}

/* A head of form W or R: chunked if it is a stream, else empty. */
static int by_rdma(rdmahttp_request *rq, const rdmahttp_head *head,
                   const rdma_hdr_response *resp)
{
    rdmahttp_result *result = rq->result;
    int stream = head->chunked;
    int whole =
        resp->kind == RDMA_HDR_WRITE ? !stream && resp->has_total : resp->fin;

    if (resp->kind != rq->t->offered[0] && resp->kind != rq->t->offered[1]) {
        return fail(rq, "the answer uses a mode that was not offered");
    }
    if (!stream && (!head->has_length || head->length != 0)) {
        return fail(rq, "the answer by RDMA has a body too");
    }
    if (whole == stream || (stream && head->has_length) || head->status == 204
        || head->status == 304) {
        return fail(rq, "the RDMA field does not fit the answer");
    }
    if (rdmahttp_endpoint_head(rq->ep, rq->t, resp, stream)) {
        return fail(rq, rq->t->why);
    }
    rdmahttp_endpoint_watch(rq->ep, rq->t, wake, rq->x);
    rq->deadline = 0;
    result->path =
        resp->kind == RDMA_HDR_WRITE ? RDMAHTTP_BY_WRITE : RDMAHTTP_BY_READ;
    result->why[0] = '\0';
    result->has_length = resp->has_total || resp->fin;
    result->length = resp->has_total ? resp->total : resp->len;
    rq->verdict = RDMAHTTP_VERDICT_RDMA;
    return 0;
}

/* PROTOCOL.md, 4.3. 0, or -1: the head is no answer. */
static int judge(rdmahttp_request *rq, const rdmahttp_head *head)
{
    rdma_hdr_response resp;

    if (!head->rdma) {
        if (!rq->t) {
            return by_tcp(rq, NULL);
        }
        rq->bare = 1;
        return by_tcp(rq, head->has_length && head->length == 0
                              ? "there is no body to move"
                              : "the server did not offer RDMA");
    }
    if (!head->nominated || !head->http11
        || rdma_hdr_parse_response(head->rdma, head->rdma_len, &resp)
               != RDMA_HDR_OK) {
        return rq->t || head->length == 0
                   ? fail(rq, "the RDMA field of the answer is malformed")
                   : by_tcp(rq, NULL);
    }
    if (!rq->t) {
        return resp.declined != RDMA_HDR_NOT_DECLINED
                   ? by_tcp(rq, NULL)
                   : fail(rq, "an answer by RDMA that nobody asked for");
    }
    if (resp.id != rq->t->id && resp.id != 0) {
        return fail(rq, "the answer has the id of another request");
    }
    if (resp.conn != 0 && rdmahttp_endpoint_bind(rq->ep, rq->t, resp.conn)) {
        return fail(rq, "the answer names an unknown RDMA connection");
    }
    return resp.declined != RDMA_HDR_NOT_DECLINED ? declined(rq, &resp)
                                                  : by_rdma(rq, head, &resp);
}

static int follows(const rdmahttp_request *rq, const rdmahttp_head *head)
{
    long s = head->status;

    return head->location && rq->result->redirects < REDIRECTS
           && (s == 301 || s == 302 || s == 303 || s == 307 || s == 308);
}

static int on_head(void *baton, const rdmahttp_head *head)
{
    rdmahttp_request *rq = baton;
    rdmahttp_result *result = rq->result;
    int rc;

    result->http = head->status;
    result->has_length = head->has_length;
    result->length = head->length;
    if (judge(rq, head)) {
        return -1;
    }
    if (follows(rq, head)) {
        rq->drop = 1;
        free(rq->location);
        rq->location = strdup(head->location);
        return rq->location ? 0 : -1;
    }
    rc = rq->sink->head ? rq->sink->head(rq->sink->baton, result) : 0;
    rq->drop = rc > 0;
    rq->sink_said = rc < 0;
    return rc < 0 ? -1 : 0;
}

static int to_sink(rdmahttp_request *rq, const void *bytes, size_t n,
                   uint64_t *count)
{
    if (rq->drop) {
        rq->dropped += n;
        rq->enough = rq->dropped > DROP_MAX;
        return rq->enough ? -1 : 0;
    }
    if (rq->sink->write(rq->sink->baton, bytes, n)) {
        rq->sink_said = 1;
        return -1;
    }
    *count += n;
    return 0;
}

static int on_body(void *baton, const void *bytes, size_t n)
{
    rdmahttp_request *rq = baton;

    if (rq->verdict != RDMAHTTP_VERDICT_TCP) {
        return fail(rq, "the answer by RDMA has a body too");
    }
    return to_sink(rq, bytes, n, &rq->result->bytes_tcp);
}

static int on_rdma(void *baton, const void *bytes, size_t n)
{
    rdmahttp_request *rq = baton;

    return to_sink(rq, bytes, n, &rq->result->bytes_rdma);
}

/* Take what has come by RDMA. */
static rdmahttp_beside on_beside(void *baton, int over)
{
    rdmahttp_request *rq = baton;

    if (rq->verdict != RDMAHTTP_VERDICT_RDMA) {
        return RDMAHTTP_BESIDE_NONE;
    }
    switch (rdmahttp_endpoint_take(rq->ep, rq->t, over, &rq->deadline, on_rdma,
                                   rq)) {
    case RDMAHTTP_TAKE_WAIT:
        return RDMAHTTP_BESIDE_WAIT;
    case RDMAHTTP_TAKE_MORE:
        return RDMAHTTP_BESIDE_MORE;
    case RDMAHTTP_TAKE_ALL:
        return RDMAHTTP_BESIDE_DONE;
    case RDMAHTTP_TAKE_FAILED:
        rq->lost = 1;
        fail(rq, rq->t->why);
        break;
    case RDMAHTTP_TAKE_WRONG:
        fail(rq, rq->t->why);
        break;
    case RDMAHTTP_TAKE_LEFT:
    default:
        break;
    }
    return RDMAHTTP_BESIDE_STOP;
}

static void on_connected(void *baton, const char *address)
{
    const rdmahttp_request *rq = baton;

    if (rq->ep) {
        rdmahttp_endpoint_expect(rq->ep, address);
    }
}

static rdmahttp_outcome ask(rdmahttp_request *rq, char *message)
{
    char field[RDMA_HDR_FORMAT_MAX], masked[RDMA_HDR_FORMAT_MAX];
    rdmahttp_ask what = {.url = rq->result->url,
                         .address = rq->conf->bind_address,
                         .headers = rq->options ? rq->options->headers : NULL,
                         .connected = on_connected,
                         .head = on_head,
                         .body = on_body,
                         .beside = on_beside,
                         .cancel_fd = -1,
                         .baton = rq};

    if (rq->t && rdmahttp_endpoint_field(rq->ep, rq->t, field, masked) == 0) {
        what.field = field;
        what.masked = masked;
        what.no_proxy = 1;
        what.address = rdmahttp_endpoint_address(rq->ep);
    }
    if (what.address) {
        what.family = strchr(what.address, ':') ? AF_INET6 : AF_INET;
    }
    if (rq->options && rq->options->cancel_fd > 0) {
        what.cancel_fd = rq->options->cancel_fd;
    }
    what.keep_private = rq->foreign;
    rq->verdict = RDMAHTTP_NO_HEAD;
    rq->drop = rq->enough = rq->sink_said = rq->lost = rq->bare = 0;
    rq->dropped = 0;
    rq->why[0] = '\0';
    rq->result->attempts++;
    rq->result->http = 0;
    rq->result->has_length = 0;
    rq->result->declined = NULL;
    free(rq->location);
    rq->location = NULL;
    return rdmahttp_exchange_run(rq->x, &what, message);
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

/* RDMA has failed: may the body be asked for again, from its start? What is made
 * as it is sent might be another one by now; so a stream is not, once the sink
 * has had something of it. */
static int may_ask_again(const rdmahttp_request *rq)
{
    return rq->t && (!rq->t->stream || rq->result->bytes_rdma == 0);
}

/* An answer of no bytes, without field, for which RDMA has brought some: on its
 * way somebody has taken the field away. PROTOCOL.md, 4.3. */
static int lost_its_field(const rdmahttp_request *rq)
{
    return rq->t && rq->bare && !rq->drop && rq->result->bytes_tcp == 0
           && rdmahttp_endpoint_announced(rq->ep, rq->t) > 0;
}

static rdmahttp_status judge_outcome(rdmahttp_request *rq, rdmahttp_outcome out,
                                     int *again)
{
    char *message = rq->result->message;

    if (out == RDMAHTTP_HTTP_CANCELLED) {
        return RDMAHTTP_ECANCELLED;
    }
    if (rq->enough) {
        return RDMAHTTP_OK; /* the head was all that counts */
    }
    if (rq->sink_said) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "the body was not taken");
        return RDMAHTTP_ESINK;
    }
    if (out == RDMAHTTP_HTTP_OK && lost_its_field(rq)) {
        fail(rq, "the answer is empty, but its body came by RDMA");
    }
    if (rq->verdict == RDMAHTTP_VERDICT_FAILED) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "%s", rq->why);
        *again = may_ask_again(rq);
        return rq->lost ? RDMAHTTP_ENETWORK : RDMAHTTP_EPROTOCOL;
    }
    if (rq->t
        && (out == RDMAHTTP_HTTP_REPEATED || out == RDMAHTTP_HTTP_ELSEWHERE
            || (out == RDMAHTTP_HTTP_CUT
                && rq->verdict != RDMAHTTP_VERDICT_TCP))) {
        snprintf(rq->why, sizeof(rq->why), "%s",
                 out == RDMAHTTP_HTTP_REPEATED
                     ? "the HTTP connection was lost before the answer"
                     : message);
        rdmahttp_endpoint_give_up(rq->ep, rq->t, RDMA_HDR_ABORT_CANCELLED,
                                  rq->why);
        *again = 1;
    }
    return status_of(out);
}

rdmahttp_status rdmahttp_request_run(rdmahttp_request *rq, int *again)
{
    rdmahttp_outcome out = ask(rq, rq->result->message);
    rdmahttp_status status;

    *again = 0;
    status = judge_outcome(rq, out, again);
    if (rq->t) {
        rdmahttp_endpoint_release(rq->ep, rq->t);
        rq->t = NULL;
    }
    return status;
}
