/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_response: see rdma_response.h.
 */
#include <string.h>

#include <httpd.h>
#include <http_config.h>
#include <http_connection.h>
#include <http_core.h>
#include <http_protocol.h>
#include <apr_tables.h>

#include "rdma_config.h"
#include "rdma_content.h"
#include "rdma_response.h"

int rdma_response_has_error(apr_bucket_brigade *bb, int begun)
{
    apr_bucket *e, *next;

    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb); e = next) {
        next = APR_BUCKET_NEXT(e);
        if (AP_BUCKET_IS_EOC(e)) {
            return 1;
        }
        if (AP_BUCKET_IS_ERROR(e)) {
            const ap_bucket_error *error = e->data;

            if (!begun || error->status == HTTP_BAD_GATEWAY) {
                return 1;
            }
            apr_bucket_delete(e);
        }
    }
    return 0;
}

apr_off_t rdma_response_length(request_rec *r, apr_bucket_brigade *bb)
{
    const char *field = apr_table_get(r->headers_out, "Content-Length");
    apr_off_t length;
    apr_bucket *e;

    if (field) {
        return ap_parse_strict_length(&length, field) ? length
                                                      : RDMA_CONTENT_UNKNOWN;
    }
    length = 0;
    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        if (APR_BUCKET_IS_EOS(e)) {
            return length;
        }
        if (e->length == (apr_size_t)-1) {
            return RDMA_CONTENT_UNKNOWN;
        }
        length += (apr_off_t)e->length;
    }
    return RDMA_CONTENT_UNKNOWN;
}

static int is_field(void *baton, const char *name, const char *value)
{
    (void)baton;
    return *name && !*ap_scan_http_token(name)
           && !*ap_scan_http_field_content(value);
}

int rdma_response_is_refused(const request_rec *r)
{
    return !apr_table_do(is_field, NULL, r->headers_out, NULL)
           || !apr_table_do(is_field, NULL, r->err_headers_out, NULL);
}

int rdma_response_has_foreign_filter(const ap_filter_t *ours)
{
    static const char *const known[] = {"http_header", "http_outerror",
                                        "cache_remove_url", "cache_invalidate"};
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

/* HTTP_HEADER would give such a response another form than we think. */
static int has_other_framing(const request_rec *r)
{
    return apr_table_get(r->headers_out, "Transfer-Encoding")
           || apr_table_get(r->err_headers_out, "Transfer-Encoding")
           || apr_table_get(r->subprocess_env, "downgrade-1.0")
           || apr_table_get(r->subprocess_env, "force-no-vary");
}

int rdma_response_is_without_field(request_rec *r, apr_off_t length)
{
    return r->header_only || AP_STATUS_IS_HEADER_ONLY(r->status)
           || ap_is_HTTP_INFO(r->status) || length == 0
           || r->connection->aborted || has_other_framing(r)
           || !rdma_config_enabled(rdma_config_of(r));
}

int rdma_response_has_eos(apr_bucket_brigade *bb)
{
    return !APR_BRIGADE_EMPTY(bb) && APR_BUCKET_IS_EOS(APR_BRIGADE_LAST(bb));
}

void rdma_response_drop_data(apr_bucket_brigade *bb)
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

void rdma_response_append_error(request_rec *r, apr_bucket_brigade *bb,
                                int status)
{
    APR_BRIGADE_INSERT_TAIL(
        bb, ap_bucket_error_create(status, NULL, r->pool, bb->bucket_alloc));
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_eos_create(bb->bucket_alloc));
}
