/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "route.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* The source that the kernel would take; nothing is sent. 0 or -1. */
static int source_for(const struct addrinfo *to, struct sockaddr_storage *out)
{
    socklen_t len = sizeof(*out);
    int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int rc = -1;

    if (fd < 0) {
        return -1;
    }
    memset(out, 0, sizeof(*out));
    if (connect(fd, to->ai_addr, to->ai_addrlen) == 0
        && getsockname(fd, (struct sockaddr *)out, &len) == 0) {
        rc = 0;
    }
    close(fd);
    return rc;
}

/* Ports are nothing, and a link-local address is of no use without its zone,
 * which the protocol does not carry. 0, or -1: not usable. */
static int strip(struct sockaddr_storage *sa)
{
    if (sa->ss_family == AF_INET) {
        ((struct sockaddr_in *)sa)->sin_port = 0;
        return 0;
    }
    if (sa->ss_family == AF_INET6) {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)sa;

        v6->sin6_port = 0;
        v6->sin6_flowinfo = 0;
        return IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr) ? -1 : 0;
    }
    return -1;
}

static int parse_literal(const char *text, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(*out));
    if (inet_pton(AF_INET, text, &((struct sockaddr_in *)out)->sin_addr) == 1) {
        out->ss_family = AF_INET;
        return 0;
    }
    if (inet_pton(AF_INET6, text, &((struct sockaddr_in6 *)out)->sin6_addr)
        == 1) {
        out->ss_family = AF_INET6;
        return 0;
    }
    return -1;
}

size_t rdmahttp_route_locals(const char *host, const char *port,
                             const char *bind,
                             struct sockaddr_storage out[RDMAHTTP_ROUTES])
{
    struct addrinfo hints, *list, *ai;
    struct sockaddr_storage bound, sa;
    size_t n = 0, i;

    if (bind && (parse_literal(bind, &bound) || strip(&bound))) {
        return 0;
    }
    memset(&hints, 0, sizeof(hints));
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_family = bind ? bound.ss_family : AF_UNSPEC;
    if (getaddrinfo(host, port, &hints, &list)) {
        return 0;
    }
    for (ai = list; ai && n < RDMAHTTP_ROUTES; ai = ai->ai_next) {
        if (bind) {
            sa = bound;
        }
        else if (source_for(ai, &sa) || strip(&sa)) {
            continue;
        }
        for (i = 0; i < n && memcmp(&out[i], &sa, sizeof(sa)) != 0; i++) {
        }
        if (i == n) {
            out[n++] = sa;
        }
    }
    freeaddrinfo(list);
    return n;
}

/* ---- proxies ----------------------------------------------------------- */

static int is_set(const char *name)
{
    const char *value = getenv(name);

    return value && *value;
}

/* Does the host end with this pattern of n bytes, at a dot? */
static int matches(const char *host, const char *pattern, size_t n)
{
    size_t h = strlen(host);

    while (n > 0 && *pattern == '.') {
        pattern++;
        n--;
    }
    if (n == 1 && *pattern == '*') {
        return 1;
    }
    return n > 0 && n <= h && strncasecmp(host + h - n, pattern, n) == 0
           && (n == h || host[h - n - 1] == '.');
}

static int exempt(const char *list, const char *host)
{
    while (list && *list) {
        size_t n = strcspn(list, ", ");

        if (matches(host, list, n)) {
            return 1;
        }
        list += n;
        list += strspn(list, ", ");
    }
    return 0;
}

int rdmahttp_route_proxied(const char *scheme, const char *host)
{
    int https = strcmp(scheme, "https") == 0;
    int any = is_set("all_proxy") || is_set("ALL_PROXY")
              || (https ? is_set("https_proxy") || is_set("HTTPS_PROXY")
                        : is_set("http_proxy"));
    const char *list = getenv("no_proxy");

    return any && !exempt(list ? list : getenv("NO_PROXY"), host);
}
