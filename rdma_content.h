/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_content: from buckets into a body.
 *
 * What is taken is copied (files by pread straight into the memory that goes);
 * the buckets stay with the caller, who needs them as long as TCP is still a way
 * back. All on the worker that runs the request.
 */
#ifndef RDMA_CONTENT_H
#define RDMA_CONTENT_H

#include <sys/stat.h>

#include <httpd.h>
#include <apr_buckets.h>

#include "rdma_body.h"

#define RDMA_CONTENT_UNKNOWN ((apr_off_t)-1) /* bytes */

/* How taking went. */
typedef enum rdma_content_result {
    RDMA_CONTENT_MORE,    /* no EOS yet */
    RDMA_CONTENT_ALL,     /* EOS, and as many bytes as announced */
    RDMA_CONTENT_NO_RDMA, /* the connection failed */
    RDMA_CONTENT_CHANGED, /* the file changed while it was read */
    RDMA_CONTENT_WRONG,   /* not the announced length, or no content at all */
    RDMA_CONTENT_LEFT     /* the head could not be sent */
} rdma_content_result;

typedef struct rdma_content {
    rdma_body *body;  /* NULL: none yet, or given up */
    apr_off_t length; /* as announced, or RDMA_CONTENT_UNKNOWN */
    apr_off_t taken;  /* of it copied */
    char *space;      /* where the next byte goes, or NULL */
    size_t room;      /* bytes there */
    size_t used;      /* of them filled, and not committed */
    struct stat file; /* the last one, as it was when we began it; or zero */
    /* A stream has come to the point where its head must go. 0, or -1. */
    int (*head)(void *baton, const rdma_hdr_response *head);
    /* The source pauses: is what would go whole a stream now? 0, or -1: no. */
    int (*stream)(void *baton);
    void *baton;
} rdma_content;

/* Begin to fill body. A stream may send its head at once. */
rdma_content_result rdma_content_begin(rdma_content *c, rdma_body *body);

/* Take what the brigade brings, up to its EOS. Buckets of unknown length become
 * memory, else it stays as it is. */
rdma_content_result rdma_content_take(rdma_content *c, apr_bucket_brigade *bb);

/* The source pauses: nothing that has been taken waits for more, if that can
 * be. RDMA_CONTENT_MORE, NO_RDMA or LEFT. */
rdma_content_result rdma_content_flush(rdma_content *c);

/* Make memory of the brigade's files, all as they were at one moment: so
 * the bytes that go over TCP later are those of one version. 0, or -1: they
 * change too often, are shorter than announced or too much; then the brigade is
 * fit for nothing but to be cleaned up. */
int rdma_content_freeze(apr_bucket_brigade *bb);

/* Nothing taken, no body: the content begins anew, or goes another way. */
void rdma_content_reset(rdma_content *c);

#endif /* RDMA_CONTENT_H */
