/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_filter: where the module stands in a request of httpd.
 *
 *   post_read_request  finds the field, puts the output filter in its place
 *   handler            begins to connect, as soon as access has been checked
 *   output filter      takes the body's buckets: by RDMA, or on over TCP
 *
 * The filter stands between CONTENT_LENGTH and HTTP_HEADER, where the content
 * is final (ranges, codings, error documents) and its framing has not begun.
 * Everything runs on the worker that runs the request.
 */
#ifndef RDMA_FILTER_H
#define RDMA_FILTER_H

#include <httpd.h>

/* While hooks are registered. */
void rdma_filter_register(void);

int rdma_filter_post_read(request_rec *r); /* after all others */
int rdma_filter_handler(request_rec *r);   /* before all others; DECLINED */

#endif /* RDMA_FILTER_H */
