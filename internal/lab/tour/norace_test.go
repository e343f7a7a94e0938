//go:build !race

package tour

// raceDetector is off.
const raceDetector = false
