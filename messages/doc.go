// Package messages holds the typed messages of the actors, one file per actor
// that receives them. Commands are imperative, events are past tense. Fields
// are values, or slices and maps that nobody writes again after sending.
package messages
