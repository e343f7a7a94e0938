// Package traces shows that the gateway's traces arrive: it runs a real
// OpenTelemetry Collector next to the real daemon, takes what the Collector
// passes on, and draws one authorisation as a tree.
//
//	daemon ──OTLP/gRPC──> Collector ──OTLP/HTTP──> Sink ──> Trace
package traces
