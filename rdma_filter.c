/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_filter: see rdma_filter.h.
 *
 * What comes is kept as it came until RDMA has succeeded, so that the way back
 * to TCP is always what httpd would have done without us: the same buckets,
 * sendfile and all.
 */
#include <string.h>

#include <httpd.h>
#include <http_config.h>
#include <http_connection.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <util_filter.h>
#include <apr_buckets.h>
#include <apr_strings.h>
#include <apr_tables.h>

#include "rdma_config.h"
#include "rdma_content.h"
#include "rdma_filter.h"
#include "rdma_request.h"
#include "rdma_response.h"

APLOG_USE_MODULE(rdma);

/* Content of known length that comes in several brigades is kept as long as TCP
 * is a way back: a longer one is streamed, its head ends the keeping. */
#define KEEP_MAX ((apr_off_t)1024 * 1024) /* bytes */

/* A source that has begun, brings nothing for so long, and then something, has
 * paused: what it brings does not wait for more of it. */
#define PAUSE apr_time_from_msec(100)

/* One body on its way; the filter's context. */
typedef struct rdma_filter_body {
    rdma_request *q;
    ap_filter_t *f;
    rdma_content content;
    apr_bucket_brigade *kept; /* what came before the present brigade */
    apr_off_t gathered;       /* bytes in kept, while the length is unknown */
    apr_off_t seen;           /* bytes of the response that came to us */
    apr_time_t idle_since;    /* then we had some and asked for more; or 0 */
    int streaming;            /* the head is out: there is no way back */

    /* The response as it was when its content began. */
    request_rec *r;
    apr_table_t *fields;
    int status;
    const char *status_line;

    int heading; /* the head is on its way down */
    int refused; /* it has been refused: another response has come instead */
} rdma_filter_body;

static ap_filter_rec_t *our_filter;

/* ---- into place -------------------------------------------------------- */

static ap_filter_t *find(request_rec *r, const char *name)
{
    ap_filter_t *f = r->output_filters;

    while (f && strcmp(f->frec->name, name)) {
        f = f->next;
    }
    return f;
}

static void put_behind(request_rec *r, ap_filter_t *f)
{
    ap_filter_rec_t *frec = f->frec;
    void *ctx = f->ctx;

    ap_remove_output_filter(f);
    ap_add_output_filter_handle(frec, ctx, r, r->connection);
}

static int send_head(void *baton, const rdma_hdr_response *head);
static int become_stream(void *baton);

/* Filters of one type stand in the order in which they were added, and those
 * that make the head are there from the beginning: ours is added behind them,
 * they are added again behind ours. */
int rdma_filter_post_read(request_rec *r)
{
    rdma_request *q = rdma_request_read(r);
    ap_filter_t *header, *error;
    rdma_filter_body *b;

    rdma_request_fixups(r); /* for conditions that are judged before those */
    if (q && (header = find(r, "http_header"))) {
        b = apr_pcalloc(r->pool, sizeof(*b));
        b->q = q;
        b->content.head = send_head;
        b->content.stream = become_stream;
        b->content.baton = b;
        ap_add_output_filter_handle(our_filter, b, r, r->connection);
        put_behind(r, header);
        error = find(r, "http_outerror");
        if (error) {
            put_behind(r, error);
        }
    }
    return DECLINED;
}

/* A file that is too small anyway is not worth a connection. Whether it is the
 * file that will be sent is a guess (httpd takes the content type for a handler
 * when none is set); a wrong one only means that we connect later. */
static int is_small_file(request_rec *r, const rdma_config_dir *conf)
{
    return (!r->handler || !*r->handler || strchr(r->handler, '/')
            || !strcmp(r->handler, "default-handler"))
           && r->finfo.filetype == APR_REG
           && r->finfo.size < rdma_config_min_size(conf);
}

int rdma_filter_handler(request_rec *r)
{
    const rdma_config_dir *conf = rdma_config_of(r);
    rdma_request *q;

    if (rdma_config_enabled(conf) && !r->main && r->method_number == M_GET
        && (q = rdma_request_of(r)) && !is_small_file(r, conf)) {
        rdma_request_start(q, r);
    }
    return DECLINED;
}

/* ---- judging ----------------------------------------------------------- */

static rdma_hdr_declined judge(ap_filter_t *f, rdma_filter_body *b,
                               apr_bucket_brigade *bb, rdma_body **out)
{
    request_rec *r = f->r;
    apr_off_t length = b->content.length;
    rdma_hdr_declined why = rdma_request_judge(b->q, r);

    if (why != RDMA_HDR_NOT_DECLINED) {
        return why;
    }
    if (rdma_response_has_foreign_filter(f)) {
        return RDMA_HDR_POLICY;
    }
    if (length > (apr_off_t)RDMA_HDR_TOTAL_MAX) {
        return RDMA_HDR_WINDOW;
    }
    if (length != RDMA_CONTENT_UNKNOWN
        && length < rdma_config_min_size(rdma_config_of(r))) {
        return RDMA_HDR_SMALL;
    }
    return rdma_request_open(b->q, r, length,
                             (length > KEEP_MAX && !rdma_response_has_eos(bb))
                                 || !apr_is_empty_table(r->trailers_out),
                             out);
}

/* 1 if the source has paused before it brought this brigade. */
static int has_paused(const rdma_filter_body *b)
{
    return b->idle_since && apr_time_now() - b->idle_since > PAUSE;
}

/* Content of unknown length: is there enough of it to judge? 1: yes, or its
 * source pauses, and what there is must not wait; or its end is there, and
 * its length is known now. 0: wait for more. */
static int is_enough(rdma_filter_body *b, apr_bucket_brigade *bb, int paused)
{
    apr_off_t min = rdma_config_min_size(rdma_config_of(b->f->r));
    apr_bucket *e;

    if (min > KEEP_MAX) {
        min = KEEP_MAX;
    }

    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        const char *data;
        apr_size_t len;

        if (APR_BUCKET_IS_EOS(e)) {
            b->content.length = b->gathered;
            return 1;
        }
        if (APR_BUCKET_IS_FLUSH(e)) {
            paused = 1;
        }
        else if (!APR_BUCKET_IS_METADATA(e)) {
            /* Before the first byte there is nothing to judge. */
            if (e->length == (apr_size_t)-1
                && apr_bucket_read(e, &data, &len,
                                   b->gathered > 0 ? APR_NONBLOCK_READ
                                                   : APR_BLOCK_READ)
                       != APR_SUCCESS) {
                return 1; /* nothing yet, or an error: who takes it will see */
            }
            b->gathered += (apr_off_t)e->length;
        }
        if (b->gathered > 0 && (paused || b->gathered >= min)) {
            return 1;
        }
    }
    return 0;
}

/* ---- the ways out ------------------------------------------------------ */

static apr_status_t pass_kept(ap_filter_t *f, rdma_filter_body *b,
                              apr_bucket_brigade *bb)
{
    if (b->kept) {
        APR_BRIGADE_PREPEND(bb, b->kept);
    }
    ap_remove_output_filter(f);
    return ap_pass_brigade(f->next, bb);
}

static void drop_all(rdma_filter_body *b, apr_bucket_brigade *bb)
{
    if (b->kept) {
        apr_brigade_cleanup(b->kept);
    }
    if (bb) {
        apr_brigade_cleanup(bb);
    }
}

/* What has come so far was of a response that will not be. */
static void start_over(rdma_filter_body *b)
{
    (void)rdma_request_abandon(b->q, RDMA_HDR_FAILED, RDMA_HDR_ABORT_CONTENT);
    rdma_content_reset(&b->content);
    drop_all(b, NULL);
    b->gathered = 0;
    b->seen = 0;
    b->idle_since = 0;
    b->streaming = 0;
    b->r = NULL;
}

/* Over TCP, as if we were not there, but for the field that says why. */
static apr_status_t pass_over_tcp(ap_filter_t *f, rdma_filter_body *b,
                                  apr_bucket_brigade *bb, rdma_hdr_declined why)
{
    why = rdma_request_abandon(b->q, why, RDMA_HDR_ABORT_CONTENT);
    rdma_content_reset(&b->content);
    rdma_request_decline(b->q, f->r, why);
    if (why == RDMA_HDR_FAILED && rdma_response_is_refused(f->r)) {
        /* httpd would send a head of its own, without our field. */
        ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, f->r,
                      "RDMA0023: httpd will not send the head that says that "
                      "RDMA has failed: the connection is cut");
        drop_all(b, bb);
        f->r->connection->keepalive = AP_CONN_CLOSE;
        f->r->connection->aborted = 1;
        ap_remove_output_filter(f);
        return APR_ECONNABORTED;
    }
    return pass_kept(f, b, bb);
}

/* A body of length zero never goes by RDMA, and has no field. */
static apr_status_t pass_empty(ap_filter_t *f, rdma_filter_body *b,
                               apr_bucket_brigade *bb)
{
    (void)rdma_request_abandon(b->q, RDMA_HDR_NOT_DECLINED,
                               RDMA_HDR_ABORT_CANCELLED);
    rdma_content_reset(&b->content);
    return pass_kept(f, b, bb);
}

/* The content is not what was announced: no response can be right. HTTP_HEADER
 * makes a response of the error, which comes back through us. */
static apr_status_t pass_error(ap_filter_t *f, rdma_filter_body *b,
                               apr_bucket_brigade *bb)
{
    request_rec *r = f->r;

    start_over(b);
    drop_all(b, bb);
    r->bytes_sent = 0;
    rdma_response_append_error(r, bb, HTTP_INTERNAL_SERVER_ERROR);
    return ap_pass_brigade(f->next, bb);
}

/* httpd would read the file once more, in pieces, while it changes. */
static apr_status_t pass_one_version(ap_filter_t *f, rdma_filter_body *b,
                                     apr_bucket_brigade *bb)
{
    int rc;

    if (b->kept) {
        APR_BRIGADE_PREPEND(bb, b->kept);
    }
    rc = rdma_content_freeze(bb);
    ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, f->r,
                  "RDMA0021: the file changed while it was being read%s",
                  rc ? ", and goes on changing: no version of it can be sent"
                     : "");
    return rc ? pass_error(f, b, bb) : pass_over_tcp(f, b, bb, RDMA_HDR_POLICY);
}

/* After the head there is no way back: the connection is cut without the last
 * chunk, so that nobody takes it for success. The ERROR bucket keeps the chunk
 * filter from sending one. */
static apr_status_t cut(ap_filter_t *f, rdma_filter_body *b,
                        apr_bucket_brigade *bb, const char *why)
{
    request_rec *r = f->r;

    ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, r,
                  "RDMA0022: a stream was cut after %" APR_OFF_T_FMT
                  " bytes: %s",
                  b->content.taken, why);
    (void)rdma_request_abandon(b->q, RDMA_HDR_FAILED, RDMA_HDR_ABORT_CONTENT);
    rdma_request_count(r, b->content.taken);
    rdma_content_reset(&b->content);
    drop_all(b, bb);
    r->connection->keepalive = AP_CONN_CLOSE;
    ap_remove_output_filter(f);
    if (!find(r, "http_header")) { /* else nobody has seen a head to doubt */
        rdma_response_append_error(r, bb, HTTP_BAD_GATEWAY);
        ap_pass_brigade(f->next, bb);
        /* Whatever httpd or the content's source still writes, as an error
         * page, is not framed any more: nothing of it is sent. */
        r->connection->aborted = 1;
    }
    return APR_ECONNABORTED;
}

/* Pass on what makes HTTP_HEADER send the head: with the status that the
 * response had when its content began, as it would have been sent without us.
 * It may refuse it, and then makes another response, which comes through us
 * before this returns: b->refused. */
static apr_status_t pass_head(ap_filter_t *f, rdma_filter_body *b,
                              apr_bucket_brigade *bb)
{
    request_rec *r = f->r;
    int now = r->status;
    const char *line_now = r->status_line;
    apr_status_t status;

    r->status = b->status;
    r->status_line = b->status_line;
    b->heading = 1;
    status = ap_pass_brigade(f->next, bb);
    b->heading = 0;
    if (!b->refused) {
        r->status = now;
        r->status_line = line_now;
    }
    return status;
}

/* All has been taken: say so, and send a head without a body, or, after a
 * stream, the last chunk. */
static apr_status_t pass_end(ap_filter_t *f, rdma_filter_body *b,
                             apr_bucket_brigade *bb)
{
    request_rec *r = f->r;
    apr_off_t length = b->content.taken;
    rdma_hdr_response head;
    apr_status_t status;

    memset(&head, 0, sizeof(head));
    if (!rdma_request_finish(b->q, &head)) {
        return b->streaming ? cut(f, b, bb, "the connection failed")
                            : pass_over_tcp(f, b, bb, RDMA_HDR_CONNECT);
    }
    if (b->streaming) {
        rdma_request_count(r, length);
    }
    else if (rdma_request_answer(b->q, r, &head, length)) {
        return pass_over_tcp(f, b, bb, RDMA_HDR_FAILED);
    }
    else {
        ap_set_content_length(r, 0);
    }
    rdma_content_reset(&b->content);
    if (b->kept) {
        APR_BRIGADE_PREPEND(bb, b->kept);
    }
    rdma_response_drop_data(bb);
    if (b->streaming) {
        ap_remove_output_filter(f);
        status = ap_pass_brigade(f->next, bb);
    }
    else { /* we go when it has gone */
        status = pass_head(f, b, bb);
        ap_remove_output_filter(f);
    }
    rdma_request_release(b->q);
    return status;
}

/* The head of a stream; HTTP_HEADER adds the chunk filter by itself. */
static int send_head(void *baton, const rdma_hdr_response *head)
{
    rdma_filter_body *b = baton;
    ap_filter_t *f = b->f;
    request_rec *r = f->r;
    apr_off_t length =
        b->content.length == RDMA_CONTENT_UNKNOWN ? 0 : b->content.length;
    apr_bucket_brigade *bb;
    apr_status_t status;

    if (rdma_request_answer(b->q, r, head, length)) {
        return -1;
    }
    b->streaming = 1;
    r->clength = 0;
    apr_table_unset(r->headers_out, "Content-Length");
    /* HTTP_HEADER would not say so of a connection that it means to close, as
     * after an Expect that nobody has answered. */
    r->chunked = 1;
    bb = apr_brigade_create(r->pool, r->connection->bucket_alloc);
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_flush_create(bb->bucket_alloc));
    status = pass_head(f, b, bb);
    return status == APR_SUCCESS && !b->refused && !r->connection->aborted ? 0
                                                                           : -1;
}

static int become_stream(void *baton)
{
    const rdma_filter_body *b = baton;

    return rdma_request_stream(b->q);
}

/* ---- the filter -------------------------------------------------------- */

/* A response begins. RDMA_CONTENT_MORE: it goes by RDMA; else *status is what
 * passing it on, or waiting for more of it, has returned. */
static int begin(ap_filter_t *f, rdma_filter_body *b, apr_bucket_brigade *bb,
                 int paused, apr_status_t *status, rdma_content_result *result)
{
    request_rec *r = f->r;
    rdma_hdr_declined why;
    rdma_body *body = NULL;

    /* A program or a back end may say what only we may say. */
    apr_table_unset(r->headers_out, RDMA_HDR_FIELD);
    apr_table_unset(r->err_headers_out, RDMA_HDR_FIELD);
    if (b->gathered == 0) {
        b->content.length = rdma_response_length(r, bb);
    }
    if (b->content.length == RDMA_CONTENT_UNKNOWN && !is_enough(b, bb, paused)
        && !rdma_response_is_without_field(r, b->content.length)) {
        *status = ap_save_brigade(f, &b->kept, &bb, r->pool);
        return 0;
    }
    if (rdma_response_is_without_field(r, b->content.length)) {
        why = rdma_request_abandon(b->q, RDMA_HDR_NOT_DECLINED,
                                   RDMA_HDR_ABORT_CANCELLED);
        /* Whatever the response is, it has to say that something was posted. */
        *status = why == RDMA_HDR_NOT_DECLINED ? pass_kept(f, b, bb)
                                               : pass_over_tcp(f, b, bb, why);
        return 0;
    }
    why = judge(f, b, bb, &body);
    if (why != RDMA_HDR_NOT_DECLINED) {
        *status = pass_over_tcp(f, b, bb, why);
        return 0;
    }
    if (b->kept) { /* gathered, not taken */
        APR_BRIGADE_PREPEND(bb, b->kept);
    }
    *result = rdma_content_begin(&b->content, body);
    return 1;
}

/* Before the head: what may be needed again for TCP is kept. */
static apr_status_t go_on(ap_filter_t *f, rdma_filter_body *b,
                          apr_bucket_brigade *bb, rdma_content_result result)
{
    switch (result) {
    case RDMA_CONTENT_MORE:
        return ap_save_brigade(f, &b->kept, &bb, f->r->pool);
    case RDMA_CONTENT_ALL:
        return b->content.taken > 0 ? pass_end(f, b, bb) : pass_empty(f, b, bb);
    case RDMA_CONTENT_CHANGED:
        return pass_one_version(f, b, bb);
    case RDMA_CONTENT_WRONG:
        ap_log_rerror(APLOG_MARK, APLOG_ERR, 0, f->r,
                      "RDMA0020: content of %" APR_OFF_T_FMT
                      " bytes announced, but no such content came",
                      b->content.length);
        return pass_error(f, b, bb);
    case RDMA_CONTENT_NO_RDMA:
    case RDMA_CONTENT_LEFT:
    default:
        return pass_over_tcp(f, b, bb, RDMA_HDR_CONNECT);
    }
}

/* After it nothing is. */
static apr_status_t stream_on(ap_filter_t *f, rdma_filter_body *b,
                              apr_bucket_brigade *bb,
                              rdma_content_result result)
{
    switch (result) {
    case RDMA_CONTENT_MORE:
        drop_all(b, bb);
        return APR_SUCCESS;
    case RDMA_CONTENT_ALL:
        return pass_end(f, b, bb);
    case RDMA_CONTENT_CHANGED:
        return cut(f, b, bb, "the file changed");
    case RDMA_CONTENT_WRONG:
        return cut(f, b, bb, "the content broke off");
    case RDMA_CONTENT_LEFT:
        return cut(f, b, bb, "the client has left");
    case RDMA_CONTENT_NO_RDMA:
    default:
        return cut(f, b, bb, "the connection failed or made no progress");
    }
}

/* 1 if this brigade begins another response than the one that we have in part,
 * and whose head is not out: a handler that failed without a word has had an
 * error page made, or sent elsewhere. Also if it is the answer to our head. */
static int is_another(const rdma_filter_body *b, const request_rec *r)
{
    return (b->heading && !b->refused)
           || (b->r && !b->streaming
               && (b->r != r
                   || (b->fields != r->headers_out && b->status != r->status)));
}

/* Bytes that we have of the response, or (gathered) some of them. */
static apr_off_t held(const rdma_filter_body *b)
{
    return b->gathered > b->content.taken ? b->gathered : b->content.taken;
}

/* So many bytes, of a response that will not be, have been counted as this one's,
 * and may have got into its length. */
static void uncount(request_rec *r, apr_off_t bytes)
{
    const char *field = apr_table_get(r->headers_out, "Content-Length");
    apr_off_t length;

    if (field && ap_parse_strict_length(&length, field)
        && length == r->bytes_sent) {
        ap_set_content_length(r, length - bytes);
    }
    r->bytes_sent -= bytes;
}

/* See what brings the brigade, whose response we know. */
static apr_status_t take(ap_filter_t *f, rdma_filter_body *b,
                         apr_bucket_brigade *bb)
{
    rdma_content_result result = RDMA_CONTENT_MORE;
    int paused = has_paused(b);
    apr_status_t status;

    if (!b->content.body && !begin(f, b, bb, paused, &status, &result)) {
        return status;
    }
    if (result == RDMA_CONTENT_MORE) {
        result = rdma_content_take(&b->content, bb);
    }
    if (result == RDMA_CONTENT_MORE && paused) {
        result = rdma_content_flush(&b->content);
    }
    if (b->refused) { /* all has been said in another response */
        drop_all(b, bb);
        return AP_FILTER_ERROR;
    }
    return b->streaming ? stream_on(f, b, bb, result) : go_on(f, b, bb, result);
}

static apr_status_t output(ap_filter_t *f, apr_bucket_brigade *bb)
{
    rdma_filter_body *b = f->ctx;
    request_rec *r = f->r;
    apr_off_t length = 0;
    apr_status_t status;

    if (!b) { /* somebody's SetOutputFilter */
        ap_remove_output_filter(f);
        return ap_pass_brigade(f->next, bb);
    }
    b->f = f;
    if (APR_BRIGADE_EMPTY(bb)) {
        return APR_SUCCESS;
    }
    if (is_another(b, r)) {
        if (b->r == r) {
            uncount(r, b->seen);
        }
        b->refused = b->heading;
        start_over(b);
        r->chunked = 0;
    }
    if (rdma_response_has_error(bb, held(b) > 0)) {
        if (b->streaming) {
            return cut(f, b, bb, "the content broke off");
        }
        start_over(b);
        r->bytes_sent = 0;
        return ap_pass_brigade(f->next, bb);
    }
    if (!b->r) {
        b->r = r;
        b->fields = r->headers_out;
        b->status = r->status;
        b->status_line = r->status_line;
    }
    (void)apr_brigade_length(bb, 0, &length);
    b->seen += length > 0 ? length : 0;
    status = take(f, b, bb);
    if (held(b) > 0) {
        b->idle_since = apr_time_now();
    }
    return status;
}

void rdma_filter_register(void)
{
    our_filter =
        ap_register_output_filter("RDMA_BODY", output, NULL, AP_FTYPE_PROTOCOL);
}
