// SPDX-License-Identifier: Apache-2.0
// The record that each program exports, so that the build can hold a cubin against its target and its catalog row.
#pragma once

#define WS_RECORD_SCHEMA 0x57530001u  // 'WS' and the layout's version
#define WS_FLAG_WAITS 1u              // the kernel waits for its predecessor (griddepcontrol.wait)

// External linkage keeps the array in .nv.constant3 although no instruction reads it.
#define WS_RECORD(shared_bytes, threads, stages, flags, tile0, tile1, tile2)                  \
  extern "C" {                                                                                \
  __constant__ unsigned int ws_record[8] = {WS_RECORD_SCHEMA, (shared_bytes), (threads),      \
                                            (stages), (flags), (tile0), (tile1), (tile2)};    \
  }
