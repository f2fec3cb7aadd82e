/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * options: what rwget was asked to do. One table gives the parsing and --help.
 */
#ifndef RDMAHTTP_OPTIONS_H
#define RDMAHTTP_OPTIONS_H

#include <stddef.h>

#include "rdmahttp.h"

#define OPTIONS_HEADERS 64 /* --header, at most */

typedef struct options {
    const char *file; /* NULL: from the URL */
    const char *url;
    int quiet;
    int verbose;
    int json;
    int require;
    int done; /* --help or --version has been answered */
    rdmahttp_conf conf;
    const char *headers[OPTIONS_HEADERS + 1];
    size_t nheaders;
} options;

/* argv ends with NULL; *set is zero but for conf. Its strings stay argv's. 0, or
 * -1: stderr has been told what is wrong. */
int options_parse(options *set, char **argv);

/* A line on stderr. */
void options_complain(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

#endif /* RDMAHTTP_OPTIONS_H */
