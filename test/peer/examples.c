/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "examples.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "field.h"
#include "wire.h"

enum { BLOCK_MAX = 65536, LINE_SIZE = 8192 };

/* A block: what it is, its lines above and below `---`. */
struct block {
    char kind[64], above[BLOCK_MAX], below[LINE_SIZE];
};

static unsigned passed, wrong;

static void judge(const struct block *b, const char *what, const char *got,
                  const char *wanted)
{
    if (strcmp(got, wanted) == 0) {
        passed++;
        return;
    }
    wrong++;
    printf("WRONG %s: %s\n  got    %s\n  wanted %s\n", b->kind, what, got,
           wanted);
}

static const char *preference(uint8_t kind)
{
    return kind == KIND_WRITE ? "write" : kind == KIND_READ ? "read" : "none";
}

static void offer_text(const struct offer *o, char *out, size_t size)
{
    int n = snprintf(out, size, "port=%u addr=%s token=", o->port,
                     o->has_addr ? o->addr : "-");
    for (unsigned i = 0; i < TOKEN_SIZE; i++) {
        n += snprintf(out + n, size - (size_t)n, "%02x", o->token[i]);
    }
    n += snprintf(out + n, size - (size_t)n, " id=%u prefer=%s,%s", o->id,
                  preference(o->prefer[0]), preference(o->prefer[1]));
    if (o->prefer[0] == KIND_WRITE || o->prefer[1] == KIND_WRITE) {
        snprintf(out + n, size - (size_t)n, " stag=%08x to=%016llx len=%llu",
                 o->stag, (unsigned long long)o->to,
                 (unsigned long long)o->len);
    }
}

static void answer_text(const struct answer *a, char *out, size_t size)
{
    char id[12] = "-", conn[12] = "-", total[24] = "-";
    int n;
    if (a->has_id) {
        snprintf(id, sizeof id, "%u", a->id);
    }
    if (a->has_conn) {
        snprintf(conn, sizeof conn, "%u", a->conn);
    }
    if (a->has_total) {
        snprintf(total, sizeof total, "%llu", (unsigned long long)a->total);
    }
    n = snprintf(out, size, "id=%s conn=%s declined=%s kind=%s", id, conn,
                 a->kind == 0 ? a->declined : "-", preference(a->kind));
    if (a->kind != 0) {
        n += snprintf(out + n, size - (size_t)n, " total=%s", total);
    }
    if (a->kind == KIND_READ) {
        snprintf(out + n, size - (size_t)n,
                 " stag=%08x to=%016llx len=%u fin=%d", a->stag,
                 (unsigned long long)a->to, a->len, a->fin);
    }
}

static void field(const struct block *b, const char *value, bool request,
                  const char *wanted)
{
    static const char *const verdicts[] = {"ok", "version", "malformed"};
    char text[512];
    struct offer o;
    struct answer a;
    enum field_verdict v = request ? field_get_offer(value, strlen(value), &o)
                                   : field_get_answer(value, strlen(value), &a);
    if (v != FIELD_OK || *wanted == '\0') {
        judge(b, value, verdicts[v], b->kind + strcspn(b->kind, " ") + 1);
    }
    else {
        if (request) {
            offer_text(&o, text, sizeof text);
        }
        else {
            answer_text(&a, text, sizeof text);
        }
        judge(b, value, text, wanted);
    }
}

static void fields(struct block *b, bool request)
{
    bool ok = strstr(b->kind, " ok") != NULL;
    char joined[LINE_SIZE] = "", *save;
    for (char *line = strtok_r(b->above, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        if (ok) {
            size_t n = strlen(joined);
            snprintf(joined + n, sizeof joined - n, "%s%s", n > 0 ? ", " : "",
                     line);
        }
        else if (*line != '#') {
            field(b, line, request, "");
        }
    }
    if (ok) {
        field(b, joined, request, b->below);
    }
}

static size_t bytes_of(const char *text, uint8_t *out, size_t size)
{
    size_t n = 0;
    while (n < size) {
        char *end;
        unsigned long value = strtoul(text, &end, 16);
        if (end == text) {
            break;
        }
        out[n++] = (uint8_t)value;
        text = end;
    }
    return n;
}

static void message_text(const uint8_t *data, size_t n, char *out, size_t size)
{
    struct message m;
    int at;
    if (n == MESSAGE_SIZE) {
        wire_get(data, &m);
    }
    if (n != MESSAGE_SIZE || wire_judge(&m) != NULL) {
        snprintf(out, size, "malformed");
        return;
    }
    bool id = m.type >= WRITTEN && m.type <= ABORT;
    at = snprintf(out, size, "type=%s fin=%d credits=%u id=%u",
                  message_names[m.type], id ? m.flags & FLAG_FIN : 0, m.credits,
                  id ? m.id : 0);
    if (id && m.type != ABORT) {
        at += snprintf(out + at, size - (size_t)at, " bytes=%llu",
                       (unsigned long long)m.bytes);
    }
    if (m.type == OFFER && m.len > 0) {
        snprintf(out + at, size - (size_t)at, " stag=%08x len=%u to=%016llx",
                 m.stag, m.len, (unsigned long long)m.to);
    }
    else if (m.type == ABORT) {
        snprintf(out + at, size - (size_t)at, " len=%u", m.len);
    }
}

static void messages(struct block *b, bool fine)
{
    uint8_t data[256];
    char text[256], *save;
    if (fine) {
        message_text(data, bytes_of(b->above, data, sizeof data), text,
                     sizeof text);
        judge(b, b->above, text, b->below);
        return;
    }
    for (char *line = strtok_r(b->above, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        message_text(data, bytes_of(line, data, sizeof data), text,
                     sizeof text);
        judge(b, line, text, "malformed");
    }
}

static void connects(struct block *b)
{
    uint8_t data[256];
    char text[128];
    struct connect_request r;
    size_t len = bytes_of(b->above, data, sizeof data);
    int why = wire_get_request(data, len, 4, &r);
    int n = snprintf(text, sizeof text, "reason=%d", why);
    if (why == REJECT_NONE) {
        n = snprintf(text, sizeof text,
                     "kind=%s depth=%u token=", preference(r.kind), r.depth);
        for (unsigned i = 0; i < TOKEN_SIZE; i++) {
            n +=
                snprintf(text + n, sizeof text - (size_t)n, "%02x", r.token[i]);
        }
    }
    judge(b, b->above, text, b->below);
}

static void accepts(struct block *b)
{
    uint8_t data[256], depth;
    uint32_t conn;
    char text[128] = "reason=1";
    size_t len = bytes_of(b->above, data, sizeof data);
    if (wire_get_accept(data, len, KIND_WRITE, &depth, &conn)) {
        snprintf(text, sizeof text, "kind=write depth=%u conn=%u", depth, conn);
    }
    judge(b, b->above, text, b->below);
}

static void block(struct block *b)
{
    bool fine = strstr(b->kind, " ok") != NULL;
    b->below[strcspn(b->below, "\n")] = '\0';
    if (strncmp(b->kind, "rdma-request ", 13) == 0) {
        fields(b, true);
    }
    else if (strncmp(b->kind, "rdma-response ", 14) == 0) {
        fields(b, false);
    }
    else if (strncmp(b->kind, "rdma-message ", 13) == 0) {
        messages(b, fine);
    }
    else if (strncmp(b->kind, "rdma-connect ", 13) == 0) {
        connects(b);
    }
    else if (strncmp(b->kind, "rdma-accept ", 12) == 0) {
        accepts(b);
    }
}

int examples_run(const char *path)
{
    static struct block b;
    static char line[LINE_SIZE];
    char *to = NULL;
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        perror(path);
        return 2;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        if (to == NULL && strncmp(line, "```rdma-", 8) == 0) {
            memset(&b, 0, sizeof b);
            line[strcspn(line, "\n")] = '\0';
            snprintf(b.kind, sizeof b.kind, "%.60s", line + 3);
            to = b.above;
        }
        else if (to != NULL && strncmp(line, "```", 3) == 0) {
            to = NULL;
            block(&b);
        }
        else if (to != NULL && strcmp(line, "---\n") == 0) {
            to = b.below;
        }
        else if (to != NULL) {
            size_t room = (to == b.above ? sizeof b.above : sizeof b.below);
            strncat(to, line, room - strlen(to) - 1);
        }
    }
    fclose(f);
    printf("%u examples as they should be, %u not\n", passed, wrong);
    return wrong > 0 || passed == 0;
}
