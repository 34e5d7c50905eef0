/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Tracepoints: each call to the host, under events/pvmsi of tracefs. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pvmsi

#if !defined(PVMSI_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define PVMSI_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(pvmsi_call,
	TP_PROTO(u32 function, unsigned int call, unsigned int first,
		 unsigned int count, unsigned int status, u64 nanoseconds),
	TP_ARGS(function, call, first, count, status, nanoseconds),
	TP_STRUCT__entry(
		__field(u32, function)
		__field(unsigned int, call)
		__field(unsigned int, first)
		__field(unsigned int, count)
		__field(unsigned int, status)
		__field(u64, nanoseconds)
	),
	TP_fast_assign(
		__entry->function = function;
		__entry->call = call;
		__entry->first = first;
		__entry->count = count;
		__entry->status = status;
		__entry->nanoseconds = nanoseconds;
	),
	TP_printk("%04x:%02x:%02x.%x %s first=%u count=%u status=%s ns=%llu",
		  __entry->function >> 16, (__entry->function >> 8) & 0xff,
		  (__entry->function >> 3) & 0x1f, __entry->function & 7,
		  __print_symbolic(__entry->call,
				   { 1, "negotiate" },
				   { 2, "query-function" },
				   { 3, "query-vectors" },
				   { 4, "configure" },
				   { 5, "update" },
				   { 6, "release" },
				   { 7, "restore" }),
		  __entry->first, __entry->count,
		  __print_symbolic(__entry->status,
				   { 0x00, "success" },
				   { 0x10, "not-supported" },
				   { 0x20, "no-such-function" },
				   { 0x30, "parameter" },
				   { 0x40, "busy" },
				   { 0x50, "no-resources" },
				   { 0x60, "denied" },
				   { 0x70, "hardware" }),
		  __entry->nanoseconds)
);

#endif /* PVMSI_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE pvmsi_trace
#include <trace/define_trace.h>
