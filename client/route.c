/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "route.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
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

/* ---- looking up -------------------------------------------------------- */

/* getaddrinfo() takes as long as it likes: it has a thread, which is left alone
 * with it when nobody waits any more. */
typedef struct lookup {
    char *host, *port;
    struct addrinfo hints, *list;
    int done_fd; /* readable: list is there, or NULL */
    int users;   /* atomic */
} lookup;

static void lookup_leave(lookup *l)
{
    if (__atomic_sub_fetch(&l->users, 1, __ATOMIC_ACQ_REL) > 0) {
        return;
    }
    if (l->list) {
        freeaddrinfo(l->list);
    }
    if (l->done_fd >= 0) {
        close(l->done_fd);
    }
    free(l->host);
    free(l->port);
    free(l);
}

static void *lookup_main(void *arg)
{
    lookup *l = arg;
    uint64_t one = 1;

    if (getaddrinfo(l->host, l->port, &l->hints, &l->list)) {
        l->list = NULL;
    }
    if (write(l->done_fd, &one, sizeof(one)) != sizeof(one)) {
        abort(); /* a new eventfd takes a 1 */
    }
    lookup_leave(l);
    return NULL;
}

/* 0 or -1. */
static int lookup_start(lookup *l)
{
    sigset_t all, before;
    pthread_attr_t attr;
    pthread_t thread;
    int error;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals are the program's own threads' business */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    l->users++;
    error = pthread_create(&thread, &attr, lookup_main, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error) {
        l->users--;
    }
    return error ? -1 : 0;
}

/* The host's addresses, until lookup_leave(). NULL: no memory, no thread. */
static lookup *look_up(const char *host, const char *port, int family,
                       unsigned timeout_ms, int cancel_fd,
                       const struct addrinfo **list)
{
    lookup *l = calloc(1, sizeof(*l));
    struct pollfd fds[2] = {{-1, POLLIN, 0},
                            {cancel_fd > 0 ? cancel_fd : -1, POLLIN, 0}};

    *list = NULL;
    if (!l) {
        return NULL;
    }
    l->users = 1;
    l->host = strdup(host);
    l->port = strdup(port);
    l->hints.ai_socktype = SOCK_STREAM;
    l->hints.ai_family = family;
    l->done_fd = fds[0].fd = eventfd(0, EFD_CLOEXEC);
    if (!l->host || !l->port || l->done_fd < 0 || lookup_start(l)) {
        lookup_leave(l);
        return NULL;
    }
    while (poll(fds, 2, (int)timeout_ms) < 0 && errno == EINTR) {
    }
    if (fds[0].revents) {
        *list = l->list;
    }
    return l;
}

size_t rdmahttp_route_locals(const char *host, const char *port,
                             const char *bind, unsigned timeout_ms,
                             int cancel_fd,
                             struct sockaddr_storage out[RDMAHTTP_ROUTES])
{
    const struct addrinfo *ai;
    struct sockaddr_storage bound, sa;
    lookup *l;
    size_t n = 0, i;

    if (bind && (parse_literal(bind, &bound) || strip(&bound))) {
        return 0;
    }
    l = look_up(host, port, bind ? bound.ss_family : AF_UNSPEC, timeout_ms,
                cancel_fd, &ai);
    for (; ai && n < RDMAHTTP_ROUTES; ai = ai->ai_next) {
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
    if (l) {
        lookup_leave(l);
    }
    return n;
}

/* ---- proxies ----------------------------------------------------------- */

static int is_set(const char *name)
{
    const char *value = getenv(name);

    return value && *value;
}

/* Is the host this pattern of n bytes, or a name that ends with it at a dot? */
static int matches(const char *host, const char *pattern, size_t n)
{
    struct sockaddr_storage sa;
    size_t h = strlen(host);

    if (n > 0 && *pattern == '.') {
        pattern++;
        n--;
    }
    return n > 0 && n <= h && strncasecmp(host + h - n, pattern, n) == 0
           && (n == h
               || (host[h - n - 1] == '.' && parse_literal(host, &sa) != 0));
}

/* As libcurl sees it, or less: networks (10.0.0.0/8) are left out. */
static int exempt(const char *list, const char *host)
{
    if (list && strcmp(list, "*") == 0) {
        return 1;
    }
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
