/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The client's part of a stream: out of the ring, or part by part.
 */
#include "kit.h"

#include <string.h>
#include <unistd.h>

static const char *ring(const kit_work *w, uint64_t from)
{
    return w->client->window.base + w->at + from % w->window;
}

static void take_nap(const kit_work *w)
{
    if (w->nap) { /* who is slow is one that sleeps */
        usleep((useconds_t)w->nap);
    }
}

/* [kit locked] Nothing more will come. */
static int is_over(const kit_work *w, const kit_conn *k)
{
    return (w->over && w->step) || (k && k->closed);
}

/* Sleep until there is a head, or none will come. */
static kit_conn *await_head(kit_work *w)
{
    kit_client *c = w->client;
    int headed;

    pthread_mutex_lock(&c->lock);
    while (!w->headed && !is_over(w, NULL)) {
        kit_sleep_on(c, "a head");
    }
    headed = w->headed;
    pthread_mutex_unlock(&c->lock);
    return headed ? kit_client_conn(c, w->head.conn - 1) : NULL;
}

/* Sleep until more is written than this, or offered, or there will be no more. */
static kit_heard await_more(const kit_work *w, const kit_conn *k,
                            uint64_t written, unsigned offers)
{
    kit_client *c = w->client;
    kit_heard *h;
    kit_heard now;

    pthread_mutex_lock(&c->lock);
    while (h = kit_entry(c, w->id), h->written <= written
               && h->noffers <= offers && !h->fin && !h->aborted
               && !is_over(w, k)) {
        kit_sleep_on(c, "more");
    }
    now = *h;
    pthread_mutex_unlock(&c->lock);
    return now;
}

/* PROTOCOL.md, 9.1: when all is out that was announced, and for every half. */
static int is_due(const kit_work *w, const kit_heard *h, uint64_t taken,
                  uint64_t said)
{
    return !w->lazy || taken == h->written
           || taken - said >= (w->window + 1) / 2;
}

static uint64_t take_ring(kit_work *w, kit_conn *k, uint64_t bite,
                          uint64_t most)
{
    uint64_t taken = 0;
    uint64_t said = 0;

    while (taken < most) {
        kit_heard h = await_more(w, k, taken, 0);
        uint64_t n = h.written - taken;
        uint64_t to_end = w->window - taken % w->window;

        if (n == 0) {
            break;
        }
        ck_assert_uint_le(h.written - said, w->window);
        n = bite && n > bite ? bite : n;
        n = n > to_end ? to_end : n;
        ck_assert(kit_piece_is_right(w, taken, (size_t)n, ring(w, taken)));
        taken += n;
        if (!h.fin && taken < most && is_due(w, &h, taken, said)) {
            said = taken; /* a fin has been answered */
            kit_say(k, RDMA_HDR_CONSUMED, w->id, taken, 0);
        }
        take_nap(w);
    }
    return taken;
}

/* One part, behind what was taken before. 0, or -1: there is no connection. */
static int take_part(kit_work *w, kit_conn *k, const kit_offer *o,
                     uint64_t bite, uint64_t most)
{
    rdma_hdr_response head = {.stag = o->stag, .to = o->to, .len = o->len};
    uint64_t from = o->bytes - o->len;
    uint64_t said;

    ck_assert_uint_le(o->bytes, w->total);
    if (o->len && kit_read(k, &head, w->at + from)) {
        return -1;
    }
    ck_assert(kit_piece_is_right(w, from, o->len,
                                 w->client->sink.base + w->at + from));
    for (said = from + bite; bite && said < o->bytes && said < most;
         said += bite) {
        take_nap(w);
        kit_say(k, RDMA_HDR_CONSUMED, w->id, said, 0);
    }
    if (o->bytes < most) {
        kit_say(k, RDMA_HDR_CONSUMED, w->id, o->bytes,
                o->fin ? RDMA_HDR_FIN : 0);
    }
    return 0;
}

static uint64_t take_parts(kit_work *w, kit_conn *k, uint64_t bite,
                           uint64_t most)
{
    kit_offer o = {w->head.len, w->head.to, w->head.stag,
                   (uint32_t)w->head.len, w->head.fin};
    uint64_t taken = 0;
    unsigned n = 0;

    while (taken < most) {
        kit_heard h;

        ck_assert_uint_eq(o.bytes - o.len, taken); /* no gap */
        if (take_part(w, k, &o, bite, most)) {
            break;
        }
        taken = o.bytes;
        if (o.fin || taken >= most) {
            break;
        }
        h = await_more(w, k, 0, n);
        if (h.noffers == n) {
            break;
        }
        ck_assert_uint_le(h.noffers - n, 3); /* two outstanding, and an end */
        o = h.offers[n++ % KIT_OFFERS];
    }
    return taken;
}

uint64_t kit_take_stream(kit_work *w, uint64_t bite, uint64_t most)
{
    kit_conn *k = await_head(w);

    if (!k) {
        return 0;
    }
    return w->kind == RDMA_HDR_WRITE ? take_ring(w, k, bite, most)
                                     : take_parts(w, k, bite, most);
}

void kit_pass_stream(kit_work *w, uint64_t bite)
{
    uint64_t taken;

    kit_run(w, kit_serve_thread);
    taken = kit_take_stream(w, bite, UINT64_MAX);
    kit_join(w);
    ck_assert_msg(w->step == NULL, "id %u: %s has failed (%d)", w->id, w->step,
                  (int)w->why);
    ck_assert_uint_eq(taken, w->total);
}
