// Package telemetry sets up traces, metrics and logs, and holds the names that
// all of them use.
package telemetry
