/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* What a server may do to its client that the protocol forbids. A request asks
 * for it, and has a connection of its own for it. */
#ifndef LIE_H
#define LIE_H

#include <stdbool.h>
#include <stdint.h>

struct job;
struct lie;

/* `name` ends with & or the text; NULL: none for connections of this kind. */
const struct lie *lie_find(const char *name, uint8_t kind);
/* Spoils the private data of the connect request. */
void lie_connect(const struct lie *l, uint8_t *data, uint8_t *len);
/* There is no HELLO. */
bool lie_is_mute(const struct lie *l);
/* The connection is there; false: go on as an honest server. */
bool lie_tell(struct job *j);
void lie_help(void);

#endif
