/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Tests of rdma_hdr's fields: what is good and what is not, every limit at its
 * value and one beyond. The grammar below is tested in test_sfv.c, private data
 * and messages in test_hdr_wire.c.
 */
#include "hdr_fields.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* ---- requests ----------------------------------------------------------- */

/* Good ones, and how we would write the same. */
static const struct {
    const char *text;
    const char *canonical; /* NULL: the same text */
} good_requests[] = {
    {V PORT TOKEN ID WRITE READ, NULL},
    {V PORT TOKEN ID READ WRITE, NULL},
    {V PORT TOKEN ID WRITE, NULL},
    {V PORT TOKEN ID READ, NULL},
    {"v=1, port=1024" TOKEN ID READ, NULL},
    {"v=1, port=65535" TOKEN ID READ, NULL},
    {V PORT TOKEN ", id=1" READ, NULL},
    {V PORT TOKEN ", id=2147483647" READ, NULL},
    {V PORT TOKEN ID ", write" MEM ";len=1", NULL},
    {V PORT TOKEN ID ", write" MEM ";len=1099511627776", NULL},
    {V PORT TOKEN ID ", write;stag=\"ffffffff\";to=\"fffffffffffffffe\";len=1",
     NULL},
    {V PORT TOKEN ID ", write;stag=\"00000000\";to=\"0000000000000000\";len=1",
     NULL},
    {V PORT ", token=:AAAAAAAAAAAAAAAAAAAAAA==:" ID READ, NULL},
    {V PORT ", token=://///////////////////w==:" ID READ, NULL},
    /* other spellings of the same */
    {"read" ID TOKEN PORT ", v=1", V PORT TOKEN ID READ},
    {V ", port=041234" TOKEN ", id=000017" READ, V PORT TOKEN ID READ},
    {V PORT ", token=:q83vEjRWeJCrze8SNFZ4kA:" ID READ, V PORT TOKEN ID READ},
    {V PORT ", token=:q83vEjRWeJCrze8SNFZ4kB==:" ID READ, V PORT TOKEN ID READ},
    {V PORT TOKEN ID ", read=?1", V PORT TOKEN ID READ},
    {V PORT TOKEN ID ", write=?1" MEM ";len=4194304", V PORT TOKEN ID WRITE},
    {V PORT TOKEN ID ", write; len=4194304;to=\"00007f12a4000000\""
                     ";  stag=\"8f3a2b00\"",
     V PORT TOKEN ID WRITE},
    {"  v=1,port=41234\t,\ttoken=:q83vEjRWeJCrze8SNFZ4kA==: , id=17,read \t",
     V PORT TOKEN ID READ},
    /* what is unknown is ignored */
    {V PORT TOKEN ID ", x=1.5, y=(1 \"a\";z), stag=1, write-2" READ,
     V PORT TOKEN ID READ},
    {"v=1;p, port=41234;addr=x" TOKEN ID ", read;stag=1;len=0;write",
     V PORT TOKEN ID READ},
    /* duplicates: the last value, the first place */
    {"v=2" PORT TOKEN ID READ ", v=1", V PORT TOKEN ID READ},
    {V ", addr=\"x\"" PORT TOKEN ID READ ", addr=\"::1\"",
     V PORT ", addr=\"::1\"" TOKEN ID READ},
    {V READ PORT TOKEN ID WRITE READ, V PORT TOKEN ID READ WRITE},
    {V PORT TOKEN ID ", write;len=0, read" WRITE, V PORT TOKEN ID WRITE READ},
    {V PORT TOKEN ID ", write" MEM ";len=0;len=5",
     V PORT TOKEN ID ", write" MEM ";len=5"},
};

START_TEST(requests_good)
{
    char buf[RDMA_HDR_FORMAT_MAX];
    size_t i;

    for (i = 0; i < COUNT(good_requests); i++) {
        const char *text = good_requests[i].text;
        const char *want = good_requests[i].canonical;
        const char *got = canonical(text, strlen(text), 1, buf);

        ck_assert_msg(got != NULL, "%s", text);
        ck_assert_str_eq(got, want != NULL ? want : text);
    }
}
END_TEST

START_TEST(request_fields)
{
    static const char text[] =
        V PORT ", addr=\"192.0.2.7\"" TOKEN ID READ WRITE;
    rdma_hdr_request r;

    ck_assert_int_eq(parse_request(text, strlen(text), &r), RDMA_HDR_OK);
    ck_assert_uint_eq(r.port, 41234);
    ck_assert_int_eq(r.family, 4);
    ck_assert_mem_eq(r.addr, "\300\0\2\7\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    ck_assert_mem_eq(r.token, hdr_token, RDMA_HDR_TOKEN_LEN);
    ck_assert_uint_eq(r.id, 17);
    ck_assert_int_eq(r.prefer[0], RDMA_HDR_READ);
    ck_assert_int_eq(r.prefer[1], RDMA_HDR_WRITE);
    ck_assert_uint_eq(r.stag, 0x8f3a2b00);
    ck_assert_uint_eq(r.to, 0x7f12a4000000);
    ck_assert_uint_eq(r.len, 4194304);
    ck_assert(rdma_hdr_offers(&r, RDMA_HDR_WRITE));
    ck_assert(rdma_hdr_offers(&r, RDMA_HDR_READ));
    ck_assert(!rdma_hdr_offers(&r, RDMA_HDR_NONE));
    /* what is not offered is 0, not what stood there before */
    ck_assert_int_eq(parse_request(text, strlen(text) - strlen(WRITE), &r), 0);
    ck_assert_int_eq(r.prefer[1], RDMA_HDR_NONE);
    ck_assert(r.stag == 0 && r.to == 0 && r.len == 0);
    ck_assert(!rdma_hdr_offers(&r, RDMA_HDR_WRITE));
    ck_assert(!rdma_hdr_offers(&r, RDMA_HDR_NONE));
}
END_TEST

static const char *const bad_requests[] = {
    "",
    " ",
    "v",
    V,
    "?",
    "v=1,",
    /* something is missing */
    "port=41234" TOKEN ID READ,
    V TOKEN ID READ,
    V PORT ID READ,
    V PORT TOKEN READ,
    V PORT TOKEN ID,
    /* v */
    "v=0" PORT TOKEN ID READ,
    "v=-1" PORT TOKEN ID READ,
    "v=1.0" PORT TOKEN ID READ,
    "v=\"1\"" PORT TOKEN ID READ,
    "v" PORT TOKEN ID READ,
    "v=(1)" PORT TOKEN ID READ,
    "v=2.0" PORT TOKEN ID READ,
    "v=1000000000000000" PORT TOKEN ID READ,
    "v=2" PORT TOKEN ID READ ",",
    "v=1" PORT TOKEN ID READ ", v=0",
    /* port */
    "v=1, port=1023" TOKEN ID READ,
    "v=1, port=65536" TOKEN ID READ,
    "v=1, port=0" TOKEN ID READ,
    "v=1, port=-41234" TOKEN ID READ,
    "v=1, port=999999999999999" TOKEN ID READ,
    "v=1, port=41234.0" TOKEN ID READ,
    "v=1, port" TOKEN ID READ,
    "v=1, port=\"41234\"" TOKEN ID READ,
    "v=1, port=@41234" TOKEN ID READ,
    "v=1, port=41234, port" TOKEN ID READ,
    /* token */
    V PORT ", token=::" ID READ,
    V PORT ", token=:q83vEjRWeJCrze8SNFZ4:" ID READ,
    V PORT ", token=:q83vEjRWeJCrze8SNFZ4kJA=:" ID READ,
    V PORT ", token=:q83vEjRWeJCrze8SNFZ4kA=:" ID READ,
    V PORT ", token=:q83vEjRWeJCrze8SNFZ4k===:" ID READ,
    V PORT ", token=\"q83vEjRWeJCrze8SNFZ4kA==\"" ID READ,
    V PORT ", token=q83vEjRWeJCrze8SNFZ4kA" ID READ,
    V PORT ", token" ID READ,
    /* id */
    V PORT TOKEN ", id=0" READ,
    V PORT TOKEN ", id=2147483648" READ,
    V PORT TOKEN ", id=-1" READ,
    V PORT TOKEN ", id=4294967297" READ,
    V PORT TOKEN ", id=1.5" READ,
    V PORT TOKEN ", id" READ,
    /* read, write */
    V PORT TOKEN ID ", read=?0",
    V PORT TOKEN ID ", read=1",
    V PORT TOKEN ID ", read=yes",
    V PORT TOKEN ID WRITE ", read=?0",
    V PORT TOKEN ID ", write=?0" MEM ";len=1",
    V PORT TOKEN ID ", write=1" MEM,
    V PORT TOKEN ID ", write=(1)" MEM ";len=1",
    V PORT TOKEN ID READ ", write",
    V PORT TOKEN ID WRITE ", write",
    /* the window */
    V PORT TOKEN ID ", write" MEM,
    V PORT TOKEN ID ", write" MEM ";len=0",
    V PORT TOKEN ID ", write" MEM ";len=1099511627777",
    V PORT TOKEN ID ", write" MEM ";len=-1",
    V PORT TOKEN ID ", write" MEM ";len",
    V PORT TOKEN ID ", write" MEM ";len=1;len=\"1\"",
    V PORT TOKEN ID ", write;stag=\"8f3a2b00\";len=1",
    V PORT TOKEN ID ", write;to=\"00007f12a4000000\";len=1",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=\"8f3a2b0\"",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=\"8f3a2b000\"",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=\"8F3a2b00\"",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=\"0x3a2b00\"",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=\"8f3a2b0 \"",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=12345678",
    V PORT TOKEN ID ", write" MEM ";len=1;stag=a2345678",
    V PORT TOKEN ID ", write" MEM ";len=1;to=\"0007f12a4000000\"",
    V PORT TOKEN ID ", write" MEM ";len=1;to=\"000007f12a4000000\"",
    V PORT TOKEN ID ", write" MEM ";len=1;to=\"00007f12a400000g\"",
    V PORT TOKEN ID ", write" MEM ";len=1;to=\"ffffffffffffffff\"",
    V PORT TOKEN ID ", write" MEM ";len=2;to=\"fffffffffffffffe\"",
    V PORT TOKEN ID ", write" MEM ";len=1099511627776;to=\"ffffff0000000000\"",
    /* not the grammar, in a place that is unknown */
    V PORT TOKEN ID READ ", x=",
    V PORT TOKEN ID READ ", X",
    V PORT TOKEN ID READ ", x;Y",
    V PORT TOKEN ID READ ", x=%\"%ff\"",
    V PORT TOKEN ID READ ", x=((1))",
    V PORT TOKEN ID READ ",",
    V PORT TOKEN ID READ ", , x",
    V PORT TOKEN ID READ " x",
    "\t" V PORT TOKEN ID READ,
    V PORT TOKEN ID READ ", x=\"\xc3\xa9\"",
};

START_TEST(requests_bad)
{
    rdma_hdr_request r;
    size_t i;

    for (i = 0; i < COUNT(bad_requests); i++)
        ck_assert_msg(parse_request(bad_requests[i], strlen(bad_requests[i]),
                                    &r) == RDMA_HDR_MALFORMED,
                      "%s", bad_requests[i]);
    ck_assert_int_eq(rdma_hdr_parse_request(NULL, 0, &r), RDMA_HDR_MALFORMED);
}
END_TEST

START_TEST(versions)
{
    static const char *const later[] = {
        "v=2",
        "v=999999999999999",
        "v=2, port=1, write, id=x",
        "v=1" PORT TOKEN ID READ ", v=2",
    };
    rdma_hdr_request req;
    rdma_hdr_response resp;
    size_t i;

    for (i = 0; i < COUNT(later); i++) {
        ck_assert_int_eq(parse_request(later[i], strlen(later[i]), &req),
                         RDMA_HDR_UNVERSION);
        ck_assert_int_eq(parse_response(later[i], strlen(later[i]), &resp),
                         RDMA_HDR_UNVERSION);
    }
}
END_TEST

/* 4096 bytes are good and 4097 are not, however innocent. */
START_TEST(field_length)
{
    static const char *const starts[] = {
        V PORT TOKEN ID READ ", x=", /* and a Token to the end */
        RID CONN ", write, x=",
    };
    char field[RDMA_HDR_FIELD_MAX + 1], buf[RDMA_HDR_FORMAT_MAX];
    size_t i;

    for (i = 0; i < COUNT(starts); i++) {
        memset(field, 'a', sizeof(field));
        memcpy(field, starts[i], strlen(starts[i]));
        ck_assert_ptr_nonnull(
            canonical(field, RDMA_HDR_FIELD_MAX, i == 0, buf));
        ck_assert_ptr_null(
            canonical(field, RDMA_HDR_FIELD_MAX + 1, i == 0, buf));
    }
}
END_TEST

static const struct {
    const char *text;
    int family; /* 0: not canonical, or not an address */
} addresses[] = {
    {"0.0.0.0", 4},
    {"255.255.255.255", 4},
    {"192.0.2.1", 4},
    {"256.0.0.1", 0},
    {"192.0.2.01", 0},
    {"192.0.2", 0},
    {"192.0.2.1.", 0},
    {"192.0.2.1 ", 0},
    {" 192.0.2.1", 0},
    {"192.0.2.-1", 0},
    {"0300.0.2.1", 0},
    {"3221225985", 0},
    {"0xc0.0.2.1", 0},
    {"localhost", 0},
    {"", 0},
    {"192.0.2.1/32", 0},
    {"192.0.2.1\\\"", 0},
    {"::", 6},
    {"::1", 6},
    {"1::", 6},
    {"2001:db8::1", 6},
    {"2001:db8:1:2:3:4:5:6", 6},
    {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 6},
    {"2001:db8::1:0:0:1", 6},    /* equals: the first run */
    {"2001:0:0:1::1", 6},        /* the longest run */
    {"2001:db8:0:1:1:1:1:1", 6}, /* one group stays */
    {"0:1:2:3:4:5:6:7", 6},
    {"1:2:3:4:5:6:7:0", 6},
    {"::102:304", 6},
    {"64:ff9b::102:304", 6},
    {"::ffff:0:102:304", 6},
    {"fe80::1", 6},
    {"::1:2:3:4:5:6", 6},
    {"1:2:3:4:5:6::", 6},
    {"2001:db8:0:0:1::1", 0},
    {"2001:db8::1:1:1:1:1", 0},
    {"2001:DB8::1", 0},
    {"2001:0db8::1", 0},
    {"::01", 0},
    {"0::1", 0},
    {"::1.2.3.4", 0},
    {"64:ff9b::1.2.3.4", 0},
    {"::ffff:1.2.3.4", 0},
    {"::ffff:102:304", 0},
    {"::ffff:0:0", 0},
    {"fe80::1%eth0", 0},
    {"fe80::1%251", 0},
    {"[::1]", 0},
    {"1:2:3:4:5:6:7:8:9", 0},
    {"1:2:3:4:5:6:7", 0},
    {"::1::", 0},
    {":1", 0},
    {":::", 0},
    {"12345::", 0},
    {"1:2:3:4:5:6:7::", 0},
    {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff:", 0},
    {"ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", 0},
    {"00000000000000000000000000000000000000000000001", 0},
};

START_TEST(request_addresses)
{
    char text[256], buf[RDMA_HDR_FORMAT_MAX];
    rdma_hdr_request r;
    size_t i;

    for (i = 0; i < COUNT(addresses); i++) {
        rdma_hdr_status status;

        snprintf(text, sizeof(text), "%s, addr=\"%s\"%s", V PORT,
                 addresses[i].text, TOKEN ID READ);
        status = parse_request(text, strlen(text), &r);
        ck_assert_msg((status == RDMA_HDR_OK) == (addresses[i].family != 0),
                      "%s", text);
        if (status != RDMA_HDR_OK)
            continue;
        ck_assert_int_eq(r.family, addresses[i].family);
        ck_assert_str_eq(canonical(text, strlen(text), 1, buf), text);
    }
    ck_assert_ptr_null(canonical(V PORT ", addr=::1" TOKEN ID READ,
                                 strlen(V PORT ", addr=::1" TOKEN ID READ), 1,
                                 buf));
    ck_assert_ptr_null(canonical(V PORT ", addr" TOKEN ID READ,
                                 strlen(V PORT ", addr" TOKEN ID READ), 1,
                                 buf));
}
END_TEST

static int names_a_host(const char *addr)
{
    char text[256];
    rdma_hdr_request r;

    snprintf(text, sizeof(text), "%s, addr=\"%s\"%s", V PORT, addr,
             TOKEN ID READ);
    ck_assert_int_eq(parse_request(text, strlen(text), &r), RDMA_HDR_OK);
    return rdma_hdr_names_a_host(&r);
}

/* Both ends of what is refused, and what lies next to them. (A mapped address is
 * none: see above.) */
START_TEST(addresses_of_hosts)
{
    static const char *const hosts[] = {
        "1.0.0.0",         "10.77.0.1",   "126.255.255.255", "128.0.0.0",
        "169.253.255.255", "169.255.0.0", "223.255.255.255", "2001:db8::1",
        "fe00::1",         "fe7f::1",     "fec0::1",         "feff::1",
        "100::",           "::2",         "::1:1"};
    static const char *const others[] = {
        "0.0.0.0",         "0.0.0.1",         "0.255.255.255",
        "127.0.0.0",       "127.0.0.1",       "127.255.255.255",
        "169.254.0.0",     "169.254.169.254", "169.254.255.255",
        "224.0.0.0",       "239.255.255.255", "240.0.0.1",
        "255.255.255.255", "::",              "::1",
        "fe80::",
        "fe80::1",         "fe90::1",         "febf:ffff::1",
        "ff00::",          "ff02::1",         "ffff::1"};
    rdma_hdr_request none = {.family = 0};
    size_t i;

    ck_assert(!rdma_hdr_names_a_host(&none));
    for (i = 0; i < COUNT(hosts); i++)
        ck_assert_msg(names_a_host(hosts[i]), "%s", hosts[i]);
    for (i = 0; i < COUNT(others); i++)
        ck_assert_msg(!names_a_host(others[i]), "%s", others[i]);
}
END_TEST

#define REFUSED(change)                                                        \
    do {                                                                       \
        rdma_hdr_request r = a_request();                                      \
        char buf[RDMA_HDR_FORMAT_MAX] = "untouched";                           \
        change;                                                                \
        ck_assert_int_eq(rdma_hdr_format_request(&r, buf, sizeof(buf)),        \
                         RDMA_HDR_MALFORMED);                                  \
        ck_assert_str_eq(buf, "untouched");                                    \
    } while (0)

START_TEST(format_request_refuses)
{
    REFUSED(r.port = 1023);
    REFUSED(r.id = 0);
    REFUSED(r.id = 0x80000000u);
    REFUSED(r.family = 5);
    REFUSED(r.family = 6; r.addr[10] = r.addr[11] = 0xff);
    REFUSED(r.prefer[0] = RDMA_HDR_NONE);
    REFUSED(r.prefer[0] = r.prefer[1] = RDMA_HDR_NONE);
    REFUSED(r.prefer[0] = RDMA_HDR_READ);
    REFUSED(r.prefer[1] = (rdma_hdr_kind)3);
    REFUSED(r.len = 0);
    REFUSED(r.len = RDMA_HDR_WINDOW_MAX + 1);
    REFUSED(r.to = UINT64_MAX - 4194303);
}
END_TEST

/* ---- responses ---------------------------------------------------------- */

static const char *const good_responses[] = {
    RID CONN ", write;total=1048576",
    RID CONN ", write;total=1",
    RID CONN ", write;total=999999999999999",
    RID CONN ", write",
    RID CONN PART ";len=1;fin",
    RID CONN PART ";len=4294967295;fin",
    RID CONN PART ";len=262144",
    RID CONN PART ";len=262144;total=262144",
    RID CONN PART ";len=262144;total=999999999999999",
    RID CONN PART ";len=262144;total=262144;fin",
    "v=1, id=1, conn=1, write",
    "v=1, id=2147483647, conn=4294967295, write",
    RID CONN ", declined=failed",
    RID ", declined=small",
    RID ", declined=policy",
    RID ", declined=connect",
    RID ", declined=busy",
    RID ", declined=memory",
    RID ", declined=tls",
    RID ", declined=window",
    RID ", declined=device",
    "v=1, declined=malformed",
    "v=1, declined=version",
};

START_TEST(responses_good)
{
    char buf[RDMA_HDR_FORMAT_MAX], other[RDMA_HDR_FIELD_MAX];
    size_t i;

    for (i = 0; i < COUNT(good_responses); i++) {
        const char *text = good_responses[i];

        ck_assert_msg(canonical(text, strlen(text), 0, buf) != NULL, "%s",
                      text);
        ck_assert_str_eq(buf, text);
        snprintf(other, sizeof(other), "x=?0 ,%s;q=1", text);
        ck_assert_msg(canonical(other, strlen(other), 0, buf) != NULL, "%s",
                      other);
        ck_assert_str_eq(buf, text);
    }
}
END_TEST

START_TEST(response_fields)
{
    static const char text[] = RID CONN PART ";len=2;total=3";
    static const char other[] = RID CONN ", write;fin=?0;len=x;stag";
    rdma_hdr_response r;

    ck_assert_int_eq(parse_response(text, strlen(text), &r), RDMA_HDR_OK);
    ck_assert_uint_eq(r.id, 17);
    ck_assert_uint_eq(r.conn, 5);
    ck_assert_int_eq(r.declined, RDMA_HDR_NOT_DECLINED);
    ck_assert_int_eq(r.kind, RDMA_HDR_READ);
    ck_assert(r.has_total == 1 && r.total == 3 && r.len == 2 && r.fin == 0);
    ck_assert_uint_eq(r.stag, 0x5e01a700);
    ck_assert_uint_eq(r.to, 0x7f90c0000000);
    /* parameters that write does not know */
    ck_assert_int_eq(parse_response(other, strlen(other), &r), RDMA_HDR_OK);
    ck_assert(r.fin == 0 && r.has_total == 0 && r.total == 0);
}
END_TEST

static const char *const bad_responses[] = {
    "",
    V,
    RID,
    RID CONN,
    /* v */
    "id=17" CONN ", write",
    "v=0, id=17" CONN ", write",
    "v=?1, id=17" CONN ", write",
    /* id */
    V CONN ", write",
    "v=1, id=0" CONN ", write",
    "v=1, id=2147483648" CONN ", write",
    "v=1, id=\"17\"" CONN ", write",
    V ", declined=busy",
    V CONN ", declined=failed",
    RID ", declined=malformed",
    RID ", declined=version",
    /* conn */
    RID ", write",
    RID ", conn=0, write",
    RID ", conn=4294967296, write",
    RID ", conn=-1, write",
    RID ", conn=5.0, write",
    RID ", declined=failed",
    RID CONN ", declined=busy",
    RID CONN ", declined=small",
    V CONN ", declined=malformed",
    V CONN ", declined=version",
    RID ", conn=0, declined=busy",
    /* declined */
    RID ", declined",
    RID ", declined=\"busy\"",
    RID ", declined=Busy",
    RID ", declined=busyy",
    RID ", declined=bus",
    RID ", declined=weather",
    RID ", declined=1",
    RID ", declined=?0",
    /* more than one, or none */
    RID CONN ", write, declined=failed",
    RID CONN PART ";len=1, declined=failed",
    RID CONN ", write" PART ";len=1",
    RID CONN ", write=?0",
    RID CONN ", read=?0",
    RID CONN ", write=1",
    /* total */
    RID CONN ", write;total=0",
    RID CONN ", write;total=-1",
    RID CONN ", write;total=1000000000000000",
    RID CONN ", write;total",
    RID CONN ", write;total=1.0",
    RID CONN PART ";len=1;total=0",
    RID CONN PART ";len=2;total=1",
    RID CONN PART ";len=2;total=1;fin",
    RID CONN PART ";len=2;total=3;fin",
    /* the part */
    RID CONN PART,
    RID CONN PART ";len=0",
    RID CONN PART ";len=0;fin",
    RID CONN PART ";len=4294967296",
    RID CONN PART ";len=-1",
    RID CONN ", read",
    RID CONN ", read;fin",
    RID CONN ", read;stag=\"5e01a700\";len=1",
    RID CONN ", read;to=\"00007f90c0000000\";len=1",
    RID CONN PART ";len=1;stag=\"5E01a700\"",
    RID CONN PART ";len=1;to=\"0\"",
    RID CONN PART ";len=1;to=\"ffffffffffffffff\"",
    RID CONN PART ";len=4294967295;to=\"ffffffff00000001\"",
    RID CONN PART ";len=1;fin=?0",
    RID CONN PART ";len=1;fin=1",
    /* the grammar */
    RID CONN ", write,",
    RID CONN ", write;",
    RID CONN ", Write",
};

START_TEST(responses_bad)
{
    rdma_hdr_response r;
    size_t i;

    for (i = 0; i < COUNT(bad_responses); i++)
        ck_assert_msg(parse_response(bad_responses[i], strlen(bad_responses[i]),
                                     &r) == RDMA_HDR_MALFORMED,
                      "%s", bad_responses[i]);
    ck_assert_int_eq(rdma_hdr_parse_response(NULL, 0, &r), RDMA_HDR_MALFORMED);
}
END_TEST

START_TEST(format_response_refuses)
{
    static const rdma_hdr_response bad[] = {
        {.id = 17, .conn = 5},
        {.id = 17, .conn = 5, .kind = (rdma_hdr_kind)3},
        {.id = 17, .kind = RDMA_HDR_WRITE},
        {.conn = 5, .kind = RDMA_HDR_WRITE},
        {.id = 0x80000000u, .conn = 5, .kind = RDMA_HDR_WRITE},
        {.id = 17, .conn = 5, .kind = RDMA_HDR_WRITE, .has_total = 1},
        {.id = 17,
         .conn = 5,
         .kind = RDMA_HDR_WRITE,
         .has_total = 1,
         .total = RDMA_HDR_TOTAL_MAX + 1},
        {.id = 17, .conn = 5, .kind = RDMA_HDR_READ},
        {.id = 17, .conn = 5, .kind = RDMA_HDR_READ, .len = 0x100000000u},
        {.id = 17,
         .conn = 5,
         .kind = RDMA_HDR_READ,
         .len = 2,
         .to = UINT64_MAX - 1},
        {.id = 17,
         .conn = 5,
         .kind = RDMA_HDR_READ,
         .len = 2,
         .has_total = 1,
         .total = 1},
        {.id = 17,
         .conn = 5,
         .kind = RDMA_HDR_READ,
         .len = 2,
         .has_total = 1,
         .total = 3,
         .fin = 1},
        {.id = 17, .declined = RDMA_HDR_FAILED},
        {.id = 17, .conn = 5, .declined = RDMA_HDR_BUSY},
        {.declined = RDMA_HDR_BUSY},
        {.id = 17, .declined = RDMA_HDR_DECLINED_VERSION},
        {.id = 17, .declined = RDMA_HDR_DECLINED_COUNT},
        {.id = 17, .declined = (rdma_hdr_declined)-1},
        {.id = 17,
         .conn = 5,
         .declined = RDMA_HDR_FAILED,
         .kind = RDMA_HDR_WRITE},
    };
    char buf[RDMA_HDR_FORMAT_MAX] = "untouched";
    size_t i;

    for (i = 0; i < COUNT(bad); i++) {
        ck_assert_int_eq(rdma_hdr_format_response(&bad[i], buf, sizeof(buf)),
                         RDMA_HDR_MALFORMED);
        ck_assert_str_eq(buf, "untouched");
    }
}
END_TEST

START_TEST(names)
{
    ck_assert_ptr_null(rdma_hdr_declined_name(RDMA_HDR_NOT_DECLINED));
    ck_assert_ptr_null(rdma_hdr_declined_name(RDMA_HDR_DECLINED_COUNT));
    ck_assert_ptr_null(rdma_hdr_declined_name((rdma_hdr_declined)-1));
    ck_assert_str_eq(rdma_hdr_declined_name(RDMA_HDR_SMALL), "small");
    ck_assert_str_eq(rdma_hdr_declined_name(RDMA_HDR_FAILED), "failed");
    ck_assert_str_eq(rdma_hdr_kind_name(RDMA_HDR_WRITE), "write");
    ck_assert_str_eq(rdma_hdr_kind_name(RDMA_HDR_READ), "read");
    ck_assert_str_eq(rdma_hdr_kind_name(RDMA_HDR_NONE), "none");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rdma_hdr");
    TCase *t = tcase_create("fields");
    SRunner *runner;
    int failed;

    tcase_add_test(t, requests_good);
    tcase_add_test(t, request_fields);
    tcase_add_test(t, requests_bad);
    tcase_add_test(t, versions);
    tcase_add_test(t, field_length);
    tcase_add_test(t, request_addresses);
    tcase_add_test(t, addresses_of_hosts);
    tcase_add_test(t, format_request_refuses);
    tcase_add_test(t, responses_good);
    tcase_add_test(t, response_fields);
    tcase_add_test(t, responses_bad);
    tcase_add_test(t, format_response_refuses);
    tcase_add_test(t, names);
    suite_add_tcase(s, t);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
