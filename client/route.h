/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * route: which way a request to a host would go: from which local addresses,
 * and whether through a proxy. No state; any thread.
 */
#ifndef RDMAHTTP_ROUTE_H
#define RDMAHTTP_ROUTE_H

#include <stddef.h>
#include <sys/socket.h>

#define RDMAHTTP_ROUTES 8

/* The local addresses from which the host's addresses are reached, most
 * preferred first, each once; or bind, a literal, if the host has an address of
 * its family. Looks the name up, for so long at most, and until cancel_fd (0:
 * none) is readable. Returns how many, at most RDMAHTTP_ROUTES; 0: none. */
size_t rdmahttp_route_locals(const char *host, const char *port,
                             const char *bind, unsigned timeout_ms,
                             int cancel_fd,
                             struct sockaddr_storage out[RDMAHTTP_ROUTES]);

/* 1: the environment names a proxy that libcurl may use for this host. Errs
 * towards 1: the field must not go to a proxy that it was not meant for. */
int rdmahttp_route_proxied(const char *scheme, const char *host);

#endif /* RDMAHTTP_ROUTE_H */
