/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "result.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "loop.h"
#include "peer.h"

struct totals totals;
const char *const path_names[PATHS] = {"none", "write", "read", "tcp"};

enum { TOKENS = 32 };
static struct {
    char token[16];
    unsigned n;
} declined[TOKENS];

void check_init(struct check *c)
{
    memset(c, 0, sizeof *c);
    c->hash = opt.verify == VERIFY_SHA || opt.full;
    sha256_init(&c->sha);
}

/* A stamp at the begin of each 64 KiB, and nothing but zeros behind it. */
static uint64_t wrong_of_sparse(uint64_t at, const uint8_t *data, size_t len)
{
    static const uint8_t zeros[4096];
    uint64_t wrong = 0;

    for (size_t i = 0; i < len;) {
        unsigned in = (unsigned)((at + i) & 0xffff);
        uint8_t word[8];
        size_t n = 0x10000 - in;
        const uint8_t *right = zeros;
        if (in < 8) {
            put_be(word, 8, (at + i - in) ^ opt.seed);
            right = word + in;
            n = 8 - in;
        }
        n = n < sizeof zeros ? n : sizeof zeros;
        n = n < len - i ? n : len - i;
        if (memcmp(data + i, right, n) != 0) {
            for (size_t k = 0; k < n; k++) {
                wrong += data[i + k] != right[k];
            }
        }
        i += n;
    }
    return wrong;
}

void check_feed(struct check *c, const uint8_t *data, size_t len)
{
    if (opt.save != NULL && len > 0) {
        c->bytes = need(realloc(c->bytes, c->offset + len));
        memcpy(c->bytes + c->offset, data, len);
    }
    if (opt.verify == VERIFY_SPARSE) {
        c->wrong += wrong_of_sparse(c->offset, data, len);
    }
    if (c->hash) {
        sha256_feed(&c->sha, data, len);
    }
    if (opt.verify == VERIFY_STAMP) {
        uint64_t at = c->offset + opt.base;
        for (size_t i = 0; i < len;) {
            uint64_t value = (at & ~UINT64_C(7)) ^ opt.seed;
            uint8_t word[8];
            unsigned from = (unsigned)(at & 7), n = 8 - from;
            n = n < len - i ? n : (unsigned)(len - i);
            put_be(word, 8, value);
            if (memcmp(data + i, word + from, n) != 0) {
                for (unsigned k = 0; k < n; k++) {
                    c->wrong += data[i + k] != word[from + k];
                }
            }
            i += n;
            at += n;
        }
    }
    c->offset += len;
}

bool check_fine(const struct check *c)
{
    char hex[65];
    if (opt.verify == VERIFY_SHA) {
        sha256_hex(&c->sha, hex);
        return strcmp(hex, opt.sha) == 0;
    }
    return c->wrong == 0;
}

void error_note(const char *format, ...)
{
    char text[TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    trace("error: %s", text);
    for (unsigned i = 0; i < totals.n_errors; i++) {
        if (strcmp(totals.errors[i], text) == 0) {
            totals.error_counts[i]++;
            return;
        }
    }
    if (totals.n_errors < ERRORS_MAX) {
        memcpy(totals.errors[totals.n_errors], text, sizeof text);
        totals.error_counts[totals.n_errors++] = 1;
    }
}

void declined_note(const char *token)
{
    for (unsigned i = 0; i < TOKENS; i++) {
        if (declined[i].n == 0) {
            snprintf(declined[i].token, sizeof declined[i].token, "%s", token);
        }
        if (strcmp(declined[i].token, token) == 0) {
            declined[i].n++;
            return;
        }
    }
}

void trace(const char *format, ...)
{
    static double began;
    va_list args;
    if (!opt.verbose) {
        return;
    }
    if (began <= 0) {
        began = loop_now();
    }
    fprintf(stderr, "%8.3f ", loop_now() - began);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    putc('\n', stderr);
}

static void print_request(struct json *j, const struct request *r)
{
    const struct check *c =
        r->path_used == PATH_TCP || r->tcp ? &r->by_tcp : &r->by_rdma;
    char hex[65];
    static const char *const results[] = {"pending", "ok", "failed",
                                          "repeated"};
    json_open(j, NULL, '{');
    json_number(j, "client", r->ep->number);
    json_number(j, "id", r->id);
    json_string(j, "url", r->path);
    json_string(j, "result", results[r->result]);
    json_number(j, "status", (uint64_t)r->status);
    json_string(j, "path", path_names[r->path_used]);
    json_number(j, "bytes", c->offset);
    json_number(j, "mismatched", c->wrong);
    sha256_hex(&c->sha, hex);
    json_string(j, "sha256", hex);
    if (opt.fields.n > 0) {
        json_string(j, "sent", r->field != NULL ? r->field : "");
    }
    json_string(j, "field", r->answer_text);
    json_string(j, "declined", r->answer.declined);
    json_number(j, "conn", r->number);
    json_number(j, "closed", r->closed);
    json_real(j, "seconds", r->ended - r->began);
    json_close(j, '}');
}

static void print_messages(struct json *j, const char *key,
                           const uint64_t counts[MESSAGE_TYPES])
{
    json_open(j, key, '{');
    for (unsigned i = 1; i < MESSAGE_TYPES; i++) {
        json_number(j, message_names[i], counts[i]);
    }
    json_close(j, '}');
}

static void print_json(struct endpoint **endpoints, double seconds)
{
    struct json j = {.out = stdout};
    json_open(&j, NULL, '{');
    json_number(&j, "requests", totals.requests);
    json_number(&j, "ok", totals.ok);
    json_number(&j, "failed", totals.failed);
    json_open(&j, "paths", '{');
    for (unsigned i = PATH_WRITE; i < PATHS; i++) {
        json_number(&j, path_names[i], totals.path[i]);
    }
    json_close(&j, '}');
    json_open(&j, "bytes", '{');
    for (unsigned i = PATH_WRITE; i < PATHS; i++) {
        json_number(&j, path_names[i], totals.bytes[i]);
    }
    json_close(&j, '}');
    json_number(&j, "mismatched", totals.wrong);
    json_open(&j, "declined", '{');
    for (unsigned i = 0; i < TOKENS && declined[i].n > 0; i++) {
        json_number(&j, declined[i].token, declined[i].n);
    }
    json_close(&j, '}');
    json_open(&j, "connections", '{');
    json_number(&j, "write", totals.accepted[KIND_WRITE]);
    json_number(&j, "read", totals.accepted[KIND_READ]);
    json_number(&j, "lost", totals.lost);
    json_open(&j, "rejected", '{');
    for (unsigned i = 0; i < 8; i++) {
        if (totals.rejected[i] > 0) {
            char key[4] = {(char)('0' + i), '\0'};
            json_number(&j, key, totals.rejected[i]);
        }
    }
    json_close(&j, '}');
    json_close(&j, '}');
    json_number(&j, "http_connections", totals.http_connections);
    json_number(&j, "repeated", totals.repeated);
    json_number(&j, "aside", totals.aside);
    json_number(&j, "unexpected", totals.unexpected);
    json_open(&j, "forbidden", '{');
    json_number(&j, "done", totals.lies_done);
    json_number(&j, "refused", totals.lies_refused);
    json_number(&j, "bytes_seen", totals.lies_seen);
    json_close(&j, '}');
    print_messages(&j, "messages_in", totals.in);
    print_messages(&j, "messages_out", totals.out);
    json_open(&j, "status", '{');
    for (unsigned i = 0; i < 1000; i++) {
        if (totals.status[i] > 0) {
            char key[8];
            snprintf(key, sizeof key, "%u", i);
            json_number(&j, key, totals.status[i]);
        }
    }
    json_close(&j, '}');
    json_open(&j, "errors", '{');
    for (unsigned i = 0; i < totals.n_errors; i++) {
        json_number(&j, totals.errors[i], totals.error_counts[i]);
    }
    json_close(&j, '}');
    json_real(&j, "seconds", seconds);
    if (opt.full) {
        json_open(&j, "details", '[');
        for (unsigned i = 0; i < opt.clients; i++) {
            for (unsigned k = 0; k < endpoints[i]->n_requests; k++) {
                print_request(&j, endpoints[i]->requests[k]);
            }
        }
        json_close(&j, ']');
    }
    json_close(&j, '}');
}

void result_print(struct endpoint **endpoints, double seconds)
{
    if (opt.json) {
        print_json(endpoints, seconds);
        return;
    }
    printf("%u requests, %u ok: %u write, %u read, %u tcp; %.3f s\n",
           totals.requests, totals.ok, totals.path[PATH_WRITE],
           totals.path[PATH_READ], totals.path[PATH_TCP], seconds);
    for (unsigned i = 0; i < totals.n_errors; i++) {
        printf("  %u times: %s\n", totals.error_counts[i], totals.errors[i]);
    }
}
