/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "options.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "../rdma_version.h"

#define WINDOW_MAX ((uint64_t)1 << 40)

void options_complain(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("rwget: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

/* Digits only, from low to high. 0 or -1. */
static int number(const char *s, size_t n, uint64_t low, uint64_t high,
                  uint64_t *out)
{
    uint64_t v = 0;
    size_t i;

    for (i = 0; i < n; i++) {
        unsigned d = (unsigned)(unsigned char)s[i] - '0';

        if (d > 9 || v > (UINT64_MAX - d) / 10) {
            return -1;
        }
        v = v * 10 + d;
    }
    if (n == 0 || v < low || v > high) {
        return -1;
    }
    *out = v;
    return 0;
}

static int set_file(options *set, const char *value)
{
    set->file = value;
    return *value ? 0 : -1;
}

static int set_quiet(options *set, const char *value)
{
    (void)value;
    set->quiet = 1;
    set->verbose = 0;
    return 0;
}

static int set_verbose(options *set, const char *value)
{
    (void)value;
    set->verbose++;
    set->quiet = 0;
    return 0;
}

static int set_mode(options *set, const char *value)
{
    static const char *const names[] = {"auto", "write", "read", "off"};
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(value, names[i]) == 0) {
            set->conf.mode = (rdmahttp_mode)i;
            return 0;
        }
    }
    return -1;
}

static int set_require(options *set, const char *value)
{
    (void)value;
    set->require = 1;
    return 0;
}

static int set_window(options *set, const char *value)
{
    static const char units[] = "KMG";
    size_t n = strlen(value);
    const char *unit = n > 0 ? strchr(units, value[n - 1]) : NULL;
    unsigned shift = unit ? (unsigned)(unit - units + 1) * 10 : 0;
    uint64_t v;

    if (number(value, unit ? n - 1 : n, 1, WINDOW_MAX >> shift, &v)) {
        return -1;
    }
    set->conf.window = (size_t)(v << shift);
    return 0;
}

static int set_ports(options *set, const char *value)
{
    const char *dash = strchr(value, '-');
    uint64_t low, high;

    if (!dash || number(value, (size_t)(dash - value), 1024, 65535, &low)
        || number(dash + 1, strlen(dash + 1), low, 65535, &high)) {
        return -1;
    }
    set->conf.port_min = (uint16_t)low;
    set->conf.port_max = (uint16_t)high;
    return 0;
}

static int set_bind(options *set, const char *value)
{
    unsigned char buf[sizeof(struct in6_addr)];

    set->conf.bind_address = value;
    return inet_pton(AF_INET, value, buf) == 1
                   || inet_pton(AF_INET6, value, buf) == 1
               ? 0
               : -1;
}

static int set_over_tls(options *set, const char *value)
{
    (void)value;
    set->conf.over_tls = 1;
    return 0;
}

static int set_timeout(options *set, const char *value)
{
    uint64_t v;

    if (number(value, strlen(value), 1, 86400, &v)) {
        return -1;
    }
    set->conf.timeout_ms = (unsigned)v * 1000;
    return 0;
}

/* "Name: value". What frames the message or carries RDMA is not the user's. */
static int set_header(options *set, const char *value)
{
    static const char *const ours[] = {"RDMA", "Connection", "Content-Length",
                                       "Transfer-Encoding"};
    const char *colon = strchr(value, ':');
    size_t i;

    if (!colon || colon == value || strpbrk(value, "\r\n")
        || set->nheaders == OPTIONS_HEADERS) {
        return -1;
    }
    for (i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
        if (strncasecmp(value, ours[i], strlen(ours[i])) == 0
            && value[strlen(ours[i])] == ':') {
            return -1;
        }
    }
    set->headers[set->nheaders++] = value;
    return 0;
}

static int set_json(options *set, const char *value)
{
    (void)value;
    set->json = 1;
    return 0;
}

static int set_help(options *set, const char *value);

static int set_version(options *set, const char *value)
{
    (void)value;
    printf("rwget %s, %s\n", MOD_RDMA_VERSION, curl_version());
    set->done = 1;
    return 0;
}

typedef struct option_row {
    char letter; /* 0: none */
    const char *name;
    const char *arg; /* NULL: none */
    const char *help;
    int (*set)(options *set, const char *value); /* 0, or -1: a bad value */
} option_row;

static const option_row rows[] = {
    {'O', "output-document", "FILE", "write to FILE; - is standard output",
     set_file},
    {'q', "quiet", NULL, "say nothing but errors", set_quiet},
    {'v', "verbose", NULL,
     "show the fields, heads and connections; twice: more", set_verbose},
    {0, "rdma", "MODE", "auto (the default), write, read or off: what to offer",
     set_mode},
    {0, "rdma-require", NULL, "fail with 9 when the body comes by TCP",
     set_require},
    {0, "rdma-window", "SIZE", "bytes to offer, also 64K, 4M (default), 1G",
     set_window},
    {0, "rdma-ports", "A-B", "RDMA listener's port, from 1024 to 65535",
     set_ports},
    {0, "rdma-over-tls", NULL, "offer RDMA, which is plaintext, with https too",
     set_over_tls},
    {0, "bind-address", "ADDR", "local IPv4 or IPv6 address", set_bind},
    {0, "timeout", "SECONDS", "give up without progress, default 30",
     set_timeout},
    {0, "header", "LINE", "send this field too; may be repeated", set_header},
    {0, "json", NULL, "one line for programs: to stdout, or stderr with -O -",
     set_json},
    {'h', "help", NULL, "show this", set_help},
    {'V', "version", NULL, "show the version", set_version},
};

#define NROWS (sizeof(rows) / sizeof(rows[0]))

static int set_help(options *set, const char *value)
{
    size_t i;

    (void)value;
    printf("Usage: rwget [OPTION]... URL\n"
           "Fetch URL; the body by RDMA where the server can.\n\n");
    for (i = 0; i < NROWS; i++) {
        char left[64];

        snprintf(left, sizeof(left), "--%s%s%s", rows[i].name,
                 rows[i].arg ? "=" : "", rows[i].arg ? rows[i].arg : "");
        printf("  %c%c%c %-24s %s\n", rows[i].letter ? '-' : ' ',
               rows[i].letter ? rows[i].letter : ' ',
               rows[i].letter ? ',' : ' ', left, rows[i].help);
    }
    printf("\nExit status: 0 complete, 1 other, 2 usage, 3 file, 4 network, 5 "
           "TLS,\n6 authentication, 7 protocol, 8 server's error, 9 RDMA "
           "required, not used.\n");
    set->done = 1;
    return 0;
}

static int apply(options *set, const option_row *row, const char *value)
{
    if (row->set(set, value)) {
        options_complain("--%s: bad value '%s' (%s)", row->name,
                         value ? value : "", row->help);
        return -1;
    }
    return 0;
}

/* "--name", "--name=value" or "--name value". 0 or -1. */
static int long_option(options *set, char **argv, int *i)
{
    const char *name = argv[*i] + 2;
    size_t n = strcspn(name, "=");
    const char *value = name[n] ? name + n + 1 : NULL;
    size_t k;

    for (k = 0; k < NROWS; k++) {
        if (strlen(rows[k].name) == n && strncmp(rows[k].name, name, n) == 0) {
            break;
        }
    }
    if (k == NROWS) {
        options_complain("unknown option --%.*s", (int)n, name);
        return -1;
    }
    if (!rows[k].arg && value) {
        options_complain("--%s takes no value", rows[k].name);
        return -1;
    }
    if (rows[k].arg && !value) {
        value = argv[++*i];
        if (!value) {
            --*i;
            options_complain("--%s needs a value", rows[k].name);
            return -1;
        }
    }
    return apply(set, &rows[k], value);
}

/* "-q", "-O FILE", "-OFILE", "-qO-". 0 or -1. */
static int short_options(options *set, char **argv, int *i)
{
    const char *p;
    size_t k;

    for (p = argv[*i] + 1; *p; p++) {
        for (k = 0; k < NROWS && rows[k].letter != *p; k++) {
        }
        if (k == NROWS) {
            options_complain("unknown option -%c", *p);
            return -1;
        }
        if (!rows[k].arg) {
            if (apply(set, &rows[k], NULL)) {
                return -1;
            }
            continue;
        }
        if (!p[1] && !argv[*i + 1]) {
            options_complain("-%c needs a value", *p);
            return -1;
        }
        return apply(set, &rows[k], p[1] ? p + 1 : argv[++*i]);
    }
    return 0;
}

int options_parse(options *set, char **argv)
{
    int i, only_urls = 0;

    for (i = 1; argv[i] && !set->done; i++) {
        const char *s = argv[i];
        int rc = 0;

        if (!only_urls && strcmp(s, "--") == 0) {
            only_urls = 1;
        }
        else if (!only_urls && s[0] == '-' && s[1] == '-') {
            rc = long_option(set, argv, &i);
        }
        else if (!only_urls && s[0] == '-' && s[1]) {
            rc = short_options(set, argv, &i);
        }
        else if (set->url) {
            options_complain("one URL only");
            rc = -1;
        }
        else {
            set->url = s;
        }
        if (rc) {
            return -1;
        }
    }
    if (!set->done && !set->url) {
        options_complain("no URL; see rwget --help");
        return -1;
    }
    if (set->require && set->conf.mode == RDMAHTTP_OFF) {
        options_complain("--rdma-require and --rdma=off exclude each other");
        return -1;
    }
    return 0;
}
