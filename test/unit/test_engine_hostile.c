/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine and clients that lie, flood, or reach for what is not theirs: it
 * costs them their connection, and nobody else anything.
 */
#include "kit.h"

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

typedef struct lie {
    const char *what;
    rdma_hdr_msg msg;
    size_t len; /* raw, so many bytes; 0: as rdma_conn says it */
} lie;

#define FIN RDMA_HDR_FIN
static const lie lies[] = {
    {"CONSUMED beyond the body",
     {RDMA_HDR_CONSUMED, 0, 0, 1, 1001, 0, 0, 0},
     0},
    {"CONSUMED far beyond",
     {RDMA_HDR_CONSUMED, 0, 0, 1, UINT64_MAX, 0, 0, 0},
     0},
    {"CONSUMED falls", {RDMA_HDR_CONSUMED, 0, 0, 1, 499, 0, 0, 0}, 0},
    {"fin before the end", {RDMA_HDR_CONSUMED, FIN, 0, 1, 999, 0, 0, 0}, 0},
    {"fin beyond the end", {RDMA_HDR_CONSUMED, FIN, 0, 1, 1001, 0, 0, 0}, 0},
    {"WRITTEN from a client", {RDMA_HDR_WRITTEN, 0, 0, 1, 1000, 0, 0, 0}, 0},
    {"WRITTEN, no such id", {RDMA_HDR_WRITTEN, FIN, 0, 77, 1000, 0, 0, 0}, 0},
    {"OFFER from a client", {RDMA_HDR_OFFER, 0, 0, 1, 1000, 1, 1000, 0}, 0},
    {"HELLO from a client", {RDMA_HDR_HELLO, 0, 0, 0, 0, 0, 0, 0}, 0},
    {"credits", {RDMA_HDR_PING, 0, 33, 0, 0, 0, 0, 0}, 32},
    {"many credits", {RDMA_HDR_PING, 0, 0xffff, 0, 0, 0, 0, 0}, 32},
    {"31 bytes", {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 31},
    {"33 bytes", {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 33},
    {"1 byte", {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 1},
    {"65 bytes", {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 65},
    {"type 0", {0, 0, 0, 0, 0, 0, 0, 0}, 32},
    {"type 8", {8, 0, 0, 1, 0, 0, 0, 0}, 32},
    {"ABORT of id 0", {RDMA_HDR_ABORT, 0, 0, 0, 0, 0, 0, 0}, 32},
    {"ABORT of id 2^31", {RDMA_HDR_ABORT, 0, 0, 0x80000000, 0, 0, 0, 0}, 32}};
#define LIES ((int)(sizeof(lies) / sizeof(lies[0])))

static void tell_lie(kit_conn *k, const lie *l)
{
    uint8_t bytes[128] = {0};

    if (l->len) {
        rdma_hdr_put_msg(&l->msg, bytes);
        bytes[4] = (uint8_t)(l->msg.id >> 24);
        bytes[0] = l->msg.type;
        kit_send_raw(k, bytes, l->len);
    }
    else {
        rdma_conn_lock(k->conn);
        rdma_conn_say(k->conn, &l->msg, NULL);
        rdma_conn_unlock(k->conn);
    }
}

/* Somebody else, who has a lease now and must be able to take it at the end. */
static kit_work other_lease(void)
{
    return kit_lease(kit_client_new("192.0.2.2"), RDMA_HDR_READ, 1, 10000);
}

static unsigned protocol_errors(void)
{
    return (unsigned)kit_count(RDMA_COUNT_ConnectionsClosedProtocol);
}

/* The connection ends, and the other client's does not. */
START_TEST(client_lies)
{
    rdma_hdr_kind kind = kit_kinds[_i];
    kit_client *c = kit_go_with_client();
    kit_work w, o = other_lease();
    unsigned punished = 0;
    int i;

    for (i = 0; i < LIES; i++) {
        c->conns[i].closed = 0;
        kit_client_mute(c, 1);
        w = kit_request(c, kind, (uint32_t)i + 100, 1000);
        kit_serve(&w);
        ck_assert_msg(w.step == NULL, "%s: %s", lies[i].what, w.step);
        {
            lie l = lies[i];
            kit_conn *k = kit_client_conn(c, (unsigned)i);

            l.msg.id = l.msg.id == 1 ? w.id : l.msg.id;
            kit_say(k, RDMA_HDR_CONSUMED, w.id, 500, 0); /* true so far */
            tell_lie(k, &l);
        }
        kit_await_closed(c, (unsigned)i);
        kit_await_slots(1);
        punished += lies[i].len <= 64; /* the device's business beyond that */
        ck_assert_msg(protocol_errors() == punished, "%s: for another reason",
                      lies[i].what);
    }
    kit_take(&o);
}
END_TEST

/* A confirmation of what has not been announced yet. */
START_TEST(client_confirms_too_early)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 3 * BLOCK);

    kit_start(&w, 2 * BLOCK);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 1, _i ? w.total : BLOCK,
            _i ? RDMA_HDR_FIN : 0);
    kit_await_closed(c, 0);
    ck_assert(kit_fill(&w, BLOCK) || kit_finish(&w));
    ck_assert_uint_eq(w.conn, 1);
    kit_await_slots(0);
    kit_await_all_blocks();
}
END_TEST

START_TEST(messages_for_nobody_are_ignored)
{
    kit_client *c = kit_go_with_client();
    kit_conn *k;

    kit_next_works(c, RDMA_HDR_READ, 1, 1);
    k = kit_client_conn(c, 0);
    kit_say(k, RDMA_HDR_CONSUMED, 1, UINT64_MAX, RDMA_HDR_FIN); /* closed */
    kit_say(k, RDMA_HDR_CONSUMED, 99, 5, 0);
    kit_say(k, RDMA_HDR_CONSUMED, 99, 4, RDMA_HDR_FIN);
    kit_say(k, RDMA_HDR_ABORT, 99, 0, 0);
    kit_say(k, RDMA_HDR_ABORT, 1, 0, 0);
    kit_say(k, RDMA_HDR_PING, 0, 0, 0);
    kit_say(k, RDMA_HDR_PONG, 0, 0, 0);
    kit_next_works(c, RDMA_HDR_READ, 2, 1);
    ck_assert_uint_eq(c->nheard, 0); /* nor answered */
}
END_TEST

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

/* It sends more than it may, and never says what it has received. */
START_TEST(client_floods)
{
    kit_client *c = kit_go_with_client();
    kit_work o = other_lease();
    kit_conn *k;
    rdma_hdr_msg ping = {.type = RDMA_HDR_PING};
    uint8_t bytes[RDMA_HDR_MSG_LEN];
    int i;

    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    k = kit_client_conn(c, 0);
    kit_client_pause(c, 1); /* it does not find fault with the credits itself */
    rdma_hdr_put_msg(&ping, bytes);
    /* More than the server can answer until it is silenced, each time with all
     * that its receives and credits could make of it. */
    for (i = 1; i <= (int)(RDMA_CONN_DEPTH * (RDMA_CONN_DEPTH + 1)); i++) {
        kit_send_raw(k, bytes, sizeof(bytes));
        if (i % 32 == 0) { /* the send queue takes 50 */
            fake_settle();
            rdma_conn_lock(k->conn);
            rdma_conn_wait(k->conn, nothing, NULL, 0);
            rdma_conn_unlock(k->conn);
        }
    }
    kit_await_slots(1);
    ck_assert_uint_eq(protocol_errors(), 1);
    kit_client_pause(c, 0);
    kit_take(&o);
}
END_TEST

/* Answers return credits: who pings as fast as it is answered gets one answer for
 * all that has come, and the progress thread does something else. */
START_TEST(pings_are_answered_together)
{
    kit_client *c = kit_go_with_client();
    int i;

    kit_next_works(c, RDMA_HDR_READ, 1, 1);
    kit_stop_progress(1);
    for (i = 0; i < 12; i++) {
        kit_say(kit_client_conn(c, 0), RDMA_HDR_PING, 0, 0, 0);
    }
    fake_settle();
    kit_stop_progress(0);
    kit_next_works(c, RDMA_HDR_READ, 2, 1); /* after which all were seen */
    /* It may have been about to look when it was stopped. */
    ck_assert_uint_ge(kit.pongs, 1);
    ck_assert_uint_le(kit.pongs, 3);
}
END_TEST

/* READs of what is not offered. */
START_TEST(client_reads_beyond_its_part)
{
    kit_client *c = kit_go_with_client();
    kit_work o = other_lease();
    rdma_hdr_response head = kit_lease(c, RDMA_HDR_READ, 1, 1000).head;

    switch (_i) {
    case 0: /* another client's, by its right name */
        head = o.head;
        break;
    case 1:
        head.stag ^= 0x100;
        break;
    case 2:
        head.to -= 1;
        break;
    default:
        head.to += (uint64_t)1 << 32;
        break;
    }
    ck_assert_int_eq(kit_read(kit_client_conn(c, 0), &head, 0), -1);
    kit_await_closed(c, 0);
    kit_await_slots(1);
    kit_take(&o);
}
END_TEST

/* A window that is none: the WRITE kills the connection, the answer says so. */
START_TEST(client_offers_a_bad_window)
{
    kit_client *c = kit_go_with_client();
    kit_work o = other_lease();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 9 * BLOCK);

    if (_i) {
        w.at = KIT_WINDOW - BLOCK - 1; /* ends before the body does */
    }
    else {
        w.stag ^= 0x100;
    }
    ck_assert_int_eq(kit_serve(&w), -1);
    ck_assert_uint_eq(w.conn, 1);
    kit_await_slots(1);
    kit_await_all_blocks();
    kit_take(&o);
    kit_next_works(c, RDMA_HDR_WRITE, 2, 2);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "hostile");

    tcase_add_loop_test(t, client_lies, 0, 2);
    tcase_add_loop_test(t, client_confirms_too_early, 0, 2);
    tcase_add_test(t, messages_for_nobody_are_ignored);
    tcase_add_test(t, client_floods);
    tcase_add_test(t, pings_are_answered_together);
    tcase_add_loop_test(t, client_reads_beyond_its_part, 0, 4);
    tcase_add_loop_test(t, client_offers_a_bad_window, 0, 2);
}

int main(void)
{
    return common_main("engine, hostile clients", add);
}
