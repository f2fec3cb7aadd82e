/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * request: one HTTP request and its answer, of which the body comes by TCP or
 * by RDMA. Joins an exchange and a transfer: judges the head (PROTOCOL.md, 4.3)
 * and hands the body to the sink.
 */
#ifndef RDMAHTTP_REQUEST_H
#define RDMAHTTP_REQUEST_H

#include "endpoint.h"
#include "exchange.h"
#include "rdmahttp.h"

typedef enum rdmahttp_verdict {
    RDMAHTTP_NO_HEAD,
    RDMAHTTP_VERDICT_TCP,
    RDMAHTTP_VERDICT_RDMA,
    RDMAHTTP_VERDICT_FAILED /* the head, or the body, is no answer: see why */
} rdmahttp_verdict;

/* The first part is the caller's and lives on from request to request. */
typedef struct rdmahttp_request {
    const rdmahttp_conf *conf;
    const rdmahttp_options *options; /* NULL: none */
    const rdmahttp_sink *sink;
    rdmahttp_result *result; /* result->url is the URL */
    rdmahttp_exchange *x;
    rdmahttp_endpoint *ep; /* NULL: not by RDMA */
    rdmahttp_transfer *t;  /* NULL: without the field */
    int foreign;           /* not where the caller's secrets may go */

    char *location; /* of a redirect to follow; to be freed */
    char why[RDMAHTTP_TEXT_MAX];

    /* this request */
    rdmahttp_verdict verdict;
    int drop; /* the body is not wanted */
    uint64_t dropped;
    int enough;    /* dropped more than it is worth */
    int bare;      /* the head has no RDMA field */
    int sink_said; /* the sink has stopped it */
    int lost;      /* failed, and the server may have kept to the rules */
    rdma_conn_time deadline;
} rdmahttp_request;

/* Ask, take, and let go of the transfer. *again: RDMA has failed, and asking
 * without it may help; then rq->why says what was. */
rdmahttp_status rdmahttp_request_run(rdmahttp_request *rq, int *again);

#endif /* RDMAHTTP_REQUEST_H */
