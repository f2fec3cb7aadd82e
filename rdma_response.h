/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_response: what a brigade and a request say about a response, before and
 * after its body goes another way. No state; the request's thread.
 */
#ifndef RDMA_RESPONSE_H
#define RDMA_RESPONSE_H

#include <httpd.h>
#include <apr_buckets.h>
#include <util_filter.h>

/* 1 if the brigade says that there will be no such response. An error that is
 * none of the content, as of a request's body that cannot be read, is of no
 * account once some has come (begun): the head would have gone, and the last
 * chunk would follow. It is taken out. */
int rdma_response_has_error(apr_bucket_brigade *bb, int begun);

/* The length in bytes of the body that begins with this brigade, or
 * RDMA_CONTENT_UNKNOWN. */
apr_off_t rdma_response_length(request_rec *r, apr_bucket_brigade *bb);

/* 1 if a filter that we do not know would see the head without the body, and
 * could not do to it what it is there for. */
int rdma_response_has_foreign_filter(const ap_filter_t *ours);

/* No field at all: not for such a response, not in this directory, and not
 * where HTTP/1.1 is to be answered as HTTP/1.0. */
int rdma_response_is_without_field(request_rec *r, apr_off_t length);

int rdma_response_has_eos(apr_bucket_brigade *bb);

/* 1 if httpd will not send this head, for a field that is none: it would make
 * another, and if that is refused too, one that has no fields. */
int rdma_response_is_refused(const request_rec *r);

/* What is left of a brigade when its body has gone another way. */
void rdma_response_drop_data(apr_bucket_brigade *bb);

/* An ERROR bucket with this status, and EOS. */
void rdma_response_append_error(request_rec *r, apr_bucket_brigade *bb,
                                int status);

#endif /* RDMA_RESPONSE_H */
