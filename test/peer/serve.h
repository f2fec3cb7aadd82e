/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* A small conforming server, to try the client against. */
#ifndef SERVE_H
#define SERVE_H

#include <stdint.h>
#include <sys/socket.h>

int serve(const struct sockaddr_storage *local, uint16_t port);

#endif
