/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Who takes a stream at the client: out of the ring, or part by part.
 */
#include "kit.h"

#include <string.h>
#include <unistd.h>

#include "../../rdma_conn_private.h"

#define GUARD ((size_t)64) /* bytes around the ring that nobody may touch */

static void compare(const kit_work *w, const char *base, uint64_t from,
                    size_t n)
{
    char want[4096];
    size_t at;
    size_t m;

    for (at = 0; at < n; at += m) {
        m = n - at < sizeof(want) ? n - at : sizeof(want);
        kit_put_body(want, from + at, m, w->id);
        ck_assert_msg(memcmp(want, base + at, m) == 0,
                      "id %u: wrong bytes behind %llu", w->id,
                      (unsigned long long)(from + at));
    }
}

/* [client locked] Nothing more will come. */
static int over(const kit_stream *s, const kit_heard *h)
{
    const kit_client *c = s->work->client;

    return h->aborted || (s->leave && s->taken >= s->leave)
           || (s->work->head_out && c->conns[s->work->head.conn - 1].closed);
}

/* [client locked] Sleep until there is something behind what has been taken.
 * NULL: there will be nothing. */
static kit_heard *await_more(kit_stream *s)
{
    kit_client *c = s->work->client;
    kit_heard *h = kit_entry(c, s->work->id);
    uint64_t first = 0; /* bytes that the head has announced */

    while (!over(s, h)) {
        if (s->work->head_out) {
            first = s->work->kind == RDMA_HDR_READ ? s->work->head.len : 0;
        }
        if (s->work->head_out
            && (s->taken < first || s->taken < h->written || h->fin)) {
            return h;
        }
        pthread_cond_wait(&c->changed, &c->lock);
    }
    return NULL;
}

/* The part that the next byte lies in, as a head. [client locked] */
static rdma_hdr_response part_at(const kit_stream *s, const kit_heard *h,
                                 uint64_t *from)
{
    rdma_hdr_response part = s->work->head;
    unsigned i;

    *from = 0;
    for (i = h->noffers > KIT_OFFERS ? h->noffers - KIT_OFFERS : 0;
         i < h->noffers && s->taken >= part.len + *from; i++) {
        const rdma_hdr_msg *m = &h->offers[i % KIT_OFFERS];

        *from = m->bytes - m->len;
        part.stag = m->stag;
        part.to = m->to;
        part.len = m->len;
    }
    ck_assert_uint_le(*from, s->taken);
    return part;
}

/* Up to n bytes out of the ring. Returns how many. */
static size_t take_written(kit_stream *s, uint64_t n)
{
    const kit_work *w = s->work;
    uint64_t at = s->taken % w->window;

    n = n < w->window - at ? n : w->window - at;
    compare(w, w->client->window.base + w->at + at, s->taken, (size_t)n);
    return (size_t)n;
}

/* kit_read() is for one at a time on a connection. */
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

static size_t take_part(kit_stream *s, uint64_t n, rdma_hdr_response part,
                        uint64_t from)
{
    const kit_work *w = s->work;
    kit_conn *k = kit_client_conn(w->client, w->head.conn - 1);
    int rc;

    part.to += s->taken - from;
    part.len -= s->taken - from;
    part.len = part.len < n ? part.len : n;
    pthread_mutex_lock(&reading);
    rc = kit_read(k, &part, w->at);
    pthread_mutex_unlock(&reading);
    if (rc) {
        return 0;
    }
    compare(w, w->client->sink.base + w->at, s->taken, (size_t)part.len);
    return (size_t)part.len;
}

/* [client locked] Does the server have to hear of it? */
static int is_due(const kit_stream *s, const kit_heard *h, uint64_t end)
{
    return !s->lazy || s->taken == h->written || s->taken == end
           || s->taken - h->consumed >= (s->work->window + 1) / 2;
}

/* One bite. 0: that was all. */
static int bite(kit_stream *s)
{
    kit_work *w = s->work;
    kit_client *c = w->client;
    rdma_hdr_response part = {0};
    uint64_t from = 0;
    uint64_t n;
    size_t took = 0;
    kit_heard *h;
    int fin;
    int due;

    pthread_mutex_lock(&c->lock);
    h = await_more(s);
    if (!h) {
        pthread_mutex_unlock(&c->lock);
        return 0;
    }
    if (w->kind == RDMA_HDR_READ) {
        part = part_at(s, h, &from);
        n = from + part.len - s->taken;
    }
    else {
        n = h->written - s->taken;
    }
    pthread_mutex_unlock(&c->lock);
    n = s->bite && n > s->bite ? s->bite : n;
    n = s->leave && n > s->leave - s->taken ? s->leave - s->taken : n;
    if (n > 0) {
        took = w->kind == RDMA_HDR_READ ? take_part(s, n, part, from)
                                        : take_written(s, n);
    }
    pthread_mutex_lock(&c->lock);
    s->taken += took;
    fin = (h->fin && s->taken == h->written)
          || (w->head.fin && s->taken == w->head.len);
    due = fin || (took > 0 && is_due(s, h, from + part.len));
    if (due) { /* before it is said: the server may use the room at once */
        h->consumed = s->taken;
    }
    s->complete = fin;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (due) {
        kit_say(kit_client_conn(c, w->head.conn - 1), RDMA_HDR_CONSUMED, w->id,
                s->taken, fin ? RDMA_HDR_FIN : 0);
    }
    return !fin && (took > 0 || n == 0);
}

static void *stream_main(void *arg)
{
    kit_stream *s = arg;

    fake_spare_this_thread(1);
    while (bite(s)) {
        if (s->pause) { /* a slow client is one that sleeps */
            usleep((useconds_t)s->pause);
        }
    }
    return NULL;
}

static char *guard(const kit_work *w, int behind)
{
    char *ring = w->client->window.base + w->at;

    return behind ? ring + w->window : ring - GUARD;
}

void kit_stream_start(kit_stream *s, kit_work *w)
{
    kit_heard *h;

    s->work = w;
    s->taken = 0;
    s->complete = 0;
    ck_assert_uint_ge(w->at, GUARD);
    ck_assert_uint_le(w->at + w->window + GUARD, KIT_WINDOW);
    memset(guard(w, 0), 1, GUARD);
    memset(guard(w, 1), 1, GUARD);
    pthread_mutex_lock(&w->client->lock);
    h = kit_entry(w->client, w->id);
    h->stream = 1;
    h->window = w->window;
    pthread_mutex_unlock(&w->client->lock);
    ck_assert_int_eq(pthread_create(&s->thread, NULL, stream_main, s), 0);
}

void kit_stream_join(kit_stream *s)
{
    size_t i;

    pthread_join(s->thread, NULL);
    for (i = 0; i < GUARD; i++) {
        ck_assert_int_eq(guard(s->work, 0)[i], 1);
        ck_assert_int_eq(guard(s->work, 1)[i], 1);
    }
}

void kit_stream_await(kit_stream *s, uint64_t taken)
{
    kit_client *c = s->work->client;
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;
    struct timespec ts = {(time_t)(until / 1000000), 0};

    pthread_mutex_lock(&c->lock);
    while (s->taken < taken) {
        ck_assert_int_eq(pthread_cond_timedwait(&c->changed, &c->lock, &ts), 0);
    }
    pthread_mutex_unlock(&c->lock);
}
