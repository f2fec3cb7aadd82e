/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_content: see rdma_content.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <apr_portable.h>

#include "rdma_content.h"

void rdma_content_reset(rdma_content *c)
{
    c->body = NULL;
    c->space = NULL;
    c->used = 0;
    c->taken = 0;
}

/* Send the head of a stream, if it has come to that. */
static rdma_content_result see_to_head(rdma_content *c)
{
    rdma_hdr_response head;

    if (rdma_body_head(c->body, &head) && c->head(c->baton, &head)) {
        return RDMA_CONTENT_LEFT;
    }
    return RDMA_CONTENT_MORE;
}

rdma_content_result rdma_content_begin(rdma_content *c, rdma_body *body)
{
    rdma_content_reset(c);
    c->body = body;
    return see_to_head(c);
}

static rdma_content_result commit(rdma_content *c)
{
    size_t n = c->used;

    c->space = NULL;
    c->used = 0;
    if (n == 0) {
        return RDMA_CONTENT_MORE;
    }
    return rdma_body_commit(c->body, n) ? RDMA_CONTENT_NO_RDMA : see_to_head(c);
}

/* The source pauses: nothing that has been taken waits for more. */
static rdma_content_result flush(rdma_content *c)
{
    rdma_content_result result = RDMA_CONTENT_MORE;

    if (rdma_body_streamed(c->body)) {
        result = commit(c);
    }
    if (result == RDMA_CONTENT_MORE) {
        result =
            rdma_body_flush(c->body) ? RDMA_CONTENT_NO_RDMA : see_to_head(c);
    }
    return result;
}

/* Room for at least one byte. */
static rdma_content_result get_space(rdma_content *c)
{
    rdma_content_result result = RDMA_CONTENT_MORE;

    if (c->space && c->used == c->room) {
        result = commit(c);
    }
    if (result == RDMA_CONTENT_MORE && !c->space) {
        c->space = rdma_body_space(c->body, &c->room);
        if (!c->space) {
            result = RDMA_CONTENT_NO_RDMA;
        }
    }
    return result;
}

static rdma_content_result take_bytes(rdma_content *c, const char *data,
                                      apr_size_t len)
{
    while (len > 0) {
        rdma_content_result result = get_space(c);
        apr_size_t n;

        if (result != RDMA_CONTENT_MORE) {
            return result;
        }
        n = c->room - c->used < len ? c->room - c->used : len;
        memcpy(c->space + c->used, data, n);
        c->used += n;
        c->taken += (apr_off_t)n;
        data += n;
        len -= n;
    }
    return RDMA_CONTENT_MORE;
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
static rdma_content_result take_file(rdma_content *c, apr_bucket *e)
{
    const apr_bucket_file *file = e->data;
    apr_size_t left = e->length;
    off_t at = (off_t)e->start;
    struct stat before, after;
    apr_os_file_t fd;

    if (apr_os_file_get(&fd, file->fd) != APR_SUCCESS || fstat(fd, &before)) {
        return RDMA_CONTENT_CHANGED;
    }
    while (left > 0) {
        rdma_content_result result = get_space(c);
        size_t want;
        ssize_t n;

        if (result != RDMA_CONTENT_MORE) {
            return result;
        }
        want = c->room - c->used < left ? c->room - c->used : left;
        n = pread(fd, c->space + c->used, want, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return RDMA_CONTENT_CHANGED;
        }
        c->used += (size_t)n;
        c->taken += n;
        at += n;
        left -= (apr_size_t)n;
    }
    return fstat(fd, &after) || !same_file(&before, &after)
               ? RDMA_CONTENT_CHANGED
               : RDMA_CONTENT_MORE;
}

static int is_too_much(const rdma_content *c, apr_size_t len)
{
    return c->length != RDMA_CONTENT_UNKNOWN
           && (apr_off_t)len > c->length - c->taken;
}

static rdma_content_result take_bucket(rdma_content *c, apr_bucket *e)
{
    rdma_content_result result = RDMA_CONTENT_MORE;
    apr_status_t status;
    const char *data;
    apr_size_t len;

    if (APR_BUCKET_IS_FILE(e) && e->length != (apr_size_t)-1) {
        return is_too_much(c, e->length) ? RDMA_CONTENT_WRONG : take_file(c, e);
    }
    status = apr_bucket_read(e, &data, &len, APR_NONBLOCK_READ);
    if (APR_STATUS_IS_EAGAIN(status)) {
        result = flush(c);
        if (result != RDMA_CONTENT_MORE) {
            return result;
        }
        status = apr_bucket_read(e, &data, &len, APR_BLOCK_READ);
    }
    if (status != APR_SUCCESS || is_too_much(c, len)) {
        return RDMA_CONTENT_WRONG;
    }
    return take_bytes(c, data, len);
}

rdma_content_result rdma_content_take(rdma_content *c, apr_bucket_brigade *bb)
{
    rdma_content_result result = RDMA_CONTENT_MORE;
    apr_bucket *e;

    for (e = APR_BRIGADE_FIRST(bb);
         e != APR_BRIGADE_SENTINEL(bb) && result == RDMA_CONTENT_MORE;
         e = APR_BUCKET_NEXT(e)) {
        if (APR_BUCKET_IS_EOS(e)) {
            if (c->length != RDMA_CONTENT_UNKNOWN && c->taken != c->length) {
                return RDMA_CONTENT_WRONG;
            }
            result = commit(c);
            return result == RDMA_CONTENT_MORE ? RDMA_CONTENT_ALL : result;
        }
        if (APR_BUCKET_IS_FLUSH(e)) {
            result = flush(c);
        }
        else if (!APR_BUCKET_IS_METADATA(e)) {
            result = take_bucket(c, e);
        }
    }
    return result;
}
