/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_filter: see rdma_filter.h.
 *
 * What comes is kept as it came until RDMA has succeeded, so that the way back
 * to TCP is always what httpd would have done without us: the same buckets,
 * sendfile and all.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <httpd.h>
#include <http_config.h>
#include <http_connection.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <util_filter.h>
#include <apr_buckets.h>
#include <apr_portable.h>
#include <apr_strings.h>
#include <apr_tables.h>

#include "rdma_config.h"
#include "rdma_filter.h"
#include "rdma_request.h"

APLOG_USE_MODULE(rdma);

#define UNKNOWN ((apr_off_t)-1) /* the length of a body, in bytes */

/* One body on its way; the filter's context. */
typedef struct rdma_filter_body {
    rdma_request *q;
    rdma_body *out;           /* NULL: not judged yet, or given up */
    apr_bucket_brigade *kept; /* what came before the present brigade */
    apr_off_t length;         /* as announced */
    apr_off_t taken;          /* of it copied */
    char *space;              /* where the next byte goes, or NULL */
    size_t room;              /* bytes there */
    size_t used;              /* of them filled */
} rdma_filter_body;

/* How taking the content went. */
typedef enum take_result {
    TAKE_MORE,    /* no EOS yet */
    TAKE_ALL,     /* EOS, and as many bytes as announced */
    TAKE_NO_RDMA, /* the connection failed: TCP */
    TAKE_CHANGED, /* the file changed: TCP, which fails as it always did */
    TAKE_WRONG    /* no such content: an error */
} take_result;

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

/* Filters of one type stand in the order in which they were added, and those
 * that make the head are there from the beginning: ours is added behind them,
 * they are added again behind ours. */
int rdma_filter_post_read(request_rec *r)
{
    rdma_request *q = rdma_request_read(r);
    ap_filter_t *header, *error;
    rdma_filter_body *b;

    if (q && (header = find(r, "http_header"))) {
        b = apr_pcalloc(r->pool, sizeof(*b));
        b->q = q;
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

/* 1 if the brigade says that there will be no such response. */
static int has_error(apr_bucket_brigade *bb)
{
    apr_bucket *e;

    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        if (AP_BUCKET_IS_ERROR(e) || AP_BUCKET_IS_EOC(e)) {
            return 1;
        }
    }
    return 0;
}

/* The length of the body that begins with this brigade, or UNKNOWN. */
static apr_off_t body_length(request_rec *r, apr_bucket_brigade *bb)
{
    const char *field = apr_table_get(r->headers_out, "Content-Length");
    apr_off_t length;
    apr_bucket *e;

    if (field) {
        return ap_parse_strict_length(&length, field) ? length : UNKNOWN;
    }
    length = 0;
    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        if (APR_BUCKET_IS_EOS(e)) {
            return length;
        }
        if (e->length == (apr_size_t)-1) {
            return UNKNOWN;
        }
        length += (apr_off_t)e->length;
    }
    return UNKNOWN;
}

/* 1 if a filter that we do not know would see the head without the body, and
 * could not do to it what it is there for. */
static int has_foreign_filter(const ap_filter_t *ours)
{
    static const char *const known[] = {
        "http_header", "http_outerror", "cache_remove_url", "cache_invalidate"
    };
    const ap_filter_t *f;
    size_t i;

    for (f = ours->next; f && f->frec->ftype < AP_FTYPE_CONNECTION;
         f = f->next) {
        for (i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
            if (!strcmp(f->frec->name, known[i])) {
                break;
            }
        }
        if (i == sizeof(known) / sizeof(known[0])) {
            return 1;
        }
    }
    return 0;
}

/* No field at all: not for such a response, not in this directory. */
static int is_without_field(request_rec *r, apr_off_t length)
{
    return r->header_only || AP_STATUS_IS_HEADER_ONLY(r->status) || length == 0
           || r->connection->aborted
           || !rdma_config_enabled(rdma_config_of(r));
}

static rdma_hdr_declined judge(ap_filter_t *f, rdma_filter_body *b)
{
    request_rec *r = f->r;
    rdma_hdr_declined why = rdma_request_judge(b->q, r);

    if (why != RDMA_HDR_NOT_DECLINED) {
        return why;
    }
    if (has_foreign_filter(f)) {
        return RDMA_HDR_POLICY;
    }
    if (b->length == UNKNOWN || b->length > (apr_off_t)RDMA_HDR_TOTAL_MAX
        || !apr_is_empty_table(r->trailers_out)) {
        return RDMA_HDR_WINDOW; /* these would have to be streamed */
    }
    if (b->length < rdma_config_min_size(rdma_config_of(r))) {
        return RDMA_HDR_SMALL;
    }
    return rdma_request_open(b->q, r, b->length, &b->out);
}

/* ---- taking the content ------------------------------------------------ */

/* Room for at least one byte. 1, or 0: RDMA has failed. */
static int get_space(rdma_filter_body *b)
{
    if (b->space && b->used == b->room) {
        b->space = NULL;
        if (rdma_body_commit(b->out, b->used)) {
            return 0;
        }
    }
    if (!b->space) {
        b->used = 0;
        b->space = rdma_body_space(b->out, &b->room);
    }
    return b->space != NULL;
}

/* 1, or 0: RDMA has failed. */
static int take_bytes(rdma_filter_body *b, const char *data, apr_size_t len)
{
    while (len > 0) {
        apr_size_t n;

        if (!get_space(b)) {
            return 0;
        }
        n = b->room - b->used < len ? b->room - b->used : len;
        memcpy(b->space + b->used, data, n);
        b->used += n;
        b->taken += (apr_off_t)n;
        data += n;
        len -= n;
    }
    return 1;
}

static int same_file(const struct stat *a, const struct stat *b)
{
    return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec
           && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec
           && a->st_ctim.tv_sec == b->st_ctim.tv_sec
           && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Straight from the page cache into the memory that goes. apr_bucket_read()
 * would map the file: a copy more, and SIGBUS when somebody truncates it. */
static take_result take_file(rdma_filter_body *b, apr_bucket *e)
{
    const apr_bucket_file *file = e->data;
    apr_size_t left = e->length;
    off_t at = (off_t)e->start;
    struct stat before, after;
    apr_os_file_t fd;

    if (apr_os_file_get(&fd, file->fd) != APR_SUCCESS || fstat(fd, &before)) {
        return TAKE_CHANGED;
    }
    while (left > 0) {
        size_t want;
        ssize_t n;

        if (!get_space(b)) {
            return TAKE_NO_RDMA;
        }
        want = b->room - b->used < left ? b->room - b->used : left;
        n = pread(fd, b->space + b->used, want, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return TAKE_CHANGED;
        }
        b->used += (size_t)n;
        b->taken += n;
        at += n;
        left -= (apr_size_t)n;
    }
    return fstat(fd, &after) || !same_file(&before, &after) ? TAKE_CHANGED
                                                            : TAKE_MORE;
}

static take_result take_bucket(rdma_filter_body *b, apr_bucket *e)
{
    apr_off_t left = b->length - b->taken;
    const char *data;
    apr_size_t len;

    if (APR_BUCKET_IS_FILE(e) && e->length != (apr_size_t)-1) {
        return (apr_off_t)e->length > left ? TAKE_WRONG : take_file(b, e);
    }
    if (apr_bucket_read(e, &data, &len, APR_BLOCK_READ) != APR_SUCCESS
        || (apr_off_t)len > left) {
        return TAKE_WRONG;
    }
    return take_bytes(b, data, len) ? TAKE_MORE : TAKE_NO_RDMA;
}

/* Copy what the brigade brings; it stays as it is, but for buckets of unknown
 * length that become memory. Returns TAKE_MORE only without EOS. */
static take_result take(rdma_filter_body *b, apr_bucket_brigade *bb)
{
    apr_bucket *e;

    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        take_result result;

        if (APR_BUCKET_IS_EOS(e)) {
            if (b->taken != b->length) {
                return TAKE_WRONG;
            }
            return b->space && rdma_body_commit(b->out, b->used)
                       ? TAKE_NO_RDMA
                       : TAKE_ALL;
        }
        if (!APR_BUCKET_IS_METADATA(e)) {
            result = take_bucket(b, e);
            if (result != TAKE_MORE) {
                return result;
            }
        }
    }
    return TAKE_MORE;
}

/* ---- the ways out ------------------------------------------------------ */

/* Nothing taken, nothing judged. */
static void reset(rdma_filter_body *b)
{
    b->out = NULL;
    b->space = NULL;
    b->taken = 0;
}

static apr_status_t pass_kept(ap_filter_t *f, rdma_filter_body *b,
                              apr_bucket_brigade *bb)
{
    if (b->kept) {
        APR_BRIGADE_PREPEND(bb, b->kept);
    }
    ap_remove_output_filter(f);
    return ap_pass_brigade(f->next, bb);
}

/* Over TCP, as if we were not there, but for the field that says why. */
static apr_status_t pass_over_tcp(ap_filter_t *f, rdma_filter_body *b,
                                  apr_bucket_brigade *bb, rdma_hdr_declined why)
{
    why = rdma_request_abandon(b->q, why, RDMA_HDR_ABORT_CONTENT);
    reset(b);
    rdma_request_decline(b->q, f->r, why);
    return pass_kept(f, b, bb);
}

/* The content is not what was announced: no response can be right. HTTP_HEADER
 * makes a response of the error, which comes back through us. */
static apr_status_t pass_error(ap_filter_t *f, rdma_filter_body *b,
                               apr_bucket_brigade *bb)
{
    request_rec *r = f->r;
    apr_bucket *e;

    ap_log_rerror(APLOG_MARK, APLOG_ERR, 0, r,
                  "RDMA0020: content of %" APR_OFF_T_FMT
                  " bytes announced, but no such content came",
                  b->length);
    (void)rdma_request_abandon(b->q, RDMA_HDR_FAILED, RDMA_HDR_ABORT_CONTENT);
    reset(b);
    if (b->kept) {
        apr_brigade_cleanup(b->kept);
    }
    apr_brigade_cleanup(bb);
    r->bytes_sent = 0;
    e = ap_bucket_error_create(HTTP_INTERNAL_SERVER_ERROR, NULL, r->pool,
                               bb->bucket_alloc);
    APR_BRIGADE_INSERT_TAIL(bb, e);
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_eos_create(bb->bucket_alloc));
    return ap_pass_brigade(f->next, bb);
}

/* What is left of a brigade when its body has gone another way. */
static void drop_data(apr_bucket_brigade *bb)
{
    apr_bucket *e = APR_BRIGADE_FIRST(bb);

    while (e != APR_BRIGADE_SENTINEL(bb)) {
        apr_bucket *next = APR_BUCKET_NEXT(e);

        if (!APR_BUCKET_IS_METADATA(e) || APR_BUCKET_IS_FLUSH(e)) {
            apr_bucket_delete(e);
        }
        e = next;
    }
}

/* All has been taken: say so, and send a head without a body. */
static apr_status_t pass_head(ap_filter_t *f, rdma_filter_body *b,
                              apr_bucket_brigade *bb)
{
    request_rec *r = f->r;
    rdma_hdr_response head;
    apr_status_t status;

    memset(&head, 0, sizeof(head));
    if (!rdma_request_finish(b->q, &head)) {
        return pass_over_tcp(f, b, bb, RDMA_HDR_CONNECT);
    }
    if (rdma_request_answer(b->q, r, &head, b->length)) {
        return pass_over_tcp(f, b, bb, RDMA_HDR_FAILED);
    }
    reset(b);
    ap_set_content_length(r, 0);
    if (b->kept) {
        APR_BRIGADE_PREPEND(bb, b->kept);
    }
    drop_data(bb);
    ap_remove_output_filter(f);
    status = ap_pass_brigade(f->next, bb);
    rdma_request_release(b->q);
    return status;
}

/* ---- the filter -------------------------------------------------------- */

/* The first brigade of a response. 1: the body goes by RDMA; 0: *status is what
 * passing it on has returned. */
static int begin(ap_filter_t *f, rdma_filter_body *b, apr_bucket_brigade *bb,
                 apr_status_t *status)
{
    request_rec *r = f->r;
    rdma_hdr_declined why;

    /* A program or a back end may say what only we may say. */
    apr_table_unset(r->headers_out, RDMA_HDR_FIELD);
    apr_table_unset(r->err_headers_out, RDMA_HDR_FIELD);
    b->length = body_length(r, bb);
    if (is_without_field(r, b->length)) {
        why = rdma_request_abandon(b->q, RDMA_HDR_NOT_DECLINED,
                                   RDMA_HDR_ABORT_CANCELLED);
        /* Whatever the response is, it has to say that something was posted. */
        *status = why == RDMA_HDR_NOT_DECLINED ? pass_kept(f, b, bb)
                                               : pass_over_tcp(f, b, bb, why);
        return 0;
    }
    why = judge(f, b);
    if (why != RDMA_HDR_NOT_DECLINED) {
        *status = pass_over_tcp(f, b, bb, why);
        return 0;
    }
    return 1;
}

static apr_status_t output(ap_filter_t *f, apr_bucket_brigade *bb)
{
    rdma_filter_body *b = f->ctx;
    apr_status_t status;

    if (!b) { /* somebody's SetOutputFilter */
        ap_remove_output_filter(f);
        return ap_pass_brigade(f->next, bb);
    }
    if (APR_BRIGADE_EMPTY(bb)) {
        return APR_SUCCESS;
    }
    if (has_error(bb)) {
        (void)rdma_request_abandon(b->q, RDMA_HDR_FAILED,
                                   RDMA_HDR_ABORT_CONTENT);
        reset(b);
        if (b->kept) {
            apr_brigade_cleanup(b->kept);
        }
        return ap_pass_brigade(f->next, bb);
    }
    if (!b->out && !begin(f, b, bb, &status)) {
        return status;
    }
    switch (take(b, bb)) {
    case TAKE_MORE:
        return ap_save_brigade(f, &b->kept, &bb, f->r->pool);
    case TAKE_ALL:
        return pass_head(f, b, bb);
    case TAKE_NO_RDMA:
        return pass_over_tcp(f, b, bb, RDMA_HDR_CONNECT);
    case TAKE_CHANGED:
        ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, f->r,
                      "RDMA0021: the file changed while it was being read");
        return pass_over_tcp(f, b, bb, RDMA_HDR_WINDOW);
    case TAKE_WRONG:
    default:
        return pass_error(f, b, bb);
    }
}

void rdma_filter_register(void)
{
    our_filter = ap_register_output_filter("RDMA_BODY", output, NULL,
                                           AP_FTYPE_PROTOCOL);
}
