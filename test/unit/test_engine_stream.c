/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Streams: round the window as a ring, or part by part. Sizes around everything
 * that has an edge, clients of every kind, and the states of docs/PROTOCOL.md,
 * 8.7, each of whose rows about ACTIVE and SAID ids has a test here; the rows
 * about whole bodies are in test_engine.c and test_engine_faults.c.
 */
#include "kit.h"

#include <string.h>

#define KB    ((uint64_t)1024)
#define MB    (1024 * KB)
#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)
#define PART  (512 * KB) /* of a stream */

static kit_work stream(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                       uint64_t total)
{
    kit_work w = kit_request(c, kind, id, total);

    w.stream = 1;
    w.window = 64 * KB;
    return w;
}

/* ---- sizes ------------------------------------------------------------- */

static const uint64_t windows[] = {65536, 65537, 99991, 262147};

START_TEST(ring_of_any_size)
{
    uint64_t window = windows[_i];
    const uint64_t sizes[] = {1,          window - 1, window,
                              window + 1, 3 * window, 10 * window};
    kit_client *c = kit_go_with_client();
    uint32_t id = 0;
    unsigned i;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]) * 2; i++) {
        kit_work w = stream(c, RDMA_HDR_WRITE, ++id, sizes[i / 2]);

        w.at = 4095;
        w.window = window;
        w.unknown = i & 1;
        c->window.base[w.at - 1] = c->window.base[w.at + window] = 'x';
        kit_pass_stream(&w, 0);
        ck_assert(!w.head.fin && w.head.has_total == !w.unknown);
        ck_assert_int_eq(c->window.base[w.at - 1], 'x');
        ck_assert_int_eq(c->window.base[w.at + window], 'x');
    }
    kit_await_all_back(RDMA_HDR_WRITE);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_RequestsWriteStreamed), id);
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

START_TEST(chain_of_any_size)
{
    static const uint64_t sizes[] = {1,        PART - 1,     PART,
                                     PART + 1, 2 * PART,     2 * PART + 1,
                                     3 * PART, 10 * PART + 7};
    kit_client *c;
    uint32_t id = 0;
    unsigned i;

    kit.conf.memory = 16 * MB;
    c = kit_go_with_client();
    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]) * 2; i++) {
        kit_work w = kit_request(c, RDMA_HDR_READ, ++id, sizes[i / 2]);

        w.unknown = i & 1;
        w.stream = 1; /* also where it would fit whole */
        kit_pass_stream(&w, 0);
        kit_await_no_bodies();
    }
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

/* The source pauses: what it has given comes at once. */
START_TEST(source_that_pauses)
{
    static const uint64_t pauses[] = {1, 1000, 16 * KB, 100000};
    rdma_hdr_kind kind = kit_kinds[_i % 2];
    kit_client *c = kit_go_with_client();
    unsigned i;

    for (i = 0; i < 4; i++) {
        kit_work w = stream(c, kind, i + 1, pauses[i] * 20 + 1);

        w.stream = kind == RDMA_HDR_WRITE;
        w.unknown = 1;
        w.pause = pauses[i];
        kit_pass_stream(&w, 0);
    }
    kit_await_no_bodies();
}
END_TEST

/* ... before the next byte is there. */
START_TEST(flushed_bytes_do_not_wait)
{
    rdma_hdr_kind kind = kit_kinds[_i];
    kit_client *c = kit_go_with_client();
    kit_work w = stream(c, kind, 1, 2000);

    w.unknown = 1;
    kit_start(&w, 1000);
    ck_assert_int_eq(kit_flush(&w), 0);
    ck_assert_uint_eq(kit_take_stream(&w, 0, 1000), 1000);
    ck_assert_int_eq(kit_fill(&w, 1000), 0);
    ck_assert_int_eq(kit_flush(&w), 0);
    ck_assert_int_eq(kit_finish(&w), 0);
    ck_assert_uint_eq(kit_take_stream(&w, 0, UINT64_MAX), 2000);
    kit_await_no_bodies();
}
END_TEST

/* The source turns out to be at its end when all has been announced: the end
 * comes alone. */
START_TEST(end_that_comes_alone)
{
    rdma_hdr_kind kind = kit_kinds[_i];
    kit_client *c = kit_go_with_client();
    kit_work w = stream(c, kind, 1, 1000);
    kit_heard h;

    w.unknown = 1;
    w.pause = 500;
    kit_pass_stream(&w, 0);
    h = kit_heard_of(c, 1);
    ck_assert(h.fin);
    if (kind == RDMA_HDR_READ) {
        ck_assert_uint_eq(h.noffers, 2);
        ck_assert_uint_eq(h.offers[1].len, 0);
        ck_assert_uint_eq(h.offers[1].bytes, 1000);
        ck_assert(h.offers[1].fin);
    }
    kit_await_no_bodies();
}
END_TEST

/* A body that would go whole becomes a stream when its source pauses. */
START_TEST(whole_body_becomes_a_stream)
{
    static const uint64_t at[] = {0, 1, 1000, 64 * KB, 3 * BLOCK / 2};
    rdma_hdr_kind kind = kit_kinds[_i];
    kit_client *c;
    unsigned i;

    kit.conf.memory = 16 * MB;
    c = kit_go_with_client();
    for (i = 0; i < 5; i++) {
        kit_work w = kit_request(c, kind, i + 1, 3 * BLOCK + 17);
        uint64_t taken;

        w.window = w.total;
        w.pause = 100000;
        kit_start(&w, 0);
        ck_assert(!w.headed);
        ck_assert_int_eq(kit_fill(&w, at[i]), 0);
        ck_assert_int_eq(rdma_body_stream(w.body), 0);
        ck_assert(rdma_body_streamed(w.body));
        kit_run(&w, kit_go_on_thread);
        taken = kit_take_stream(&w, 0, UINT64_MAX);
        kit_join(&w);
        ck_assert_ptr_null(w.step);
        ck_assert_uint_eq(taken, w.total);
        kit_await_no_bodies();
    }
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

START_TEST(window_is_too_small_for_a_stream)
{
    kit_client *c = kit_go_with_client();
    kit_work w = stream(c, RDMA_HDR_WRITE, 1, 1000);

    w.window = RDMA_BODY_RING - 1;
    ck_assert_int_eq(kit_serve(&w), -1);
    ck_assert_int_eq(w.why, RDMA_HDR_WINDOW);
    w = kit_request(c, RDMA_HDR_WRITE, 2, 1000);
    w.window = RDMA_BODY_RING - 1;
    kit_start(&w, 0);
    ck_assert_int_eq(rdma_body_stream(w.body), -1);
    kit_complete(&w); /* it goes whole */
}
END_TEST

/* What holds a worker for as long as its client likes is known as that. */
START_TEST(who_holds_a_worker)
{
    static const struct {
        rdma_hdr_kind kind;
        uint64_t total;
        int stream, holds;
    } cases[] = {{RDMA_HDR_WRITE, 4 * BLOCK, 0, 0},
                 {RDMA_HDR_WRITE, 4 * BLOCK + 1, 0, 1},
                 {RDMA_HDR_WRITE, 1, 1, 1},
                 {RDMA_HDR_READ, 1 * MB, 0, 0},
                 {RDMA_HDR_READ, 1 * MB + 1, 1, 1}};
    kit_client *c = kit_go_with_client();
    uint32_t i;

    for (i = 0; i < 5; i++) {
        kit_work w = kit_request(c, cases[i].kind, i + 1, cases[i].total);

        w.stream = cases[i].stream;
        kit_start(&w, 0);
        ck_assert_int_eq(rdma_body_holds_worker(w.body), cases[i].holds);
        kit_abandon(&w, RDMA_HDR_ABORT_CANCELLED);
    }
}
END_TEST

START_TEST(streams_are_limited)
{
    unsigned i;

    kit.conf.max_streams = 3;
    kit_go();
    for (i = 0; i < 3; i++) {
        ck_assert_int_eq(rdma_cache_stream_begin(kit.cache), 0);
    }
    ck_assert_int_eq(rdma_cache_stream_begin(kit.cache), -1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsOpen), 3);
    rdma_cache_stream_end(kit.cache);
    ck_assert_int_eq(rdma_cache_stream_begin(kit.cache), 0);
    for (i = 0; i < 3; i++) {
        rdma_cache_stream_end(kit.cache);
    }
}
END_TEST

/* ---- what the client sees ---------------------------------------------- */

/* So many bytes of an arena can be read, and after the first few it is zero. */
static void read_zeros(kit_client *c, rdma_hdr_response *head, size_t few,
                       size_t len)
{
    head->len = len;
    memset(c->sink.base, 1, len);
    ck_assert_int_eq(kit_read(kit_client_conn(c, 0), head, 0), 0);
    while (few < len && c->sink.base[few] == 0) {
        few++;
    }
    ck_assert_uint_eq(few, len);
}

/* A short part shows nothing of what the arena held before. */
START_TEST(short_part_shows_nothing)
{
    kit_client *c = kit_go_with_client();
    kit_work w;
    rdma_hdr_response head;
    size_t i;

    kit_pass(c, RDMA_HDR_READ, 1, 2 * PART);
    kit_await_no_bodies();
    w = stream(c, RDMA_HDR_READ, 2, 30);
    w.unknown = 1;
    kit_start(&w, 10);
    ck_assert_int_eq(kit_flush(&w), 0); /* the head's part */
    ck_assert_int_eq(kit_fill(&w, 10), 0);
    ck_assert_int_eq(kit_flush(&w), 0); /* an OFFER's */
    for (i = 0; i < 2; i++) {
        head = w.head;
        head.to += i * PART; /* where the other one lies */
        read_zeros(c, &head, 10, PART);
        ck_assert(kit_piece_is_right(&w, i * 10, 10, c->sink.base));
    }
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    kit_await_no_bodies();
}
END_TEST

/* Content that was given up before it was offered stays ours. */
START_TEST(abandoned_content_shows_nothing)
{
    kit_client *c = kit_go_with_client();
    /* by which the client knows where the arena is */
    kit_work w = kit_pass(c, RDMA_HDR_READ, 1, 100000);
    rdma_hdr_response head = w.head;

    kit_await_no_bodies();
    w = kit_request(c, RDMA_HDR_READ, 2, 100000);
    kit_start(&w, 50000);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 0);
    read_zeros(c, &head, 0, 50000);
}
END_TEST

/* ---- clients of every kind --------------------------------------------- */

START_TEST(client_takes_small_bites)
{
    static const uint64_t bites[] = {1000, 4097, 60000};
    kit_client *c = kit_go_with_client();
    unsigned i;

    for (i = 0; i < 3; i++) {
        kit_work w = stream(c, kit_kinds[_i], i + 1, 5 * PART / 2);

        kit_pass_stream(&w, bites[i]);
        kit_await_no_bodies();
    }
}
END_TEST

/* A worker is at a stream of which the client has taken so many bytes, no more.
 * What comes then is the test's. */
static void serve_part_of(kit_work *w, kit_client *c, rdma_hdr_kind kind,
                          uint64_t bytes)
{
    *w = stream(c, kind, 1, 5 * PART);
    kit_run(w, kit_serve_thread);
    kit_take_stream(w, 0, bytes);
}

/* The head is out, and then there is trouble: the response is cut. */
static void is_cut(const kit_work *w)
{
    ck_assert_ptr_nonnull(w->step);
    ck_assert(w->headed);
    ck_assert_uint_eq(w->conn, w->head.conn);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsCut), 1);
}

/* The worker ends before long, and is_cut(). */
static void ends_cut(kit_work *w)
{
    rdma_conn_time start = rdma_conn_now();

    kit_join(w);
    is_cut(w);
    ck_assert_int_lt(rdma_conn_now() - start, 10 * KIT_SECOND);
}

/* The client was told why. Its answer closes the id, and the connection is as
 * good as before. */
static void id_is_closed(const kit_work *w, rdma_hdr_abort why)
{
    ck_assert_uint_eq(kit_await_abort(w->client, 1).reason, why);
    kit_await_no_bodies();
    kit_next_works(w->client, w->kind, 2, 1);
}

/* ACTIVE, head sent; deadline: ABORT, cut. A byte in each deadline is no
 * progress, either. */
START_TEST(client_does_not_take)
{
    int crumbs = _i / 2;
    kit_client *c;
    kit_work w;

    kit.conf.timeout = 200 * KIT_MS;
    c = kit_go_with_client();
    serve_part_of(&w, c, kit_kinds[_i % 2], crumbs ? 1 : 0);
    if (crumbs) {
        ck_assert_int_eq(kit_say_crumbs(c, 1).aborted, 1);
    }
    ends_cut(&w);
    id_is_closed(&w, RDMA_HDR_ABORT_UNSPECIFIED);
}
END_TEST

/* ... and without an answer the connection ends, though the lease has time. */
START_TEST(client_is_mute)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time start = rdma_conn_now();

    kit.conf.timeout = 200 * KIT_MS;
    kit.conf.lease_timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    serve_part_of(&w, c, kit_kinds[_i], 0);
    ends_cut(&w);
    kit_await_closed(c, 0);
    kit_await_slots(0);
    ck_assert_int_lt(rdma_conn_now() - start, 10 * KIT_SECOND);
    kit_client_mute(c, 0);
    kit_next_works(c, w.kind, 2, 2);
}
END_TEST

/* A client that has stopped takes nothing, and hears nothing. */
START_TEST(client_freezes)
{
    kit_client *c;
    kit_work w;

    kit.conf.timeout = 200 * KIT_MS;
    c = kit_go_with_client();
    serve_part_of(&w, c, kit_kinds[_i], 1);
    kit_freeze(c, 1);
    ends_cut(&w);
    kit_await_slots(0);
    kit_next_works(c, w.kind, 2, 2);
}
END_TEST

/* Any state, connection lost: as trouble, at once. */
START_TEST(client_is_lost)
{
    kit_client *c;
    kit_work w;

    kit.conf.timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    serve_part_of(&w, c, kit_kinds[_i % 2], 100000);
    kit_lose(c, _i / 2);
    ends_cut(&w);
    kit_await_slots(0);
    kit_next_works(c, w.kind, 2, 2);
}
END_TEST

/* ACTIVE, ABORT: ABORT, cut; closed. */
START_TEST(client_aborts)
{
    kit_client *c;
    kit_work w;

    kit.conf.timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    serve_part_of(&w, c, kit_kinds[_i], 100000);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    ends_cut(&w);
    id_is_closed(&w, RDMA_HDR_ABORT_ANSWER);
}
END_TEST

/* ---- states ------------------------------------------------------------ */

/* ACTIVE, head sent, trouble of the content: ABORT, cut. The client takes what
 * is under way, and answers. */
START_TEST(content_fails)
{
    kit_client *c = kit_go_with_client();
    kit_work w = stream(c, kit_kinds[_i], 1, 5 * PART);

    kit_start(&w, 1000);
    ck_assert_int_eq(kit_flush(&w), 0);
    w.step = "the content";
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    is_cut(&w);
    id_is_closed(&w, RDMA_HDR_ABORT_CONTENT);
}
END_TEST

/* RESERVED, or a stream without its head: declined, and nothing was said. */
START_TEST(trouble_before_the_head)
{
    kit_client *c = kit_go_with_client();
    kit_work w = stream(c, RDMA_HDR_READ, 1, 5 * PART);

    kit_start(&w, 1000);
    ck_assert(!w.headed);
    if (_i) {
        kit_disconnect(kit_client_conn(c, 0));
        kit_await_closed(c, 0);
    }
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 0);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsCut), 0);
    ck_assert_uint_eq(c->nheard, 0);
    if (_i) {
        kit_await_slots(0);
    }
    kit_next_works(c, RDMA_HDR_READ, 2, _i ? 2 : 1);
}
END_TEST

/* SAID, client's last word ABORT; SAID, lease over: ABORT 3; SAID, connection
 * lost: the memory is ours again. */
START_TEST(end_of_a_said_stream)
{
    rdma_hdr_kind kind = kit_kinds[_i % 2];
    kit_client *c;
    kit_work w;
    kit_conn *k;

    kit.conf.lease_timeout = (_i / 2 == 1 ? 1 : 5) * KIT_SECOND;
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    w = stream(c, kind, 1, 10000);
    w.unknown = 1;
    ck_assert_int_eq(kit_serve(&w), 0);
    k = kit_client_conn(c, 0);
    if (kind == RDMA_HDR_WRITE) {
        kit_await_fin(c, 1); /* and has not answered it */
    }
    kit_client_mute(c, 0);
    switch (_i / 2) {
    case 0:
        kit_say(k, RDMA_HDR_ABORT, 1, 0, 0);
        break;
    case 1:
        ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_LEASE);
        break;
    default:
        kit_disconnect(k);
        kit_await_slots(0);
        break;
    }
    kit_await_no_bodies();
    kit_next_works(c, kind, 2, _i / 2 == 2 ? 2 : 1);
}
END_TEST

/* A stop that is not graceful ends the wait for the client. */
START_TEST(stop_cuts)
{
    kit_client *c;
    kit_work w;

    kit.conf.timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    serve_part_of(&w, c, kit_kinds[_i], 100000);
    rdma_cache_stopping(kit.cache, 0);
    ends_cut(&w);
    kit_stop();
}
END_TEST

/* More than was announced: a protocol error, also in the middle. */
START_TEST(client_confirms_what_is_not_there)
{
    kit_client *c;
    kit_work w;

    kit.conf.timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    serve_part_of(&w, c, kit_kinds[_i], 1);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 1, w.total, 0);
    ends_cut(&w);
    kit_await_closed(c, 0);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsClosedProtocol), 1);
    kit_await_slots(0);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "sizes");

    tcase_add_loop_test(t, ring_of_any_size, 0, 4);
    tcase_add_test(t, chain_of_any_size);
    tcase_add_loop_test(t, source_that_pauses, 0, 2);
    tcase_add_loop_test(t, flushed_bytes_do_not_wait, 0, 2);
    tcase_add_loop_test(t, end_that_comes_alone, 0, 2);
    tcase_add_loop_test(t, whole_body_becomes_a_stream, 0, 2);
    tcase_add_test(t, window_is_too_small_for_a_stream);
    tcase_add_test(t, who_holds_a_worker);
    tcase_add_test(t, streams_are_limited);
    t = kit_group(s, "what is seen");
    tcase_add_test(t, short_part_shows_nothing);
    tcase_add_test(t, abandoned_content_shows_nothing);
    t = kit_group(s, "clients");
    tcase_add_loop_test(t, client_takes_small_bites, 0, 2);
    tcase_add_loop_test(t, client_does_not_take, 0, 4);
    tcase_add_loop_test(t, client_is_mute, 0, 2);
    tcase_add_loop_test(t, client_freezes, 0, 2);
    tcase_add_loop_test(t, client_is_lost, 0, 4);
    tcase_add_loop_test(t, client_aborts, 0, 2);
    t = kit_group(s, "states");
    tcase_add_loop_test(t, content_fails, 0, 2);
    tcase_add_loop_test(t, trouble_before_the_head, 0, 2);
    tcase_add_loop_test(t, end_of_a_said_stream, 0, 6);
    tcase_add_loop_test(t, stop_cuts, 0, 2);
    tcase_add_loop_test(t, client_confirms_what_is_not_there, 0, 2);
}

int main(void)
{
    return common_main("engine, streams", add);
}
