/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_request: one HTTP request whose client can take the body by RDMA.
 *
 * From the field in the request to the field in the response: reads and removes
 * the one, judges it against the configuration, gets the connection and the
 * body from the engine, writes the other and the notes for the log. It knows
 * nothing of buckets: that is rdma_filter.
 *
 * Owner: the pool of the request that brought the field. That request, those
 * that follow it by internal redirects and its subrequests share the one
 * object. A cleanup of that pool gives back what is still held, so nothing
 * leaks however the request ends.
 *
 * Threads: all calls for one request come from the worker that runs it;
 * rdma_request_engine_set() from the main thread before there are workers.
 */
#ifndef RDMA_REQUEST_H
#define RDMA_REQUEST_H

#include <httpd.h>

#include "rdma_body.h"
#include "rdma_cache.h"
#include "rdma_hdr.h"

typedef struct rdma_request rdma_request;

/* The child's engine; NULL, as at first: none, all requests go over TCP. */
void rdma_request_engine_set(rdma_cache *engine);

/* Take the field out of r->headers_in, and its nomination. Returns NULL when
 * there is none, or none that counts here: then the response has none. The same
 * again when it has been taken before. */
rdma_request *rdma_request_read(request_rec *r);

/* The same as a hook. */
int rdma_request_post_read(request_rec *r);
/* The one that r, a later request of the chain or a subrequest, belongs to, or
 * NULL. */
rdma_request *rdma_request_of(request_rec *r);

/* What must be known before the body is: may this response go by RDMA?
 * RDMA_HDR_NOT_DECLINED or why not. */
rdma_hdr_declined rdma_request_judge(rdma_request *q, request_rec *r);

/* The client has been allowed to come this far: begin to connect, so that it
 * runs while the content is made. Never blocks, may fail silently. */
void rdma_request_start(rdma_request *q, request_rec *r);

/* Get all that a body of total bytes (-1: not known yet) needs, streamed if that
 * is wanted or cannot be helped; waits RdmaConnectTimeout at most.
 * RDMA_HDR_NOT_DECLINED with *out, or why not. */
rdma_hdr_declined rdma_request_open(rdma_request *q, request_rec *r,
                                    apr_off_t total, int stream,
                                    rdma_body **out);

/* An open body that would go whole is to go as a stream. 0, or -1: too many do,
 * or it cannot; it goes on as it is. */
int rdma_request_stream(rdma_request *q);

/* The body is complete. 1: *head is what the response says, and the body
 * belongs to the engine; 0: rdma_request_abandon() says how to go on. */
int rdma_request_finish(rdma_request *q, rdma_hdr_response *head);

/* Give up the body, if there is one, and the connection. Returns why, or FAILED
 * if anything was or may have been posted for this id, now or earlier. */
rdma_hdr_declined rdma_request_abandon(rdma_request *q, rdma_hdr_declined why,
                                       rdma_hdr_abort reason);

/* The head is out: the connection is not needed any more. */
void rdma_request_release(rdma_request *q);

/* Put the response field and the notes into r: RDMA with this head, of a body
 * of so many bytes, or not, and why. 0, or -1: no such field can be written
 * (then r is as it was). */
int rdma_request_answer(rdma_request *q, request_rec *r,
                        const rdma_hdr_response *head, apr_off_t bytes);
/* The same note again, when the length of a stream is known. */
void rdma_request_count(request_rec *r, apr_off_t bytes);
void rdma_request_decline(rdma_request *q, request_rec *r,
                          rdma_hdr_declined why);

/* The hook fixups, of subrequests and redirects, too: what a program may know
 * of it. */
int rdma_request_fixups(request_rec *r);

/* The hook log_transaction: only now is it known what went over TCP. */
int rdma_request_logged(request_rec *r);

#endif /* RDMA_REQUEST_H */
