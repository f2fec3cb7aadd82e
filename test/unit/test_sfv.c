/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Tests of rdma_sfv: the grammar of RFC 9651, table by table.
 */
#include "rdma_sfv.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* Read a copy that ends where the text ends, for AddressSanitizer. */
static int read_copy(const char *text, size_t n, rdma_sfv_slot *slots,
                     size_t count)
{
    char *copy = malloc(n > 0 ? n : 1);
    int good;
    size_t i;

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, text, n);
    good = rdma_sfv_read(copy, n, slots, count);
    free(copy);
    for (i = 0; i < count; i++)
        slots[i].v.p = NULL; /* it pointed into the copy */
    return good;
}

/* ---- values ------------------------------------------------------------- */

#define BAD RDMA_SFV_ABSENT

/* The text of a value, and its type. */
static const struct {
    const char *text;
    rdma_sfv_type type;
} values[] = {
    /* 4.2.4 Integers and Decimals */
    {"0", RDMA_SFV_INTEGER},
    {"-0", RDMA_SFV_INTEGER},
    {"007", RDMA_SFV_INTEGER},
    {"999999999999999", RDMA_SFV_INTEGER},
    {"-999999999999999", RDMA_SFV_INTEGER},
    {"1000000000000000", BAD},
    {"0000000000000000", BAD},
    {"-", BAD},
    {"--1", BAD},
    {"+1", BAD},
    {"-a", BAD},
    {"1e3", BAD},
    {"1.5", RDMA_SFV_DECIMAL},
    {"-0.0", RDMA_SFV_DECIMAL},
    {"123456789012.123", RDMA_SFV_DECIMAL},
    {"1234567890123.1", BAD},
    {"1.1234", BAD},
    {"1.", BAD},
    {"-1.", BAD},
    {".5", BAD},
    {"1.2.3", BAD},
    /* 4.2.5 Strings */
    {"\"\"", RDMA_SFV_STRING},
    {"\"a b~!\"", RDMA_SFV_STRING},
    {"\"a\\\"b\"", RDMA_SFV_STRING},
    {"\"a\\\\\"", RDMA_SFV_STRING},
    {"\"a\\b\"", BAD},
    {"\"a\\", BAD},
    {"\"a\\\"", BAD},
    {"\"a", BAD},
    {"\"", BAD},
    {"\"a\tb\"", BAD},
    {"\"a\x7f\"", BAD},
    {"\"a\x80\"", BAD},
    {"\"a\"b", BAD},
    {"'a'", BAD},
    /* 4.2.6 Tokens */
    {"a", RDMA_SFV_TOKEN},
    {"*", RDMA_SFV_TOKEN},
    {"A1", RDMA_SFV_TOKEN},
    {"a!#$%&'*+-.^_`|~:/0", RDMA_SFV_TOKEN},
    {"!a", BAD},
    {"a\"", BAD},
    {"a(", BAD},
    {"a\x80", BAD},
    /* 4.2.7 Byte Sequences */
    {"::", RDMA_SFV_BYTES},
    {":YQ==:", RDMA_SFV_BYTES},
    {":YQ:", RDMA_SFV_BYTES},
    {":YR==:", RDMA_SFV_BYTES},
    {":YWI=:", RDMA_SFV_BYTES},
    {":YWI:", RDMA_SFV_BYTES},
    {":YWJj:", RDMA_SFV_BYTES},
    {":+/+/:", RDMA_SFV_BYTES},
    {":YQ=:", BAD},
    {":YQ===:", BAD},
    {":YWI==:", BAD},
    {":YWJj=:", BAD},
    {":YWJj====:", BAD},
    {":Y:", BAD},
    {":Y===:", BAD},
    {":=:", BAD},
    {":==:", BAD},
    {":====:", BAD},
    {":YQ=Q:", BAD},
    {":Y Q:", BAD},
    {":_-8=:", BAD},
    {":YQ==", BAD},
    {":", BAD},
    {":YWJj:x", BAD},
    /* 4.2.8 Booleans */
    {"?0", RDMA_SFV_BOOLEAN},
    {"?1", RDMA_SFV_BOOLEAN},
    {"?2", BAD},
    {"?", BAD},
    {"?t", BAD},
    {"?01", BAD},
    /* 4.2.9 Dates */
    {"@0", RDMA_SFV_DATE},
    {"@-1", RDMA_SFV_DATE},
    {"@1659578233", RDMA_SFV_DATE},
    {"@1.5", BAD},
    {"@1.", BAD},
    {"@", BAD},
    {"@a", BAD},
    /* 4.2.10 Display Strings */
    {"%\"\"", RDMA_SFV_DISPLAY},
    {"%\"a b\\\"", RDMA_SFV_DISPLAY},
    {"%\"%00%22\"", RDMA_SFV_DISPLAY},
    {"%\"%c3%a9\"", RDMA_SFV_DISPLAY},
    {"%\"%df%bf\"", RDMA_SFV_DISPLAY},
    {"%\"%e0%a0%80\"", RDMA_SFV_DISPLAY},
    {"%\"%ed%9f%bf\"", RDMA_SFV_DISPLAY},
    {"%\"%ef%bf%bf\"", RDMA_SFV_DISPLAY},
    {"%\"%f0%90%80%80\"", RDMA_SFV_DISPLAY},
    {"%\"%f4%8f%bf%bf\"", RDMA_SFV_DISPLAY},
    {"%\"%C3%A9\"", BAD},
    {"%\"%c3\"", BAD},
    {"%\"%c3a\"", BAD},
    {"%\"%c3%c3\"", BAD},
    {"%\"%80\"", BAD},
    {"%\"%c0%80\"", BAD},
    {"%\"%c1%bf\"", BAD},
    {"%\"%e0%9f%bf\"", BAD},
    {"%\"%ed%a0%80\"", BAD},
    {"%\"%e1%80\"", BAD},
    {"%\"%f0%8f%bf%bf\"", BAD},
    {"%\"%f4%90%80%80\"", BAD},
    {"%\"%f5%80%80%80\"", BAD},
    {"%\"%ff\"", BAD},
    {"%\"%4\"", BAD},
    {"%\"%g0\"", BAD},
    {"%\"%\"", BAD},
    {"%\"a", BAD},
    {"%\"\xc3\xa9\"", BAD},
    {"%\"\x01\"", BAD},
    {"%a", BAD},
    {"%", BAD},
    /* 4.2.1.2 Inner Lists */
    {"()", RDMA_SFV_LIST},
    {"( )", RDMA_SFV_LIST},
    {"(1)", RDMA_SFV_LIST},
    {"( 1  \"b\" c ?0 :YQ==: @1 %\"x\" 1.5 )", RDMA_SFV_LIST},
    {"(1;a=2;b \"b\";c)", RDMA_SFV_LIST},
    {"(1;a=2);x", RDMA_SFV_LIST},
    {"(1,2)", BAD},
    {"(1", BAD},
    {"(1 ", BAD},
    {"(", BAD},
    {"(1\"a\")", BAD},
    {"((1))", BAD},
    {"(1;)", BAD},
    {"(1\t2)", BAD},
    {"(1)2", BAD},
    {")", BAD},
    /* none of them */
    {"", BAD},
    {" 1", BAD},
    {"=1", BAD},
    {"{1}", BAD},
};

/* Each value stands as a member, as a parameter, in a list, and unknown. */
START_TEST(each_value)
{
    size_t i, n;

    for (i = 0; i < COUNT(values); i++) {
        rdma_sfv_slot s[2] = {{.member = "a"}, {.member = "p", .param = "q"}};
        rdma_sfv_type type = values[i].type;
        char text[128];
        int is_list = strchr(values[i].text, '(') != NULL;

        strcpy(text, "a=");
        strcat(text, values[i].text);
        n = strlen(text);
        ck_assert_msg(read_copy(text, n, s, 2) == (type != BAD), "%s", text);
        ck_assert_msg(type == BAD || s[0].v.type == type, "%s", text);
        ck_assert_int_eq(read_copy(text, n, NULL, 0), type != BAD);
        strcpy(text, "p;q=");
        strcat(text, values[i].text);
        strcat(text, ", z");
        n = strlen(text);
        if (is_list && type != BAD)
            type = BAD; /* parameters are bare items */
        ck_assert_msg(read_copy(text, n, s, 2) == (type != BAD), "%s", text);
        ck_assert_msg(type == BAD || s[1].v.type == type, "%s", text);
    }
}
END_TEST

START_TEST(integer_values)
{
    rdma_sfv_slot s = {.member = "a"};
    uint64_t num = 7;

    ck_assert(read_copy("a=999999999999999", 17, &s, 1));
    ck_assert(rdma_sfv_integer(&s.v, 0, UINT64_MAX, &num));
    ck_assert_uint_eq(num, 999999999999999);
    ck_assert(!rdma_sfv_integer(&s.v, 0, 999999999999998, &num));
    ck_assert(read_copy("a=-1", 4, &s, 1));
    ck_assert_int_eq(s.v.num, -1);
    ck_assert(!rdma_sfv_integer(&s.v, 0, UINT64_MAX, &num));
    ck_assert(read_copy("a=-0", 4, &s, 1));
    ck_assert(rdma_sfv_integer(&s.v, 0, 0, &num));
    ck_assert(!rdma_sfv_integer(&s.v, 1, 9, &num));
    ck_assert(read_copy("a=5.0", 5, &s, 1));
    ck_assert(!rdma_sfv_integer(&s.v, 0, 9, &num));
}
END_TEST

/* ---- the Dictionary ----------------------------------------------------- */

static const struct {
    const char *text;
    int good;
} dictionaries[] = {
    {"", 1},        {" ", 1},       {"a", 1},         {"a=1", 1},
    {"  a", 1},     {"a  ", 1},     {"a\t", 1},       {"a,b", 1},
    {"a , b", 1},   {"a\t,\tb", 1}, {"a \t, \tb", 1}, {"*a-b_c.d*9=1", 1},
    {"a;b", 1},     {"a;b;c=1", 1}, {"a;  b", 1},     {"a=1;b=2,c", 1},
    {"a;b , c", 1}, {"\ta", 0},     {"a,", 0},        {"a, ", 0},
    {"a,\t", 0},    {",", 0},       {",a", 0},        {"a,,b", 0},
    {"a, ,b", 0},   {"a b", 0},     {"a;b c", 0},     {"A", 0},
    {"aB", 0},      {"1a", 0},      {"_a", 0},        {"-a", 0},
    {".a", 0},      {"a=", 0},      {"a= 1", 0},      {"a =1", 0},
    {"a=,b", 0},    {"a;", 0},      {"a; ", 0},       {"a;\tb", 0},
    {"a ;b", 0},    {"a;b=", 0},    {"a;b= 1", 0},    {"a;B", 0},
    {"a;b=(1)", 0}, {"a;;b", 0},    {"a;1", 0},       {"a\r\n, b", 0},
    {"a,\nb", 0},   {"\"a\"=1", 0}, {"a=1 2", 0},
};

START_TEST(each_dictionary)
{
    size_t i;

    for (i = 0; i < COUNT(dictionaries); i++) {
        rdma_sfv_slot s = {.member = "a"};
        const char *text = dictionaries[i].text;

        ck_assert_msg(read_copy(text, strlen(text), &s, 1) ==
                          dictionaries[i].good,
                      "%s", text);
    }
    ck_assert(rdma_sfv_read(NULL, 0, NULL, 0));
    ck_assert(!read_copy("a\0b", 3, NULL, 0));
    ck_assert(!read_copy("a\0", 2, NULL, 0));
    ck_assert(!read_copy("\0", 1, NULL, 0));
    ck_assert(!read_copy("a=b\0", 4, NULL, 0));
}
END_TEST

START_TEST(duplicates)
{
    static const char text[] = "a;x=1;y, b=1, c;x=7, a=2;x=3;x=4, b";
    rdma_sfv_slot s[] = {{.member = "b"},
                         {.member = "a"},
                         {.member = "a", .param = "x"},
                         {.member = "a", .param = "y"},
                         {.member = "d"}};

    ck_assert(read_copy(text, strlen(text), s, COUNT(s)));
    /* the last value, the first place */
    ck_assert_int_eq(s[0].v.type, RDMA_SFV_BOOLEAN);
    ck_assert_uint_eq(s[0].order, 2);
    ck_assert_int_eq(s[1].v.num, 2);
    ck_assert_uint_eq(s[1].order, 1);
    ck_assert_int_eq(s[2].v.num, 4);
    /* the parameters of the overwritten value are gone */
    ck_assert_int_eq(s[3].v.type, RDMA_SFV_ABSENT);
    ck_assert_int_eq(s[4].v.type, RDMA_SFV_ABSENT);
    ck_assert_uint_eq(s[4].order, 0);
}
END_TEST

/* ---- judges and writing ------------------------------------------------- */

static rdma_sfv_value text_value(rdma_sfv_type type, const char *text)
{
    rdma_sfv_value v = {type, (const unsigned char *)text, strlen(text), 0};

    return v;
}

START_TEST(hex_values)
{
    rdma_sfv_value v = text_value(RDMA_SFV_STRING, "0123456789abcdef");
    uint64_t num = 7;

    ck_assert(rdma_sfv_hex(&v, 16, &num));
    ck_assert(num == 0x0123456789abcdefu);
    ck_assert(!rdma_sfv_hex(&v, 15, &num));
    v = text_value(RDMA_SFV_STRING, "0000000A");
    ck_assert(!rdma_sfv_hex(&v, 8, &num));
    v = text_value(RDMA_SFV_STRING, "0x000001");
    ck_assert(!rdma_sfv_hex(&v, 8, &num));
    v = text_value(RDMA_SFV_STRING, "0000000g");
    ck_assert(!rdma_sfv_hex(&v, 8, &num));
    v = text_value(RDMA_SFV_STRING, "000000 1");
    ck_assert(!rdma_sfv_hex(&v, 8, &num));
    v = text_value(RDMA_SFV_TOKEN, "abcdef00");
    ck_assert(!rdma_sfv_hex(&v, 8, &num));
}
END_TEST

START_TEST(flags)
{
    rdma_sfv_value v = {RDMA_SFV_ABSENT, NULL, 0, 0};
    int flag = 7;

    ck_assert(rdma_sfv_flag(&v, &flag) && flag == 0);
    v.type = RDMA_SFV_BOOLEAN;
    ck_assert(!rdma_sfv_flag(&v, &flag));
    v.num = 1;
    ck_assert(rdma_sfv_flag(&v, &flag) && flag == 1);
    v.type = RDMA_SFV_INTEGER;
    ck_assert(!rdma_sfv_flag(&v, &flag));
}
END_TEST

/* Every length up to 40: written, read, and with the padding cut off. */
START_TEST(byte_sequences)
{
    uint8_t data[40], again[40];
    size_t n, i;

    for (i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 91 + 200);
    for (n = 0; n <= sizeof(data); n++) {
        char text[80];
        rdma_sfv_slot s = {.member = "a"};
        rdma_sfv_writer w = rdma_sfv_start(text, sizeof(text));

        rdma_sfv_put_text(&w, "a=");
        rdma_sfv_put_bytes(&w, data, n);
        ck_assert_ptr_nonnull(w.p);
        ck_assert_uint_eq(strlen(text), 4 + (n + 2) / 3 * 4);
        ck_assert(rdma_sfv_read(text, strlen(text), &s, 1));
        ck_assert(rdma_sfv_bytes(&s.v, again, n));
        ck_assert(n == 0 || memcmp(again, data, n) == 0);
        ck_assert(!rdma_sfv_bytes(&s.v, again, n + 1));
        ck_assert(n == 0 || !rdma_sfv_bytes(&s.v, again, n - 1));
    }
}
END_TEST

START_TEST(decimals_and_room)
{
    char text[21];
    rdma_sfv_writer w = rdma_sfv_start(text, sizeof(text));

    rdma_sfv_put_decimal(&w, UINT64_MAX);
    ck_assert_ptr_nonnull(w.p);
    ck_assert_str_eq(text, "18446744073709551615");
    rdma_sfv_put_text(&w, "");
    ck_assert_ptr_nonnull(w.p);
    rdma_sfv_put_decimal(&w, 0);
    ck_assert_ptr_null(w.p);
    rdma_sfv_put_text(&w, "");
    ck_assert_ptr_null(w.p);
    w = rdma_sfv_start(text, 0);
    ck_assert_ptr_null(w.p);
    w = rdma_sfv_start(text, 5);
    rdma_sfv_put_hex(&w, 0xfedc, 3);
    ck_assert_str_eq(text, "edc");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rdma_sfv");
    TCase *t = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(t, each_value);
    tcase_add_test(t, integer_values);
    tcase_add_test(t, each_dictionary);
    tcase_add_test(t, duplicates);
    tcase_add_test(t, hex_values);
    tcase_add_test(t, flags);
    tcase_add_test(t, byte_sequences);
    tcase_add_test(t, decimals_and_room);
    suite_add_tcase(s, t);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
