/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Whoever is told need not look out for other threads. */
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

void rdmahttp_log(const rdmahttp_conf *conf, int level, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    size_t i;

    if (!conf->log) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    for (i = 0; line[i]; i++) { /* a terminal would act on what a peer sends */
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f
            || (unsigned char)line[i] >= 0x80) {
            line[i] = '?';
        }
    }
    pthread_mutex_lock(&one_at_a_time);
    conf->log(conf->log_baton, level, line);
    pthread_mutex_unlock(&one_at_a_time);
}

void rdmahttp_log_mask(char *field)
{
    static const char *const keys[] = {"token=:", "stag=\"", "to=\""};
    size_t i;

    for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char *p = strstr(field, keys[i]);

        if (p) {
            p += strlen(keys[i]);
            while (*p && *p != ':' && *p != '"') {
                *p++ = '*';
            }
        }
    }
}
