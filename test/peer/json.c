/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "json.h"

static void text(struct json *j, const char *s)
{
    putc('"', j->out);
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            fprintf(j->out, "\\%c", c);
        }
        else if (c < 0x20 || c >= 0x7f) {
            fprintf(j->out, "\\u%04x", c);
        }
        else {
            putc(c, j->out);
        }
    }
    putc('"', j->out);
}

static void name(struct json *j, const char *key)
{
    if (j->depth > 0 && j->first[j->depth] == 0) {
        putc(',', j->out);
    }
    j->first[j->depth] = 0;
    if (key != NULL) {
        text(j, key);
        putc(':', j->out);
    }
}

void json_open(struct json *j, const char *key, char bracket)
{
    name(j, key);
    putc(bracket, j->out);
    j->depth++;
    j->first[j->depth] = 1;
}

void json_close(struct json *j, char bracket)
{
    j->depth--;
    putc(bracket, j->out);
    if (j->depth == 0) {
        putc('\n', j->out);
        fflush(j->out);
    }
}

void json_number(struct json *j, const char *key, uint64_t value)
{
    name(j, key);
    fprintf(j->out, "%llu", (unsigned long long)value);
}

void json_real(struct json *j, const char *key, double value)
{
    name(j, key);
    fprintf(j->out, "%.6f", value);
}

void json_string(struct json *j, const char *key, const char *value)
{
    name(j, key);
    text(j, value);
}
