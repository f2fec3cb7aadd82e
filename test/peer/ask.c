/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* Puts the HTTP request together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "endpoint.h"
#include "loop.h"

/* Fills {port} {token} {id} {stag} {to} {len} in a field given by hand. */
static void fill(char *out, const char *raw, const struct offer *o)
{
    char token[25];
    size_t n = 0;
    field_put_token(token, o->token);
    while (*raw != '\0' && n + 64 < FIELD_MAX * 3) {
        char value[64] = "";
        const char *end = *raw == '{' ? strchr(raw, '}') : NULL;
        size_t len = end != NULL ? (size_t)(end - raw) - 1 : 0;
        if (len == 4 && memcmp(raw + 1, "port", 4) == 0) {
            snprintf(value, sizeof value, "%u", o->port);
        }
        else if (len == 5 && memcmp(raw + 1, "token", 5) == 0) {
            snprintf(value, sizeof value, "%s", token);
        }
        else if (len == 2 && memcmp(raw + 1, "id", 2) == 0) {
            snprintf(value, sizeof value, "%u", o->id);
        }
        else if (len == 4 && memcmp(raw + 1, "stag", 4) == 0) {
            snprintf(value, sizeof value, "%08x", o->stag);
        }
        else if (len == 2 && memcmp(raw + 1, "to", 2) == 0) {
            snprintf(value, sizeof value, "%016llx", (unsigned long long)o->to);
        }
        else if (len == 3 && memcmp(raw + 1, "len", 3) == 0) {
            snprintf(value, sizeof value, "%llu", (unsigned long long)o->len);
        }
        if (*value != '\0') {
            memcpy(out + n, value, strlen(value));
            n += strlen(value);
            raw = end + 1;
        }
        else {
            out[n++] = *raw++;
        }
    }
    out[n] = '\0';
}

/* A request given by hand: tabs become line ends, and a head without an end
 * gets one. */
static size_t by_hand(char *out, size_t room, const char *ask,
                      const char *field)
{
    size_t n = 0;
    bool whole = strstr(ask, "\t\t") != NULL;
    for (; *ask != '\0' && n + strlen(field) + 8 < room; ask++) {
        if (strncmp(ask, "{rdma}", 6) == 0) {
            n += (size_t)sprintf(out + n, "%s", field);
            ask += 5;
        }
        else if (*ask == '\t') {
            n += (size_t)sprintf(out + n, "\r\n");
        }
        else {
            out[n++] = *ask;
        }
    }
    return n + (size_t)sprintf(out + n, "%s", whole ? "" : "\r\n\r\n");
}

/* The request by the options; its length. */
static size_t by_options(char *text, size_t room, const struct request *r,
                         const char *field)
{
    int n = snprintf(text, room, "%s %s HTTP/1.%d\r\nHost: %s\r\n",
                     opt.method, r->path, opt.http10 ? 0 : 1, opt.host);
    if (opt.nominate && *field != '\0') {
        n += snprintf(text + n, room - (size_t)n, "Connection: RDMA\r\n");
    }
    if (*field != '\0') {
        n += snprintf(text + n, room - (size_t)n, "RDMA: %s\r\n", field);
    }
    for (unsigned i = 0; i < opt.headers.n; i++) {
        n += snprintf(text + n, room - (size_t)n, "%s\r\n", opt.headers.of[i]);
    }
    n += snprintf(text + n, room - (size_t)n, "\r\n");
    return (size_t)n;
}

void request_send(struct request *r)
{
    static char text[65536];
    char field[FIELD_MAX * 4] = "";
    struct endpoint *ep = r->ep;
    struct offer o = {.port = ep->port, .id = r->id};
    const char *raw = opt.field;
    bool head_only = strcmp(opt.method, "HEAD") == 0;
    size_t n;
    if (opt.port != 0) {
        o.port = (uint16_t)opt.port;
    }
    if (opt.addr != NULL) {
        o.has_addr = true;
        snprintf(o.addr, sizeof o.addr, "%s", opt.addr);
    }
    memcpy(o.token, ep->token, TOKEN_SIZE);
    memcpy(o.prefer, opt.prefer, 2);
    if (!r->plain
        && (opt.prefer[0] == KIND_WRITE || opt.prefer[1] == KIND_WRITE)) {
        r->window = window_get(ep, FOR_WRITE);
    }
    if (r->window != NULL) {
        o.stag = r->window->mr->rkey;
        o.to = (uintptr_t)r->window->memory;
        o.len = opt.window;
    }
    if (opt.fields.n > 0) {
        raw = opt.fields.of[(r->seq - 1) % opt.fields.n];
    }
    if (r->plain) {
        field[0] = '\0';
    }
    else if (raw != NULL) {
        fill(field, raw, &o);
    }
    else if (o.prefer[0] != 0) {
        field_put_offer(field, &o);
    }
    r->field = need(strdup(field));
    r->began = loop_now();
    if (opt.asks.n > 0) {
        const char *ask = opt.asks.of[(r->seq - 1) % opt.asks.n];
        head_only = strncmp(ask, "HEAD ", 5) == 0;
        n = by_hand(text, sizeof text, ask, field);
    }
    else {
        n = by_options(text, sizeof text, r, field);
    }
    trace("client %u id %u sent RDMA: %s", ep->number, r->id, field);
    if (r->lane->http == NULL) {
        r->http_ended = true;
        request_give_up(r, 1, "no HTTP connection");
    }
    else {
        http_send(r->lane->http, text, n, head_only, &request_http_ops, r);
    }
}
