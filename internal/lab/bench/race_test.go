//go:build race

package bench

// raceDetector is on, which says nothing about throughput.
const raceDetector = true
