//go:build race

package tour

// raceDetector is on in the test and in the daemon that it builds.
const raceDetector = true
