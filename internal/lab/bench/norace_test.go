//go:build !race

package bench

// raceDetector is off.
const raceDetector = false
