// Package hygiene holds the tests about the repository itself: which package
// may import which, what a pure package may use, how long files are, and that
// the documentation says what the code does. It has no code of its own.
//
// A check is a function from sources to a list of problems. Each has a test
// that runs it on this repository, and one that runs it on small sources with
// the fault in them, so that a check that stopped seeing anything fails.
package hygiene
