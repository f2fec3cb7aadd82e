/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_content: see rdma_content.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <apr_portable.h>

#include "rdma_content.h"

#define TICK          apr_time_from_msec(10) /* of the kernel, at HZ=100 */
#define FREEZE_MOST   ((apr_size_t)64 << 20) /* bytes in memory of a process */
#define FREEZE_ROUNDS 4

void rdma_content_reset(rdma_content *c)
{
    c->body = NULL;
    c->space = NULL;
    c->used = 0;
    c->taken = 0;
    memset(&c->file, 0, sizeof(c->file));
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

rdma_content_result rdma_content_flush(rdma_content *c)
{
    rdma_content_result result;

    if (c->taken == 0) { /* it may turn out to be nothing at all */
        return RDMA_CONTENT_MORE;
    }
    result = commit(c);
    if (result == RDMA_CONTENT_MORE && !rdma_body_streamed(c->body)) {
        if (c->stream(c->baton)) {
            return RDMA_CONTENT_MORE;
        }
        result = see_to_head(c);
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

static int is_file(const struct stat *a, const struct stat *b)
{
    return a->st_mode != 0 && a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int is_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

/* The time of change shows what keeps the time of modification. A file that was
 * removed or replaced by another name's is what it was, but that time is not. */
static int is_unchanged(const struct stat *a, const struct stat *b)
{
    return a->st_size == b->st_size && is_time(&a->st_mtim, &b->st_mtim)
           && (is_time(&a->st_ctim, &b->st_ctim) || a->st_nlink != b->st_nlink);
}

/* The times of files go in ticks of the kernel. What is changed twice within
 * one, before we read it and while we do, has the same time as before; so wait
 * until the tick is over. */
static void let_tick_pass(const struct stat *file)
{
    apr_time_t changed = apr_time_make(file->st_ctim.tv_sec,
                                       file->st_ctim.tv_nsec / 1000);
    apr_time_t ago = apr_time_now() - changed;

    if (ago >= 0 && ago < TICK) {
        apr_sleep(TICK - ago);
    }
}

/* Straight from the page cache into the memory that goes. apr_bucket_read()
 * would map the file: a copy more, and SIGBUS when somebody truncates it. */
static rdma_content_result take_file(rdma_content *c, apr_bucket *e)
{
    const apr_bucket_file *file = e->data;
    apr_size_t left = e->length;
    off_t at = (off_t)e->start;
    struct stat now;
    apr_os_file_t fd;

    if (apr_os_file_get(&fd, file->fd) != APR_SUCCESS || fstat(fd, &now)) {
        return RDMA_CONTENT_CHANGED;
    }
    if (!is_file(&c->file, &now)) {
        c->file = now;
        let_tick_pass(&now);
    } /* else one more range of it, which has to be of the same version */
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
    return fstat(fd, &now) || !is_unchanged(&c->file, &now)
               ? RDMA_CONTENT_CHANGED
               : RDMA_CONTENT_MORE;
}

/* ---- one version, for TCP ----------------------------------------------- */

static int is_file_bucket(const apr_bucket *e)
{
    return APR_BUCKET_IS_FILE(e) && e->length != (apr_size_t)-1;
}

/* Read the file bucket into `to`. 1: the same was there before, 0: something
 * else was, -1: it cannot be read. */
static int read_again(const apr_bucket *e, char *to)
{
    const apr_bucket_file *file = e->data;
    char piece[16384];
    apr_size_t done = 0;
    int same = 1;
    apr_os_file_t fd;

    if (apr_os_file_get(&fd, file->fd) != APR_SUCCESS) {
        return -1;
    }
    while (done < e->length) {
        size_t want = e->length - done < sizeof(piece) ? e->length - done
                                                       : sizeof(piece);
        ssize_t n = pread(fd, piece, want, (off_t)e->start + (off_t)done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return -1;
        }
        if (memcmp(to + done, piece, (size_t)n) != 0) {
            memcpy(to + done, piece, (size_t)n);
            same = 0;
        }
        done += (size_t)n;
    }
    return same;
}

/* An empty heap bucket in front of each file bucket, which will take it in. */
static int make_room(apr_bucket_brigade *bb)
{
    apr_size_t sum = 0;
    apr_bucket *e;

    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        char *base;

        if (!is_file_bucket(e) || e->length == 0) {
            continue;
        }
        if (e->length > FREEZE_MOST - sum) {
            return -1;
        }
        sum += e->length;
        base = calloc(1, e->length);
        if (!base) {
            return -1;
        }
        APR_BUCKET_INSERT_BEFORE(
            e, apr_bucket_heap_create(base, e->length, free, bb->bucket_alloc));
    }
    return 0;
}

/* Read all of them until a round finds what the round before has found. Between
 * the two there was a moment when all of it was there at once. */
int rdma_content_freeze(apr_bucket_brigade *bb)
{
    int rounds = FREEZE_ROUNDS;
    int same = make_room(bb) == 0 ? 0 : -1;
    apr_bucket *e, *next;

    while (same == 0 && rounds-- > 0) {
        same = 1;
        for (e = APR_BRIGADE_FIRST(bb);
             e != APR_BRIGADE_SENTINEL(bb) && same >= 0;
             e = APR_BUCKET_NEXT(e)) {
            if (is_file_bucket(e) && e->length > 0) {
                const apr_bucket_heap *heap = APR_BUCKET_PREV(e)->data;
                int found = read_again(e, heap->base);

                same = found < 0 ? -1 : same && found;
            }
        }
    }
    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb); e = next) {
        next = APR_BUCKET_NEXT(e);
        if (is_file_bucket(e)) {
            apr_bucket_delete(e);
        }
    }
    return same == 1 ? 0 : -1;
}

/* ---- any bucket --------------------------------------------------------- */

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

    if (is_file_bucket(e)) {
        return is_too_much(c, e->length) ? RDMA_CONTENT_WRONG : take_file(c, e);
    }
    status = apr_bucket_read(e, &data, &len, APR_NONBLOCK_READ);
    if (APR_STATUS_IS_EAGAIN(status)) {
        result = rdma_content_flush(c);
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
            result = rdma_content_flush(c);
        }
        else if (!APR_BUCKET_IS_METADATA(e)) {
            result = take_bucket(c, e);
        }
    }
    return result;
}
